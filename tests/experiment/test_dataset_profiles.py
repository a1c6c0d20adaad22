"""Profiles of a dataset's users: all, some or one, with a store that makes the second run free."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from helpers import full_disk

from trsr.data.dataset import write_dataset
from trsr.errors import ConfigError, DataError, OutputError
from trsr.experiment.dataset_profiles import describe_plan, settings, summarize_dataset
from trsr.llm.engines import OpenAIEngine
from trsr.summarize.summarizer import save_profiles

TITLES = ["Red lamp", "Blue lamp", "Oak table", "Pine table", "", "Wool carpet", "Silk carpet"]
USERS = {"ann": [0, 1, 2, 3, 4, 5], "bob": [6, 5], "cid": [4]}  # item 4 has no text
FAKE = settings("recurrent", "fake", None, None, block_size=2)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    events = [(user, f"i{item}", place) for user, items in USERS.items() for place, item in enumerate(items)]
    write_dataset(
        tmp_path / "data",
        name="rooms",
        domain="products",
        text_fields=["category", "title"],
        category_fields=["category"],
        items=pl.DataFrame(
            {
                "item_id": [f"i{number}" for number in range(len(TITLES))],
                "category": [title.split()[-1] if title else None for title in TITLES],
                "title": [title or None for title in TITLES],
            },
            schema_overrides={"category": pl.String, "title": pl.String},
        ),
        events=pl.DataFrame(events, schema=["user_id", "item_id", "position"], orient="row").with_columns(
            timestamp=pl.lit(None, pl.Datetime("us", "UTC"))
        ),
        source="made by a test",
    )
    return tmp_path / "data"


def test_every_user_with_text_gets_a_profile(data: Path) -> None:
    made = summarize_dataset(data, FAKE, None, None, None)
    assert [(p.user_id, p.n_items) for p in made.written.profiles] == [("ann", 5), ("bob", 2)]
    assert all(p.text.startswith("This shopper buys") for p in made.written.profiles)
    table = pl.read_parquet(data / "profiles.parquet")
    assert table["user_id"].to_list() == table["example_id"].to_list() == ["ann", "bob"]
    assert table["text"].to_list() == [p.text for p in made.written.profiles]
    assert [len(texts) for texts in table["texts"]] == [3, 1]
    assert table["key"].null_count() == 0


def test_a_second_run_makes_no_call_and_says_so(data: Path, tmp_path: Path) -> None:
    store = tmp_path / "elsewhere" / "s.sqlite"
    first = summarize_dataset(data, FAKE, store, None, None).written.facts()
    second = summarize_dataset(data, FAKE, store, None, None).written.facts()
    assert (first["calls"], first["calls_made"], first["calls_from_store"]) == (4, 4, 0)
    assert (second["calls"], second["calls_made"], second["calls_from_store"]) == (4, 0, 4)
    assert second["generated_tokens"] == 0
    assert (store.parent / "profiles.parquet").is_file()
    assert not (data / "profiles.parquet").exists()


def test_one_user_does_not_replace_the_profiles_of_all(data: Path) -> None:
    summarize_dataset(data, FAKE, None, None, None)
    made = summarize_dataset(data, FAKE, None, None, "bob")
    assert [p.user_id for p in made.written.profiles] == ["bob"]
    assert len(pl.read_parquet(data / "profiles.parquet")) == 2


@pytest.mark.parametrize("user", ["nobody", "cid"])
def test_a_user_without_text_is_refused(data: Path, user: str) -> None:
    with pytest.raises(DataError, match=f"no user '{user}' with items that have text; check the id"):
        summarize_dataset(data, FAKE, None, None, user)


@pytest.mark.parametrize("method", ["none", "counted"])
def test_methods_without_a_model_make_no_call(data: Path, method: str) -> None:
    made = summarize_dataset(data, settings(method, "fake", None, None, 2), None, None, None).written
    assert made.facts()["calls"] == 0
    assert bool(made.profiles[0].text) == (method == "counted")
    table = pl.read_parquet(data / "profiles.parquet")
    assert table["key"].to_list() == [None, None]
    assert table["texts"].to_list() == [[], []]


def test_a_fold_is_described_with_its_blocks_and_what_each_summary_changed(data: Path) -> None:
    made = summarize_dataset(data, FAKE, None, None, "ann")
    (plan,), (profile,) = made.written.plans, made.written.profiles
    lines = describe_plan(plan, made.summarizer, profile.text).splitlines()
    assert lines[0] == "User ann: 5 items in 3 blocks"
    assert "Block 3 (open)" in lines
    assert "Block 2" in lines
    assert "  - Category: lamp; Title: Red lamp" in lines
    assert "Summary 1 (first)" in lines
    assert "Summary 3 (update of 2)" in lines
    assert sum(line.startswith("  added: ") for line in lines) == 2
    assert lines[-1] == f"  {profile.text}"


def test_a_merge_is_described_with_what_it_read(data: Path) -> None:
    made = summarize_dataset(data, settings("hierarchical", "fake", None, None, 2), None, None, "ann")
    text = describe_plan(made.written.plans[0], made.summarizer, made.written.profiles[0].text)
    assert "Summary 4 (merge of 1, 2, 3)" in text


def test_all_wrong_options_are_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        settings("magic", "fake", "a-model", None, 0)
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "summary.method: found 'magic'" in text
    assert "block_size: found 0" in text
    assert "engine.fake.model: there is no such setting" in text


def test_a_full_disk_keeps_the_texts_and_the_older_profiles(data: Path) -> None:
    written = summarize_dataset(data, FAKE, None, None, None).written
    before = (data / "profiles.parquet").read_bytes()
    with (
        full_disk(100),
        pytest.raises(OutputError, match=r"profiles\.parquet cannot be written .*free space"),
    ):
        save_profiles(data / "profiles.parquet", ["ann", "bob"], written)
    assert (data / "profiles.parquet").read_bytes() == before
    assert summarize_dataset(data, FAKE, None, None, None).written.facts()["calls_made"] == 0


def test_a_grounded_profile_has_room_for_its_phrases() -> None:
    grounded, free = (settings("recurrent", "fake", None, None, 2, on).summary for on in (True, False))
    assert (grounded.grounded, free.grounded) == (True, False)
    assert grounded.max_new_tokens >= 8 * grounded.n_phrases > free.max_new_tokens


@pytest.mark.parametrize("engine", ["llamacpp", "openai", "transformers", "fake"])
def test_an_engine_works_on_as_many_prompts_as_asked(engine: str) -> None:
    model, url = ("m", "http://127.0.0.1:1/v1") if engine == "openai" else (None, None)
    chosen = settings("recurrent", engine, model, url, 5, in_flight=3).engine.model_dump()
    names = {"llamacpp": "n_parallel", "openai": "concurrency", "transformers": "max_rows"}
    assert chosen.get(names.get(engine, "")) == (None if engine == "fake" else 3)


def test_a_server_is_told_phrases_in_the_way_that_is_named() -> None:
    server = ("recurrent", "openai", "m", "http://127.0.0.1:1/v1", 5, True)
    with pytest.raises(ConfigError, match=r"^engine\.grammar: is missing"):
        settings(*server)
    chosen = settings(*server, grammar="sglang").engine
    assert isinstance(chosen, OpenAIEngine)
    assert chosen.grammar == "sglang"
