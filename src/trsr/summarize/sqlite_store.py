"""A store in one SQLite file that can also be copied, counted and cleaned (see `rows.Store`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from trsr.summarize.rows import PAGE, Choice, Part, Row
from trsr.summarize.store import SummaryStore

_COLUMNS = ", ".join(Row._fields)
_PARTS = """
    SELECT model, template_hash, count(text), count(error), sum(n_attempts), sum(n_prompt_tokens),
           sum(n_generated_tokens), sum(seconds), min(created_at), max(created_at)
    FROM summaries GROUP BY model, template_hash ORDER BY model, template_hash
"""
_ADD = f"""
    INSERT INTO summaries ({_COLUMNS}) VALUES ({", ".join("?" * len(Row._fields))})
    ON CONFLICT (key) DO UPDATE SET
        text = excluded.text, error = NULL, model = excluded.model, template_hash = excluded.template_hash,
        item_ids = excluded.item_ids, n_prompt_tokens = excluded.n_prompt_tokens,
        n_generated_tokens = excluded.n_generated_tokens, seconds = excluded.seconds,
        created_at = excluded.created_at, n_attempts = summaries.n_attempts + excluded.n_attempts
    WHERE summaries.text IS NULL AND excluded.text IS NOT NULL
"""


class SqliteStore(SummaryStore):
    """A summary store in a file, with what looking after it takes."""

    def rows(self) -> Iterator[Row]:
        """Yield every row in the order of the keys; see `rows.Store`."""
        query = f"SELECT {_COLUMNS} FROM summaries WHERE key > ? ORDER BY key LIMIT {PAGE}"
        last = ""
        while True:
            with self._as_one_sentence():
                page = self._db.execute(query, (last,)).fetchall()
            if not page:
                return
            yield from map(Row._make, page)
            last = page[-1][0]

    def add(self, rows: Iterable[Row]) -> int:
        """Take over rows as they are, a page a transaction; see `rows.Store`."""
        waiting, added = iter(rows), 0
        while page := list(islice(waiting, PAGE)):
            with self._as_one_sentence():
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    added += self._db.executemany(_ADD, page).rowcount
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
        return added

    def parts(self) -> list[Part]:
        """Count the rows of each model and template; see `rows.Store`."""
        with self._as_one_sentence():
            return [Part._make(row) for row in self._db.execute(_PARTS)]

    def count(self, choice: Choice) -> int:
        """Return how many rows are meant."""
        where, values = _where(choice)
        with self._as_one_sentence():
            (n,) = self._db.execute(f"SELECT count(*) FROM summaries WHERE {where}", values).fetchone()
        return int(n)

    def remove(self, choice: Choice) -> int:
        """Remove the rows that are meant, and give their space back to the disk."""
        where, values = _where(choice)
        with self._as_one_sentence():
            removed = self._db.execute(f"DELETE FROM summaries WHERE {where}", values).rowcount
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return removed

    def n_bytes(self) -> int:
        """Return the space taken by the database's pages."""
        with self._as_one_sentence():
            (pages,) = self._db.execute("PRAGMA page_count").fetchone()
            (size,) = self._db.execute("PRAGMA page_size").fetchone()
        return int(pages) * int(size)


def _where(choice: Choice) -> tuple[str, list[str | float]]:
    """Return a condition and its values."""
    tests, values = ["1"], list[str | float]()
    if choice.failed:
        tests.append("error IS NOT NULL")
    if choice.model is not None:
        tests.append("model = ?")
        values.append(choice.model)
    if choice.template_hash is not None:
        tests.append("substr(template_hash, 1, length(?)) = ?")
        values += [choice.template_hash] * 2
    if choice.before is not None:
        tests.append("created_at < ?")
        values.append(choice.before)
    return " AND ".join(tests), values
