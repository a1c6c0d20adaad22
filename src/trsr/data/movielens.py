"""MovieLens as GroupLens packs it (`movies.csv`, `ratings.csv`, and where present `tags.csv`, `links.csv`).

The films have little text of their own; overviews can be joined from a file that the user brings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import polars as pl

from trsr.data.collect import EventCollector, ItemCollector, at_least
from trsr.data.columns import ITEM_ID, clean_id, clean_texts, find_column, require_column
from trsr.data.import_info import MAX_REJECTS
from trsr.data.rawtables import RAW, ROW
from trsr.data.reading import RawFiles, TimeSettings
from trsr.data.tables import Dataset, DatasetWriter
from trsr.errors import DataError


class MovieLensImport(TimeSettings):
    """Options of `import_movielens` as a configuration carries them."""

    kind: Literal["movielens"] = "movielens"
    source: Path
    name: str = "movielens"
    min_rating: float | None = None
    tags: bool = False
    overviews: Path | None = None


def import_movielens(
    source: str | Path,
    out: str | Path,
    *,
    name: str = "movielens",
    min_rating: float | None = None,
    tags: bool = False,
    overviews: str | Path | None = None,
    time_format: str | None = None,
    keep_untimed: bool = False,
    delimiter: str | None = None,
    encoding: str | None = None,
    max_rejects: float = MAX_REJECTS,
    overwrite: bool = False,
) -> Dataset:
    """Make a dataset folder from a folder of MovieLens.

    Args:
        source: The folder that holds the files.
        out: The dataset folder to make.
        name: Stands in reports.
        min_rating: Ratings below it are counted and left out; None keeps all.
        tags: Add the film's distinct tags as a text field. Users wrote them at any time: they may tell of the
            future.
        overviews: CSV, TSV or JSON Lines with `overview` and a film id (`movieId`, `item_id`, or `tmdb_id`,
            which is looked up in links.csv).
        time_format: How times are written (see `times.TimeReader`); by default what fits the whole column.
        keep_untimed: Keep events without a time where others have one; their users stay in the file's order.
        delimiter: What separates the fields of delimited files; found in their first lines by default.
        encoding: Encoding of text files; found in their first 4 MB by default.
        max_rejects: Largest share of a file's rows that may be unreadable, in [0, 1].
        overwrite: Replace an existing dataset at `out`.

    Raises:
        DataError: a file or a column is missing, or nothing could be read.
    """
    source = Path(source)
    fields = ["title", "genres", *(["tags"] if tags else []), *(["overview"] if overviews else [])]
    with DatasetWriter(out, overwrite=overwrite) as writer:
        raw = RawFiles(writer, delimiter, encoding, max_rejects)
        more: list[pl.DataFrame] = []
        if tags:
            more.append(_read_tags(raw, source / "tags.csv"))
        if overviews:
            more.append(_read_overviews(raw, Path(overviews), source / "links.csv"))
        items = ItemCollector(writer, "movies.csv", fields)
        for frame in raw.frames(source / "movies.csv"):
            for column in ("movieId", "title", "genres"):
                require_column("movies.csv", frame.columns, f"film's {column}", (column,))
            films = frame.with_columns(clean_id("movieId").alias("item_id"), _no_genre())
            for texts in more:
                films = films.join(texts, on="item_id", how="left", maintain_order="left")
            items.add(films.select("item_id", ROW, RAW, *clean_texts(films, fields)))
        events = EventCollector(
            writer, "ratings.csv", items.ids, time_format=time_format, keep_untimed=keep_untimed
        )
        events.times.column = "timestamp"
        for frame in raw.frames(source / "ratings.csv"):
            events.add(_ratings(writer, frame, min_rating))
        events.finish()
        return writer.finish(
            name=name,
            domain="movies",
            text_fields=fields,
            category_fields=("genres",),
            source=f"MovieLens: {source.name}"
            + (f", overviews from {Path(overviews).name}" if overviews else ""),
        )


def _no_genre() -> pl.Expr:
    genres = pl.col("genres")
    return pl.when(genres != "(no genres listed)").then(genres).alias("genres")


def _ratings(writer: DatasetWriter, frame: pl.DataFrame, min_rating: float | None) -> pl.DataFrame:
    for column in ("userId", "movieId", "timestamp"):
        require_column("ratings.csv", frame.columns, column, (column,))
    if min_rating is not None:
        rating = require_column("ratings.csv", frame.columns, "rating", ("rating",))
        frame = at_least(writer, frame, rating, min_rating)
    return frame.select(
        pl.col("userId").alias("user_id"), pl.col("movieId").alias("item_id"), "timestamp", ROW, RAW
    )


def _read_tags(raw: RawFiles, file: Path) -> pl.DataFrame:
    """Return each film's distinct tags, the most frequent first."""
    frames = []
    for frame in raw.frames(file):
        for column in ("movieId", "tag"):
            require_column(file.name, frame.columns, column, (column,))
        frames.append(frame.select(clean_id("movieId").alias("item_id"), clean_id("tag").alias("tags")))
    tags = pl.concat(frames).drop_nulls().with_columns(pl.col("tags").str.to_lowercase())
    counted = (
        tags.group_by("item_id", "tags", maintain_order=True)
        .len()
        .sort("len", descending=True, maintain_order=True)
    )
    return counted.group_by("item_id", maintain_order=True).agg(pl.col("tags").str.join(", "))


def _read_overviews(raw: RawFiles, file: Path, links: Path) -> pl.DataFrame:
    """Return item_id and overview; the first overview of a film counts."""
    frames = []
    for frame in raw.frames(file):
        text = require_column(file.name, frame.columns, "overview", ("overview", "description", "plot"))
        film = find_column(frame.columns, ITEM_ID[:-1])
        tmdb = find_column(frame.columns, ("tmdb_id", "tmdbId", "id"))
        if film is None and tmdb is None:
            raise DataError(
                f"{file} has no film id (looked for movieId, item_id, tmdb_id); name one of its columns so."
            )
        rows = frame.select(clean_id(film or tmdb or "").alias("item_id"), *clean_texts(frame, [text]))
        rows = rows.rename({text: "overview"})
        frames.append(rows if film else _by_tmdb(raw, rows, links))
    return pl.concat(frames).drop_nulls().unique("item_id", keep="first", maintain_order=True)


def _by_tmdb(raw: RawFiles, rows: pl.DataFrame, links: Path) -> pl.DataFrame:
    pairs = []
    for frame in raw.frames(links):
        for column in ("movieId", "tmdbId"):
            require_column(links.name, frame.columns, column, (column,))
        pairs.append(frame.select(clean_id("movieId").alias("film"), clean_id("tmdbId").alias("item_id")))
    joined = rows.join(pl.concat(pairs).drop_nulls(), on="item_id", how="inner", maintain_order="left")
    return joined.select(pl.col("film").alias("item_id"), "overview")
