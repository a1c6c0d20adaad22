from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest
from importing import import_movielens

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


def test_side_rows_without_a_film_and_second_overviews_are_kept_in_the_rejects(
    tmp_path: Path, source: Path
) -> None:
    (source / "tags.csv").write_text(
        "userId,movieId,tag,timestamp\n1,1,fun,1\n1,99,orphan,1\n1,2,NULL,1\n1,,x,1\n"
    )
    (tmp_path / "o.csv").write_text("movieId,overview\n1,First\n1,Second\n1,First\n99,Orphan\n2,\n")
    data = import_movielens(source, tmp_path / "out", tags=True, overviews=tmp_path / "o.csv", max_rejects=1)
    assert data.catalogue()["1"].fields["overview"] == "First"
    assert data.rejects().filter(pl.col("file") != "ratings.csv").collect().sort("file", "row").rows() == [
        ("o.csv", 3, "second overview of the film", "1,Second"),
        ("o.csv", 5, "overview of an unknown film", "99,Orphan"),
        ("tags.csv", 3, "tags of an unknown film", "1,99,orphan,1"),
        ("tags.csv", 5, "no film id", "1,,x,1"),
    ]
    counts = data.info.counts
    assert (counts["repeated_overviews"], counts["empty_overview"], counts["empty_tags"]) == (1, 1, 1)


def test_float_ids_join_and_others_stay_in_the_rejects(tmp_path: Path, source: Path) -> None:
    (source / "links.csv").write_text("movieId,imdbId,tmdbId\n1,0001,501.0\n2,0002,\n")
    (tmp_path / "o.csv").write_text("id,overview\n501,A lamp.\n999.0,Nobody.\n")
    data = import_movielens(source, tmp_path / "out", overviews=tmp_path / "o.csv")
    assert data.catalogue()["1"].fields["overview"] == "A lamp."
    assert data.rejects_by_reason()["o.csv: no film has this tmdb id"] == 1


def test_header_names_are_read_in_any_case(tmp_path: Path, source: Path) -> None:
    for name, content in FILES.items():
        head, _, rest = content.partition("\n")
        (source / name).write_text(f"{head.upper()}\n{rest}")
    (tmp_path / "o.csv").write_text("TMDBID,OVERVIEW\n501,A lamp.\n")
    data = import_movielens(source, tmp_path / "out", tags=True, overviews=tmp_path / "o.csv", min_rating=1)
    texts = {"title": "Lamp, The (1990)", "genres": "Drama|War", "tags": "slow, dark"}
    assert dict(data.catalogue()["1"].fields) == {**texts, "overview": "A lamp."}
    assert [h.item_ids for h in data.histories()] == [("1", "2")]


def test_ratings_are_read_or_refused(tmp_path: Path, source: Path) -> None:
    rows = ['"3,5"', "2 stars", "true", "inf", "NULL", "4.0"]
    text = "".join(f"{user},1,{rating},964982703\n" for user, rating in enumerate(rows))
    (source / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + text)
    data = import_movielens(source, tmp_path / "out", min_rating=4, max_rejects=1)
    assert [h.user_id for h in data.histories()] == ["4", "5"]
    assert data.rejects_by_reason() == {"ratings.csv: rating cannot be read": 3}
    counts = data.info.counts
    assert (counts["ratings_below_threshold"], counts["rows_without_rating"]) == (1, 1)


def test_the_old_packs_are_read(tmp_path: Path) -> None:
    million, hundred = tmp_path / "ml-1m", tmp_path / "ml-100k"
    million.mkdir()
    (million / "movies.dat").write_bytes("1::Amélie: a, b (2001)::Comedy|Romance\n".encode("latin-1"))
    (million / "ratings.dat").write_text("7::1::5::978300760\n7::9::5::978300761\n")
    hundred.mkdir()
    flags = "|".join("1" if n in (5, 14) else "0" for n in range(19))
    (hundred / "u.item").write_bytes(
        f"1|Amélie: a, b (2001)|01-Jan-2001||http://x|{flags}\n".encode("latin-1")
    )
    (hundred / "u.data").write_text("7\t1\t5\t978300760\n7\t9\t5\t978300761\n")
    for source in (million, hundred):
        data = import_movielens(source, tmp_path / f"out-{source.name}")
        texts = {"title": "Amélie: a, b (2001)", "genres": "Comedy|Romance"}
        assert dict(data.catalogue()["1"].fields) == texts
        assert [(h.user_id, h.item_ids) for h in data.histories()] == [("7", ("1",))]
        assert data.info.counts["rejects"] == 1


def test_packed_files_are_found_by_their_usual_names(tmp_path: Path, source: Path) -> None:
    for name in FILES:
        (source / f"{name}.gz").write_bytes(gzip.compress((source / name).read_bytes()))
        (source / name).unlink()
    data = import_movielens(source, tmp_path / "out", tags=True)
    assert [h.item_ids for h in data.histories()] == [("1", "2")]
    assert data.catalogue()["1"].fields["tags"] == "slow, dark"


def test_ratings_all_below_the_threshold_are_reported(tmp_path: Path, source: Path) -> None:
    with pytest.raises(DataError, match=r"No event could be read \(3 ratings below threshold\)"):
        import_movielens(source, tmp_path / "out", min_rating=6)
