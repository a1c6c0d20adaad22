"""The files of a MovieLens pack, new (`movies.csv`) or old, as frames with the columns of the new ones.

The pack of 100k ratings has `u.item` (with a column a genre) and `u.data`, those of 1M and 10M have
`movies.dat`, `ratings.dat` and `tags.dat`, divided by `::`. None of these has a header or quotes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from trsr.data.readers import RAW, ROW
from trsr.data.reading import RawFiles
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
