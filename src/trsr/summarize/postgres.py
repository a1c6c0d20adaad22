"""A store of summaries in PostgreSQL, which many writers on many machines can share.

It keeps the promises of the SQLite store (see `store`): a row is committed when its result arrives, a text is
never replaced, a failed call is, and its attempts are counted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from types import TracebackType
from typing import Any, Self

from trsr.errors import MissingExtraError, OutputError, StoreError
from trsr.summarize.store import CALL, PAGE, Choice, Part, Row, StoredCall, stored_call
from trsr.summarize.stores import redacted

try:
    import psycopg  # noqa: F401 - the driver, which SQLAlchemy loads by its name
    from sqlalchemy import ColumnElement, Text, any_, create_engine, delete, func, literal, select, true
    from sqlalchemy.dialects.postgresql import ARRAY, Insert, insert
    from sqlalchemy.engine import Connection, make_url
    from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError

    from trsr.summarize.postgres_tables import MIGRATIONS, SUMMARIES, migrate, version
except ImportError as _error:
    raise MissingExtraError(_error.name or "psycopg", "postgres") from _error

CONNECT_SECONDS = 10
_ROW = SUMMARIES.c


class PostgresStore:
    """A content-addressed store of generated texts in a PostgreSQL database; threads may share it.

    Args:
        url: `postgresql://USER:PASSWORD@HOST:PORT/DATABASE`; see `places`.

    Raises:
        StoreError: a newer version of `trsr` made the store.
        OutputError: the server is away or refuses the user.
        MissingExtraError: the packages of the extra `postgres` are not installed.
    """

    def __init__(self, url: str) -> None:
        self.place = redacted(url)
        try:
            address = make_url(url).set(drivername="postgresql+psycopg")
        except (ArgumentError, ValueError) as error:
            raise StoreError(
                f"{self.place} is not the URL of a database; check how it is written."
            ) from error
        waits = {} if "connect_timeout" in address.query else {"connect_timeout": CONNECT_SECONDS}
        self._engine = create_engine(address, isolation_level="AUTOCOMMIT", connect_args=waits)
        try:
            self._migrate()
        except BaseException:
            self._engine.dispose()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; safe to call twice."""
        self._engine.dispose()

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """Give a connection that commits every statement; what the server says becomes one sentence."""
        try:
            with self._engine.connect() as connection:
                yield connection
        except OperationalError as error:
            raise OutputError(
                f"The summary store {self.place} cannot be used ({_reason(error)}); start the server or "
                "check address and password, then run the same command again."
            ) from error
        except SQLAlchemyError as error:
            raise OutputError(
                f"The summary store {self.place} cannot be used ({_reason(error)}); "
                "check the rights of its user, or name another database."
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """Give a connection whose statements are committed together at the end."""
        with self._connection() as connection:
            connection.execution_options(isolation_level="READ COMMITTED")
            with connection.begin():
                yield connection

    def _migrate(self) -> None:
        with self._connection() as connection:
            found = version(connection)
        if found > len(MIGRATIONS):
            raise StoreError(
                f"{self.place} holds a summary store of version {found}, this trsr knows {len(MIGRATIONS)}; "
                "update trsr or name another database."
            )
        if found < len(MIGRATIONS):
            with self._transaction() as connection:
                migrate(connection)

    def texts(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the known texts among `keys`; failed calls are not known."""
        found: dict[str, str] = {}
        with self._connection() as connection:
            for start in range(0, len(keys), PAGE):
                asked = literal(list(keys[start : start + PAGE]), ARRAY(Text))
                query = select(_ROW.key, _ROW.text).where(_ROW.key == any_(asked), _ROW.text.is_not(None))
                found.update((key, text) for key, text in connection.execute(query))
        return found

    def calls(self, keys: Sequence[str]) -> dict[str, StoredCall]:
        """Return what is known of the calls among `keys`, failed ones included."""
        found: dict[str, StoredCall] = {}
        columns = [_ROW[name] for name in CALL]
        with self._connection() as connection:
            for start in range(0, len(keys), PAGE):
                asked = literal(list(keys[start : start + PAGE]), ARRAY(Text))
                query = select(*columns).where(_ROW.key == any_(asked))
                found.update((row[0], stored_call(row)) for row in connection.execute(query))
        return found

    def put(self, call: StoredCall) -> None:
        """Commit one result. A failed call is replaced and its attempts counted; a text is never."""
        with self._connection() as connection:
            connection.execute(_put_statement(), _put_values(call))

    def put_all(self, calls: Sequence[StoredCall]) -> None:
        """Commit results that arrived together; see `GroupStore`."""
        rows = [_put_values(call) for call in calls]
        rows.sort(key=lambda row: str(row["key"]))  # two writers with one order never wait in a circle
        with self._transaction() as connection:
            connection.execute(_put_statement(), rows)

    def rows(self) -> Iterator[Row]:
        """Yield every row in the order of the keys; see `rows.Store`."""
        last = ""
        columns = [_ROW[name] for name in Row._fields]
        while True:
            with self._connection() as connection:
                query = select(*columns).where(_ROW.key > last).order_by(_ROW.key).limit(PAGE)
                page = [Row._make(row) for row in connection.execute(query)]
            if not page:
                return
            yield from page
            last = page[-1].key

    def add(self, rows: Iterable[Row]) -> int:
        """Take over rows as they are, a page a transaction; see `rows.Store`."""
        statement = insert(SUMMARIES)
        new = statement.excluded
        replaced: dict[str, Any] = {name: new[name] for name in Row._fields if name != "key"}
        upsert = statement.on_conflict_do_update(
            index_elements=[_ROW.key],
            set_=replaced | {"n_attempts": _ROW.n_attempts + new.n_attempts},
            where=_ROW.text.is_(None) & new.text.is_not(None),
        ).returning(_ROW.key)
        waiting, added = iter(rows), 0
        while page := [row._asdict() for row in islice(waiting, PAGE)]:
            page.sort(key=lambda row: str(row["key"]))  # two writers with one order never wait in a circle
            for row in page:
                row |= {name: _storable(row[name]) for name in ("text", "error")}
            with self._transaction() as connection:
                added += len(connection.execute(upsert, page).all())
        return added

    def parts(self) -> list[Part]:
        """Count the rows of each model and template; see `rows.Store`."""
        totals = ("n_attempts", "n_prompt_tokens", "n_generated_tokens", "seconds")
        names = (_ROW.model.collate("C"), _ROW.template_hash.collate("C"))
        query = (
            select(
                _ROW.model,
                _ROW.template_hash,
                func.count(_ROW.text),
                func.count(_ROW.error),
                *(func.sum(_ROW[name]) for name in totals),
                func.min(_ROW.created_at),
                func.max(_ROW.created_at),
            )
            .group_by(_ROW.model, _ROW.template_hash)
            .order_by(*names)
        )
        with self._connection() as connection:
            return [Part._make(row) for row in connection.execute(query)]

    def count(self, choice: Choice) -> int:
        """Return how many rows are meant."""
        with self._connection() as connection:
            query = select(func.count()).select_from(SUMMARIES).where(_condition(choice))
            return int(connection.execute(query).scalar_one())

    def remove(self, choice: Choice) -> int:
        """Remove the rows that are meant; the server reuses their space."""
        with self._connection() as connection:
            return int(connection.execute(delete(SUMMARIES).where(_condition(choice))).rowcount)

    def n_bytes(self) -> int:
        """Return the space taken by the table and its index."""
        with self._connection() as connection:
            size = connection.execute(select(func.pg_total_relation_size(SUMMARIES.name)))
            return int(size.scalar_one())


def _put_statement() -> Insert:
    """Return the statement that keeps a result, or lets it take the place of a failed one."""
    statement = insert(SUMMARIES)
    new = statement.excluded
    replaced = ("text", "error", "seconds", "n_prompt_tokens", "n_generated_tokens", "created_at")
    return statement.on_conflict_do_update(
        index_elements=[_ROW.key],
        set_={name: new[name] for name in replaced} | {"n_attempts": _ROW.n_attempts + 1},
        where=_ROW.text.is_(None),
    )


def _put_values(call: StoredCall) -> dict[str, Any]:
    """Return the values that it takes."""
    row = Row(
        key=call.key,
        text=_storable(call.text),
        error=_storable(call.error),
        model=call.model,
        template_hash=call.template_hash,
        item_ids=json.dumps(call.item_ids),
        n_prompt_tokens=call.n_prompt_tokens,
        n_generated_tokens=call.n_generated_tokens,
        seconds=call.seconds,
        n_attempts=1,
        created_at=time.time(),
    )
    return row._asdict()


def _condition(choice: Choice) -> ColumnElement[bool]:
    """Return the condition that the rows meant fulfil."""
    meant: ColumnElement[bool] = true()
    if choice.failed:
        meant &= _ROW.error.is_not(None)
    if choice.model is not None:
        meant &= _ROW.model == choice.model
    if choice.template_hash is not None:
        meant &= func.left(_ROW.template_hash, len(choice.template_hash)) == choice.template_hash
    if choice.before is not None:
        meant &= _ROW.created_at < choice.before
    return meant


def _storable(text: str | None) -> str | None:
    """Return a text without NUL, the one character that PostgreSQL does not take; no summary holds one."""
    return None if text is None else text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _reason(error: SQLAlchemyError) -> str:
    """Return the first line of what the server or its client said, without the statement and its values."""
    said = str(error.orig) if isinstance(error, DBAPIError) else type(error).__name__
    return (said.strip().splitlines() or ["no reason given"])[0].rstrip(". ")
