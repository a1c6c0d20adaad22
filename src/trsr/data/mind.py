"""Microsoft News (MIND) in its own format: `news.tsv` and `behaviors.tsv`, neither with a header or quotes.

Impressions are kept as logged, whatever text is missing. Events are each user's logged history, once: in MIND
it is the same in all impressions of a split, and where it is not the longest counts. The clicks of an
impression stay in its labels; no event has a time, because the log gives none for a history.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import Field

from trsr.data.import_info import TimesInfo
from trsr.data.ingest import ItemCollector, by_user_ranges
from trsr.data.raw_file import ImportOptions, Names, RawFile, option
from trsr.data.schema import IMPRESSIONS, TIME
from trsr.data.text_lines import RAW, ROW
from trsr.data.times import MONTH_FIRST, UNREADABLE, TimeReader
from trsr.data.values import ID_RULE, MARKERS, is_id
from trsr.data.writer import DatasetWriter
from trsr.errors import DataError

NEWS = (
    *("item_id", "category", "subcategory", "title", "abstract"),
    *("url", "title_entities", "abstract_entities"),
)
BEHAVIORS = ("impression_id", "user_id", "time", "history", "candidates")
TEXT_FIELDS = ("category", "subcategory", "title", "abstract")
UNKNOWN_USER = "U_UNKNOWN"  # each of its rows is a user of its own
_HASH = "__history_hash__"
_SPOOLED = pl.Schema([*IMPRESSIONS.items(), (ROW, pl.Int64()), (_HASH, pl.UInt64())])
_HISTORY_ROWS = 1_000_000  # history positions ordered at once
_NO_LABELS = "candidates without labels, as in MIND's test files"


class MindImport(ImportOptions):
    """Import Microsoft News: news.tsv and behaviors.tsv, impressions kept as logged.

    Example: trsr import mind MINDsmall_train --out data/mind
    """

    kind: Literal["mind"] = "mind"
    source: Path = Field(description="Folder that holds the raw files.")
    name: str = option("Name in reports.", "mind")
    news: str = option("News file in SOURCE.", "news.tsv")
    behaviors: str = option("Impressions file in SOURCE.", "behaviors.tsv")
    text_fields: Names = option("Columns of the news kept as text: a,b.", TEXT_FIELDS)
    time_format: str | None = option("How times are written; MIND's own month-first form by default.")

    def read(self, writer: DatasetWriter) -> Path:
        """Read the news, the impressions, and the histories in them."""
        if wrong := [field for field in self.text_fields if field not in NEWS[1:]]:
            raise DataError(
                f"MIND has no text field {' and '.join(map(repr, wrong))}; choose from {', '.join(NEWS[1:])}."
            )
        news = RawFile(writer, self.source / self.news, self)
        behaviors = RawFile(writer, self.source / self.behaviors, self)
        items = ItemCollector(news, self.text_fields)
        for frame in news.frames(columns=NEWS, quotes=False):
            items.add(frame)
        times = TimeReader(behaviors.name, "time", self.time_format or MONTH_FIRST)
        writer.times = TimesInfo(file=behaviors.name, column="time", expected=False)
        for frame in behaviors.frames(columns=BEHAVIORS, quotes=False):
            writer.impressions.append(_impressions(behaviors, frame, times))
        _note_times(writer, times)
        _refuse_repeated(writer, behaviors)
        _write_histories(writer, behaviors, items.ids)
        return writer.finish(
            name=self.name,
            domain="news",
            text_fields=self.text_fields,
            category_fields=("category", "subcategory"),
            source=f"MIND: {self.source.name}/{self.news}, {self.source.name}/{self.behaviors}",
        )


def _impressions(file: RawFile, frame: pl.DataFrame, times: TimeReader) -> pl.DataFrame:
    """Return the logged impressions of a batch, with the columns that `_write_histories` needs."""
    frame = frame.with_columns(pl.col(BEHAVIORS).str.strip_chars())
    cells = pl.col("impression_id", "user_id", "time", "history")
    frame = frame.with_columns(pl.when(cells.is_in(MARKERS)).then(pl.lit("")).otherwise(cells).name.keep())
    frame = frame.with_columns(times.read(frame["time"])[0].alias("timestamp"))
    shown = pl.col("candidates").str
    for good, reason in (
        (pl.col("impression_id") != "", "no impression id"),
        ((pl.col("user_id") == "") | is_id("user_id"), f"user id with {ID_RULE}"),
        ((pl.col("time") == "") | pl.col("timestamp").is_not_null(), UNREADABLE),
        (~shown.contains(r"^[^\s-]+( +[^\s-]+)*$"), _NO_LABELS),
        (shown.contains(r"^\S+-[01]( +\S+-[01])*$"), "candidates are not of the form NEWS-0 or NEWS-1"),
    ):
        frame = file.keep(frame, good, reason)
    candidates = _words("candidates")
    unknown = pl.col("user_id").is_in(["", UNKNOWN_USER])
    alone = UNKNOWN_USER + ":" + pl.col("impression_id")
    return frame.select(
        ROW,
        pl.col("history").hash().alias(_HASH),
        "impression_id",
        pl.when(unknown).then(alone).otherwise("user_id").alias("user_id"),
        pl.col("timestamp").cast(TIME),
        _words("history"),
        candidates.list.eval(pl.element().str.head(-2)),
        candidates.list.eval(pl.element().str.ends_with("1")).alias("clicked"),
    )


def _words(column: str) -> pl.Expr:
    words = pl.col(column).str.split(" ")
    return words.list.eval(pl.element().filter(pl.element() != "")).alias(column)


def _note_times(writer: DatasetWriter, times: TimeReader) -> None:
    stamp = pl.col("timestamp")
    found = writer.impressions.scan(_SPOOLED).select(
        first=stamp.min(), last=stamp.max(), n=pl.len(), missing=stamp.null_count()
    )
    info = writer.times
    assert info is not None
    info.first, info.last, info.n, info.missing = found.collect().row(0)
    info.forms = dict(times.forms)


def _refuse_repeated(writer: DatasetWriter, file: RawFile) -> None:
    """Reject impressions whose id was seen before: an id names one impression.

    Whole rows are not kept while reading; for these few the file is read again.
    """
    # Hashes first: eight bytes an impression, and nearly always there is nothing to do.
    hashes = writer.impressions.scan(_SPOOLED).select(pl.col("impression_id").hash()).collect().to_series()
    if not (twice := hashes.filter(hashes.is_duplicated())).len():
        return
    table = writer.impressions.scan().filter(pl.col("impression_id").hash().is_in(twice.unique().implode()))
    rows = table.select("impression_id", ROW).collect().sort(ROW)
    later = rows.filter(~pl.col("impression_id").is_first_distinct()).select(ROW)
    for frame in file.frames_again(columns=BEHAVIORS, quotes=False):
        rows = frame.join(later, on=ROW, how="semi", maintain_order="left")
        file.refuse(rows, "impression id seen before")
    once = writer.spool("impressions_once")
    for batch in writer.impressions.batches():
        once.append(batch.join(later, on=ROW, how="anti", maintain_order="left"))
    writer.impressions = once


def _write_histories(writer: DatasetWriter, file: RawFile, item_ids: pl.DataFrame) -> None:
    """Write each user's longest history as events; entries without a news row are rejected."""
    logged = writer.impressions.scan(_SPOOLED)
    length = pl.col("history").list.len().alias("n")
    with_history = logged.select("user_id", ROW, _HASH, length).filter(pl.col("n") > 0)
    sizes = with_history.collect(engine="streaming").sort("n", ROW, descending=[True, False])
    longest = sizes.unique("user_id", keep="first", maintain_order=True)
    writer.counts["history_positions"] = int(sizes["n"].sum())
    writer.counts["repeated_histories"] = len(sizes) - len(longest)
    # Other histories of the same users; they stay in impressions.parquet.
    writer.counts["other_histories"] = len(sizes.unique(["user_id", _HASH])) - len(longest)
    kept = longest.lazy().select(ROW)
    share = _HISTORY_ROWS * writer.impressions.rows // max(1, int(longest["n"].sum()))
    for part in by_user_ranges(writer.impressions, max(1, share)):
        users = part.select("user_id", ROW, pl.col("history").alias("item_id")).join(kept, on=ROW, how="semi")
        clicks = users.collect(engine="streaming").sort("user_id").explode("item_id")
        file.info.entries += len(clicks)
        unknown = clicks.join(item_ids, on="item_id", how="anti", maintain_order="left")
        file.refuse(unknown.rename({"item_id": RAW}), "history entry without a news row")
        clicks = clicks.join(item_ids, on="item_id", how="semi", maintain_order="left")
        position = pl.int_range(pl.len(), dtype=pl.Int64).over("user_id").alias("position")
        writer.events.append(
            clicks.select("user_id", "item_id", position, pl.lit(None, TIME).alias("timestamp"))
        )
