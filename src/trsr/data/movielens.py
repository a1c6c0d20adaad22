"""MovieLens as GroupLens packs it: `movies.csv`, `ratings.csv`, and where present `tags.csv` and `links.csv`.

The older packs of 100k, 1M and 10M ratings are read too. The films have little text of their own; overviews
can be joined from a file that the user brings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import Field

from trsr.data.columns import ITEM_ID, Sought, find_column, require_columns
from trsr.data.ingest import EventCollector, ItemCollector, single
from trsr.data.raw_file import RatedOptions, RawFile, option
from trsr.data.text_lines import RAW, ROW
from trsr.data.values import clean_cell, clean_ids, clean_texts
from trsr.data.writer import DatasetWriter
from trsr.errors import DataError

# By the numbers of their columns in u.item.
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
_FILM = Sought("movieId", ("movieId",))
_RATINGS = (
    Sought("user id", ("userId",)),
    _FILM,
    Sought("time", ("timestamp",)),
    Sought("rating", ("rating",)),
)
_TITLE, _FILM_GENRES = Sought("film's title", ("title",)), Sought("film's genres", ("genres",))


class MovieLensImport(RatedOptions):
    """Import MovieLens: movies.csv and ratings.csv, with overviews joined from another file.

    Example: trsr import movielens ml-latest-small --overviews overviews.csv --out data/movies
    """

    kind: Literal["movielens"] = "movielens"
    source: Path = Field(description="Folder that holds the raw files.")
    name: str = option("Name in reports.", "movielens")
    tags: bool = option("Add the films' tags as a text field; they may reveal the future.", False)
    overviews: Path | None = option("File with overviews by movieId, item_id or tmdb_id (see links.csv).")

    def read(self, writer: DatasetWriter) -> Path:
        """Read the side files, the films and the ratings."""
        fields = [
            "title",
            "genres",
            *(["tags"] if self.tags else []),
            *(["overview"] if self.overviews else []),
        ]
        side: dict[str, tuple[RawFile, pl.DataFrame]] = {}
        if self.tags:
            tags = self._file(writer, "tags.csv", "tags.dat")
            side["tags"] = (tags, _read_tags(tags))
        if self.overviews:
            links = RawFile(writer, self.source / "links.csv", self)
            overviews = RawFile(writer, self.overviews, self)
            side["overview"] = (overviews, _read_overviews(overviews, links))
        movies = self._file(writer, "movies.csv", "movies.dat", "u.item")
        ratings = self._file(writer, "ratings.csv", "ratings.dat", "u.data")
        items = ItemCollector(movies, fields)
        for frame in _frames(movies):
            films = _films(movies, frame)
            for field, (_, rows) in side.items():
                films = films.join(_by_film(rows, field), on="item_id", how="left", maintain_order="left")
            items.add(films)
        for field, (file, rows) in side.items():
            orphans = rows.join(items.ids, on="item_id", how="anti", maintain_order="left")
            file.refuse(orphans, f"{field} of an unknown film")
        events = EventCollector(ratings, items.ids)
        for frame in _frames(ratings):
            events.add_rated(frame, _RATINGS)
        events.finish()
        return writer.finish(
            name=self.name,
            domain="movies",
            text_fields=fields,
            category_fields=("genres",),
            source=f"MovieLens: {self.source.name}"
            + (f", overviews from {self.overviews.name}" if self.overviews else ""),
        )

    def _file(self, writer: DatasetWriter, *names: str) -> RawFile:
        """Return the first of these files that is there, plain or as `.gz`."""
        for name in names:
            if (self.source / name).is_file() or (self.source / f"{name}.gz").is_file():
                return RawFile(writer, self.source / name, self)
        raise DataError(
            f"There is no file {self.source / names[0]} (nor {' or '.join(names[1:])}); check the path."
        )


def _frames(file: RawFile) -> Iterator[pl.DataFrame]:
    """Yield a file's rows; old packs get the column names of the new ones."""
    if file.name not in _OLD:
        yield from file.frames()
        return
    delimiter, columns = _OLD[file.name]
    for frame in file.frames(columns=columns, quotes=False, delimiter=delimiter):
        if file.name != "u.item":
            yield frame
            continue
        flagged = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in _GENRES]
        genres = pl.concat_str(flagged, separator="|", ignore_nulls=True)
        yield frame.select(ROW, RAW, "movieId", "title", genres.alias("genres"))


def _films(file: RawFile, frame: pl.DataFrame) -> pl.DataFrame:
    """Return `item_id`, `title`, `genres`, `ROW`, `RAW`."""
    film, title, genre = require_columns(file.name, frame.columns, _FILM, _TITLE, _FILM_GENRES)
    genres = pl.when(pl.col(genre).str.strip_chars() != "(no genres listed)").then(genre)
    return file.clean_ids(frame.select(ROW, RAW, item_id=film, title=title, genres=genres), "item_id")


def _read_tags(file: RawFile) -> pl.DataFrame:
    """Return the tags, one per row: `item_id`, `tags` in lower case, `ROW`, `RAW`."""
    frames = []
    for frame in _frames(file):
        film, tag = require_columns(file.name, frame.columns, _FILM, Sought("tag", ("tag",)))
        tags = clean_cell(tag).str.to_lowercase()
        frames.append(_with_film_and_text(file, frame.select(ROW, RAW, item_id=film, tags=tags), "tags"))
    return pl.concat(frames)


def _with_film_and_text(file: RawFile, rows: pl.DataFrame, text: str) -> pl.DataFrame:
    """Return the rows of a side file that have a film id and a text."""
    rows = file.clean_ids(single(rows, "item_id"), "item_id")
    rows = file.keep(rows, pl.col("item_id").is_not_null(), "no film id")
    file.info.entries += len(rows)
    file.count(f"empty_{text}", rows[text].null_count())
    return rows.filter(pl.col(text).is_not_null())


def _by_film(rows: pl.DataFrame, text: str) -> pl.DataFrame:
    """Return each film's distinct texts, the most frequent first, and its `item_id`."""
    counted = rows.group_by("item_id", text, maintain_order=True).len()
    counted = counted.sort("len", descending=True, maintain_order=True)
    return counted.group_by("item_id", maintain_order=True).agg(pl.col(text).str.join(", "))


def _read_overviews(file: RawFile, links: RawFile) -> pl.DataFrame:
    """Return the overviews, one per film: `item_id`, `overview`, `ROW`, `RAW`; the first of a film counts."""
    sought = Sought("overview", ("overview", "description", "plot"))
    frames, known = [], None
    for frame in file.frames():
        (text,) = require_columns(file.name, frame.columns, sought)
        film = find_column(frame.columns, ITEM_ID[:-1])
        tmdb = find_column(frame.columns, ("tmdb_id", "tmdbId", "id"))
        if film is None and tmdb is None:
            raise DataError(
                f"{file.path} has no film id (looked for movieId, item_id, tmdb_id; found "
                f"{', '.join(frame.columns[2:])}); name one of its columns so."
            )
        (overview,) = clean_texts(frame, [text])
        rows = frame.select(ROW, RAW, item_id=film or tmdb, overview=overview)
        rows = _with_film_and_text(file, rows, "overview")
        if film is None:
            known = _read_links(links) if known is None else known
            lost = rows.join(known, on="item_id", how="anti", maintain_order="left")
            file.refuse(lost, "no film has this tmdb id")
            rows = rows.join(known, on="item_id", how="inner", maintain_order="left")
            rows = rows.select(ROW, RAW, item_id="film", overview="overview")
        frames.append(rows)
    rows = pl.concat(frames)
    first = rows.unique("item_id", keep="first", maintain_order=True)
    later = rows.join(first.select(ROW, "item_id"), on=[ROW, "item_id"], how="anti", maintain_order="left")
    again = later.join(first.select("item_id", "overview"), on=["item_id", "overview"], how="semi")
    file.count("repeated_overviews", len(again))
    other = later.join(again.select(ROW), on=ROW, how="anti", maintain_order="left")
    file.refuse(other, "second overview of the film")
    return first


def _read_links(file: RawFile) -> pl.DataFrame:
    """Return each pair of a film and its tmdb id: `film`, `item_id`."""
    sought = (_FILM, Sought("tmdb id", ("tmdbId", "tmdb_id")))
    pairs = []
    for frame in file.frames():
        film, tmdb = require_columns(file.name, frame.columns, *sought)
        pairs.append(clean_ids(frame.select(film=film, item_id=tmdb), "film", "item_id")[0])
    return pl.concat(pairs).drop_nulls().unique(maintain_order=True)
