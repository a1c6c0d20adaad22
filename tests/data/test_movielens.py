from __future__ import annotations

from pathlib import Path

import pytest

from trsr.data.movielens import import_movielens
from trsr.errors import DataError

FILES = {
    "movies.csv": 'movieId,title,genres\n1,"Lamp, The (1990)",Drama|War\n2,Rain (1991),(no genres listed)\n',
    "ratings.csv": (
        "userId,movieId,rating,timestamp\n7,2,4.5,964982200\n7,1,2.0,964982100\n7,9,5.0,964982300\n"
    ),
    "tags.csv": "userId,movieId,tag,timestamp\n7,1,dark,1\n7,1,Slow,1\n8,1,slow,1\n",
    "links.csv": "movieId,imdbId,tmdbId\n1,0001,501\n2,0002,\n",
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "ml"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_text(content)
    return folder


def test_films_and_ratings_are_read_in_the_order_of_time(tmp_path: Path, source: Path) -> None:
    data = import_movielens(source, tmp_path / "out")
    assert [(h.user_id, h.item_ids) for h in data.histories()] == [("7", ("1", "2"))]
    assert dict(data.catalogue()["1"].fields) == {"title": "Lamp, The (1990)", "genres": "Drama|War"}
    assert dict(data.catalogue()["2"].fields) == {"title": "Rain (1991)"}
    assert data.rejects().collect().rows() == [("ratings.csv", 4, "unknown item", "7,9,5.0,964982300")]


def test_lower_ratings_are_left_out_and_counted(tmp_path: Path, source: Path) -> None:
    data = import_movielens(source, tmp_path / "out", min_rating=4)
    assert [h.item_ids for h in data.histories()] == [("2",)]
    assert data.info.counts["ratings_below_threshold"] == 1


def test_tags_are_joined_the_most_frequent_first(tmp_path: Path, source: Path) -> None:
    data = import_movielens(source, tmp_path / "out", tags=True)
    assert data.catalogue()["1"].fields["tags"] == "slow, dark"


@pytest.mark.parametrize(
    "content", ["tmdb_id,overview\n501,A lamp.\n999,Nobody.\n", "movieId,overview\n1,A lamp.\n2,\n"]
)
def test_overviews_are_joined_by_either_id(tmp_path: Path, source: Path, content: str) -> None:
    (tmp_path / "o.csv").write_text(content)
    data = import_movielens(source, tmp_path / "out", overviews=tmp_path / "o.csv")
    assert data.catalogue()["1"].fields["overview"] == "A lamp."
    assert "overview" not in data.catalogue()["2"].fields


def test_a_missing_column_is_one_sentence(tmp_path: Path, source: Path) -> None:
    (tmp_path / "o.csv").write_text("name,overview\nx,A lamp.\n")
    with pytest.raises(DataError, match="no film id"):
        import_movielens(source, tmp_path / "out", overviews=tmp_path / "o.csv")
    (source / "ratings.csv").write_text("userId,rating,timestamp\n7,4.5,200\n")
    with pytest.raises(DataError, match=r"ratings.csv has no column for the movieId"):
        import_movielens(source, tmp_path / "out")
