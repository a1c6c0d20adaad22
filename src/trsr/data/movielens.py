"""MovieLens as GroupLens packs it (`movies.csv`, `ratings.csv`, and where present `tags.csv`, `links.csv`).

The older packs of 100k, 1M and 10M ratings are read too (`movielens_files`).

The films have little text of their own; overviews can be joined from a file that the user brings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import Field

from trsr.data.columns import ITEM_ID, Sought, find_column, require_column, require_columns
from trsr.data.dataset import Dataset
from trsr.data.import_info import MAX_REJECTS
from trsr.data.ingest import (
    EventCollector,
    ItemCollector,
    at_least,
    check_threshold,
    count_if_any,
    item_rows,
    keep_or_refuse,
    refuse,
    single,
)
from trsr.data.readers import RAW, ROW
from trsr.data.reading import RawFiles, TimeSettings
from trsr.data.values import clean_cell, clean_ids, clean_texts
from trsr.data.writer import DatasetWriter
from trsr.errors import DataError

# By the numbers of their columns in u.item; the same in u.genre.
_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary"),
    *("Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller"),
    *("War", "Western"),
)
_OLD = {
    "movies.dat": ("::", ("movieId", "title", "genres")),
    "ratings.dat": ("::", ("userId", "movieId", "rating", "timestamp")),
    "tags.dat": ("::", ("userId", "movieId", "tag", "timestamp")),
    "u.item": ("|", ("movieId", "title", "released", "video", "url", *_GENRES)),
    "u.data": ("\t", ("userId", "movieId", "rating", "timestamp")),
}
_NAMES = {
    "movies": ("movies.csv", "movies.dat", "u.item"),
    "ratings": ("ratings.csv", "ratings.dat", "u.data"),
    "tags": ("tags.csv", "tags.dat"),
}


def find_file(folder: Path, table: str) -> Path:
    """Return the file of "movies", "ratings" or "tags": of the new kind if it is there, else of an old one.

    It may be there as `.gz`, which reading finds.

    Raises:
        DataError: there is none.
    """
    for name in _NAMES[table]:
        if (folder / name).is_file() or (folder / f"{name}.gz").is_file():
            return folder / name
    first, *others = _NAMES[table]
    raise DataError(f"There is no file {folder / first} (nor {' or '.join(others)}); check the path.")


def read_movielens(raw: RawFiles, file: Path) -> Iterator[pl.DataFrame]:
    """Yield a file of `find_file` as `RawFiles.frames` does, with the column names of the new kind."""
    if file.name not in _OLD:
        yield from raw.frames(file)
        return
    delimiter, columns = _OLD[file.name]
    for frame in raw.frames(file, columns=columns, quotes=False, delimiter=delimiter):
        if file.name != "u.item":
            yield frame
            continue
        flagged = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in _GENRES]
        genres = pl.concat_str(flagged, separator="|", ignore_nulls=True)
        yield frame.select(ROW, RAW, "movieId", "title", genres.alias("genres"))


FILM = Sought("movieId", ("movieId",))
TIME = Sought("time", ("timestamp",))


class MovieLensImport(TimeSettings):
    """Options of `import_movielens` as a configuration carries them."""

    kind: Literal["movielens"] = "movielens"
    source: Path
    name: str = "movielens"
    min_rating: float | None = Field(default=None, allow_inf_nan=False)
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
    check_threshold(min_rating)
    source = Path(source)
    fields = ["title", "genres", *(["tags"] if tags else []), *(["overview"] if overviews else [])]
    with DatasetWriter(out, overwrite=overwrite) as writer:
        raw = RawFiles(writer, delimiter, encoding, max_rejects)
        side: dict[str, tuple[str, pl.DataFrame]] = {}
        if tags:
            file = find_file(source, "tags")
            side["tags"] = (file.name, _read_tags(writer, raw, file))
        if overviews:
            rows = _read_overviews(writer, raw, Path(overviews), source / "links.csv")
            side["overview"] = (Path(overviews).name, rows)
        movies, ratings = find_file(source, "movies"), find_file(source, "ratings")
        items = ItemCollector(writer, movies.name, fields)
        for frame in read_movielens(raw, movies):
            films = _films(writer, movies.name, frame)
            for _, rows in side.values():
                films = films.join(_by_film(rows), on="item_id", how="left", maintain_order="left")
            items.add(item_rows(writer, films, "item_id", fields))
        for what, (file_name, rows) in side.items():
            orphans = rows.join(items.ids, on="item_id", how="anti", maintain_order="left")
            refuse(writer, file_name, orphans, f"{what} of an unknown film")
        events = EventCollector(
            writer, ratings.name, items.ids, time_format=time_format, keep_untimed=keep_untimed
        )
        for frame in read_movielens(raw, ratings):
            events.times.column = find_column(frame.columns, TIME.usual)
            events.add(_ratings(writer, ratings.name, frame, min_rating))
        events.finish()
        return writer.finish(
            name=name,
            domain="movies",
            text_fields=fields,
            category_fields=("genres",),
            source=f"MovieLens: {source.name}"
            + (f", overviews from {Path(overviews).name}" if overviews else ""),
        )


def _films(writer: DatasetWriter, file: str, frame: pl.DataFrame) -> pl.DataFrame:
    """Return `item_id`, `title`, `genres`, `ROW`, `RAW`."""
    film, title, genre = require_columns(
        file, frame.columns, FILM, Sought("film's title", ("title",)), Sought("film's genres", ("genres",))
    )
    genres = pl.when(pl.col(genre).str.strip_chars() != "(no genres listed)").then(genre)
    films = frame.select(
        pl.col(film).alias("item_id"), pl.col(title).alias("title"), genres.alias("genres"), ROW, RAW
    )
    films, n_floats = clean_ids(films, "item_id")
    count_if_any(writer, "ids_written_as_floats", n_floats)
    return films


def _ratings(writer: DatasetWriter, file: str, frame: pl.DataFrame, min_rating: float | None) -> pl.DataFrame:
    sought = [Sought("user id", ("userId",)), FILM, TIME]
    if min_rating is not None:
        sought.append(Sought("rating", ("rating",)))
    user, film, time, *rating = require_columns(file, frame.columns, *sought)
    if min_rating is not None:
        frame = at_least(writer, file, frame, rating[0], min_rating)
    return frame.select(
        pl.col(user).alias("user_id"),
        pl.col(film).alias("item_id"),
        pl.col(time).alias("timestamp"),
        ROW,
        RAW,
    )


def _read_tags(writer: DatasetWriter, raw: RawFiles, file: Path) -> pl.DataFrame:
    """Return the tags, one a row: `item_id`, `tags` in small letters, `ROW`, `RAW`."""
    frames = []
    for frame in read_movielens(raw, file):
        film, tag = require_columns(file.name, frame.columns, FILM, Sought("tag", ("tag",)))
        rows = frame.select(
            pl.col(film).alias("item_id"), clean_cell(tag).str.to_lowercase().alias("tags"), ROW, RAW
        )
        frames.append(_with_film_and_text(writer, file.name, rows, "tags"))
    return pl.concat(frames)


def _by_film(rows: pl.DataFrame) -> pl.DataFrame:
    """Return each film's distinct texts, the most frequent first, and its `item_id`."""
    text = next(column for column in rows.columns if column not in {"item_id", ROW, RAW})
    counted = (
        rows.group_by("item_id", text, maintain_order=True)
        .len()
        .sort("len", descending=True, maintain_order=True)
    )
    return counted.group_by("item_id", maintain_order=True).agg(pl.col(text).str.join(", "))


def _with_film_and_text(writer: DatasetWriter, file: str, rows: pl.DataFrame, text: str) -> pl.DataFrame:
    """Return the rows of a side file that name a film and say something about it."""
    rows, n_floats = clean_ids(single(rows, "item_id"), "item_id")
    count_if_any(writer, "ids_written_as_floats", n_floats)
    rows = keep_or_refuse(writer, file, rows, pl.col("item_id").is_not_null(), "no film id")
    writer.file(file).entries += len(rows)
    count_if_any(writer, f"empty_{text}", int(rows[text].null_count()))
    return rows.filter(pl.col(text).is_not_null())


def _read_overviews(writer: DatasetWriter, raw: RawFiles, file: Path, links: Path) -> pl.DataFrame:
    """Return the overviews, one a film: `item_id`, `overview`, `ROW`, `RAW`; the first of a film counts."""
    frames, known = [], None
    for frame in raw.frames(file):
        text = require_column(file.name, frame.columns, "overview", ("overview", "description", "plot"))
        film = find_column(frame.columns, ITEM_ID[:-1])
        tmdb = find_column(frame.columns, ("tmdb_id", "tmdbId", "id"))
        if film is None and tmdb is None:
            raise DataError(
                f"{file} has no film id (looked for movieId, item_id, tmdb_id; found "
                f"{', '.join(frame.columns[2:])}); name one of its columns so."
            )
        rows = frame.select(
            pl.col(film or tmdb or "").alias("item_id"),
            *(expr.alias("overview") for expr in clean_texts(frame, [text])),
            ROW,
            RAW,
        )
        rows = _with_film_and_text(writer, file.name, rows, "overview")
        if film is None and known is None:
            known = _read_links(raw, links)
        frames.append(rows if known is None else _by_tmdb(writer, file.name, rows, known))
    rows = pl.concat(frames)
    first = rows.unique("item_id", keep="first", maintain_order=True)
    later = rows.join(first.select(ROW, "item_id"), on=[ROW, "item_id"], how="anti", maintain_order="left")
    again = later.join(first.select("item_id", "overview"), on=["item_id", "overview"], how="semi")
    count_if_any(writer, "repeated_overviews", len(again))
    other = later.join(again.select(ROW), on=ROW, how="anti", maintain_order="left")
    refuse(writer, file.name, other, "second overview of the film")
    return first


def _read_links(raw: RawFiles, file: Path) -> pl.DataFrame:
    """Return each pair of a film and its tmdb id: `film`, `item_id`."""
    pairs = []
    for frame in raw.frames(file):
        sought = (FILM, Sought("tmdb id", ("tmdbId", "tmdb_id")))
        film, tmdb = require_columns(file.name, frame.columns, *sought)
        pair = frame.select(pl.col(film).alias("film"), pl.col(tmdb).alias("item_id"))
        pairs.append(clean_ids(pair, "film", "item_id")[0])
    return pl.concat(pairs).drop_nulls().unique(maintain_order=True)


def _by_tmdb(writer: DatasetWriter, file: str, rows: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    lost = rows.join(known, on="item_id", how="anti", maintain_order="left")
    refuse(writer, file, lost, "no film has this tmdb id")
    joined = rows.join(known, on="item_id", how="inner", maintain_order="left")
    return joined.select(pl.col("film").alias("item_id"), "overview", ROW, RAW)
