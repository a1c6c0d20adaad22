"""The public names: ten lines from tables to recommendations, on files and on frames."""

from __future__ import annotations

import dataclasses
import filecmp
import itertools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from pydantic import ValidationError

import trsr
from trsr.data.synthetic import SyntheticConfig, generate
from trsr.errors import ConfigError, DataError, LeakageError, RunMismatchError
from trsr.experiment.config import RunConfig, load_config
from trsr.experiment.experiment import Experiment
from trsr.experiment.run_folder import RunFolder
from trsr.experiment.stages import run_stages
from trsr.recommend.ranker import ExampleScores, without_llm
from trsr.testing.contracts import RankerContract

SETTINGS: dict[str, Any] = {
    "prompt": {"n_recent": 2, "max_field_tokens": 8},
    "batch_size": 4,
    "evaluations": 1,
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the same shop as CSV files and as frames of every kind."""
    folder = tmp_path_factory.mktemp("shop")
    shop = generate(SyntheticConfig(n_users=30, n_items=200, n_impression_candidates=0), folder / "shop")
    items, events = shop.items().collect(), shop.events().drop("position").collect()
    items.write_csv(folder / "items.csv")
    events.write_csv(folder / "events.csv")

    class HubDataset:
        def __init__(self, frame: pl.DataFrame) -> None:
            self.to_polars = lambda: frame

    return {
        "csv": (folder / "items.csv", folder / "events.csv"),
        "folder": (folder, None),
        "polars": (items, events),
        "lazy": (items.lazy(), events.lazy()),
        "pandas": (items.to_pandas(), events.to_pandas()),
        "arrow": (items.to_arrow(), events.to_arrow()),
        "hub": (HubDataset(items), HubDataset(events)),
    }


@pytest.fixture
def data(tables: dict[str, Any], tmp_path: Path) -> trsr.Dataset:
    return trsr.Dataset.from_tables(*tables["polars"], out=tmp_path / "data")


def summarizer(**settings: Any) -> trsr.Summarizer:
    return trsr.Summarizer("recurrent", engine="fake", **settings)


def test_the_public_names_are_these_and_each_can_be_imported() -> None:
    assert trsr.__all__ == sorted(trsr.__all__)
    assert trsr.__all__ == [
        "BM25",
        "Dataset",
        "Popularity",
        "Profile",
        "RankedItem",
        "RankingExample",
        "Recency",
        "Recommender",
        "Summarizer",
        "__version__",
        "evaluate",
        "fine_tune",
        "open_run",
        "split",
    ]
    assert all(getattr(trsr, name) for name in trsr.__all__)
    assert dir(trsr) == trsr.__all__
    with pytest.raises(AttributeError, match="no attribute 'Recomender'"):
        _ = trsr.Recomender


def test_importing_trsr_imports_nothing_heavy() -> None:
    code = "import sys, trsr; print({'torch', 'polars', 'numpy', 'pydantic'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"set()\n"


@pytest.mark.parametrize("kind", ["csv", "folder", "lazy", "pandas", "arrow", "hub"])
def test_from_tables_gives_the_same_dataset_for_every_kind_of_table(
    kind: str, tables: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRSR_CACHE", str(tmp_path))
    expected = trsr.Dataset.from_tables(*tables["polars"])
    found = trsr.Dataset.from_tables(*tables[kind])
    assert found.path == expected.path  # it carries a digest of the content
    assert found.path.is_relative_to(tmp_path)
    assert found.items().collect().equals(tables["polars"][0])
    assert [path.name for path in (tmp_path / "datasets").iterdir()] == [found.path.name]


def test_from_tables_refuses_what_is_no_table(tables: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Found a table of the type list; give a file, or a pandas"):
        trsr.Dataset.from_tables([1, 2], tables["polars"][1])
    with pytest.raises(DataError, match=r"has 0 files items\.\*, expected one"):
        trsr.Dataset.from_tables(tmp_path)


def test_history_of_an_unknown_user_names_similar_ones(data: trsr.Dataset) -> None:
    with pytest.raises(DataError, match="no user 'u0000002'; did you mean 'u000000"):
        data.history("u0000002")


@pytest.mark.parametrize("kind", ["csv", "pandas", "polars"])
def test_ten_lines_lead_from_tables_to_recommendations(
    kind: str, tables: dict[str, Any], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRSR_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "my-model"
    data = trsr.Dataset.from_tables(*tables[kind])
    profiles = summarizer().summarize(data)
    split = trsr.split(data, protocol="sampled", seed=0)
    trained = trsr.fine_tune(str(tiny_model), split.train, profiles, out=out, valid=split.valid, **SETTINGS)
    model = trsr.Recommender.from_pretrained(out)

    example = split.test[0]
    user, history = example.user_id, example.history
    ranked = model.rank(history=history, profile=profiles[user], candidates=example.candidates)
    assert sorted(item.item_id for item in ranked) == sorted(example.candidates)
    assert [item.rank for item in ranked] == list(range(1, len(ranked) + 1))
    assert all(a.margin >= b.margin and 0 <= b.score <= 1 for a, b in itertools.pairwise(ranked))
    assert ranked[0].title == data.catalogue()[ranked[0].item_id].fields["title"]

    best = model.recommend(user, top_n=5)
    assert len(best) == 5
    assert not {item.item_id for item in best} & set(data.history(user).item_ids)

    found = trsr.evaluate([model, trsr.Popularity(data), trsr.BM25(data)], split.test)
    frame = found.to_frame()
    assert frame["ranker"].to_list() == ["my-model", "popularity", "bm25"]
    assert frame["auc"].is_between(0, 1).all()
    low, value, high = (found.intervals()[name] for name in ("low", "value", "high"))
    assert ((low <= value) & (value <= high)).all()
    again = trsr.evaluate([trained], split.test).scores
    assert again["margin"].to_list() == found.scores.filter(ranker="my-model")["margin"].to_list()


def test_profiles_shown_for_an_example_have_not_seen_its_target(data: trsr.Dataset) -> None:
    profiles = summarizer().summarize(data)
    split = trsr.split(data)
    before = profiles.before(split.test)
    for example in split.test:
        whole = data.history(example.user_id).item_ids
        assert example.history == whole[: len(whole) - 1][-len(example.history) :]
        own = summarizer().write(
            data, [dataclasses.replace(data.history("u00000000"), item_ids=example.history)]
        )
        assert before[example.example_id] == own.profiles[0].text
        assert before[example.example_id] != profiles[example.user_id].text


def test_fine_tune_refuses_a_profile_that_has_seen_the_target(
    data: trsr.Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    profiles, split = dict(summarizer().summarize(data)), trsr.split(data)
    with pytest.raises(LeakageError, match=r"has read \d+ items; the target is item"):
        trsr.fine_tune(str(tiny_model), split.train, profiles, out=tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_leakage_is_counted_in_the_items_that_a_profile_can_read(tiny_model: Path, tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(40)], "title": ["", "", *["lamp"] * 38]})
    rows = [(f"u{u}", f"i{i}", n) for u in range(12) for n, i in enumerate([0, 1, *range(2 + u, 14 + u)])]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    data = trsr.Dataset.from_tables(items, events, out=tmp_path / "data", time_format="epoch-s")
    split = trsr.split(data)
    whole = dict(summarizer().summarize(data))
    assert {profile.n_items for profile in whole.values()} == {12}  # of 14, two of which have no text
    with pytest.raises(LeakageError, match="has read 12 items; the target is item 12"):
        trsr.fine_tune(str(tiny_model), split.train, whole, out=tmp_path / "model")
    with pytest.raises(DataError, match=r"no profile of the user 'u\d+'"):
        trsr.fine_tune(str(tiny_model), split.train, {}, out=tmp_path / "model")


def test_fine_tune_takes_profiles_of_the_history_before_the_target(
    data: trsr.Dataset, tiny_model: Path, tmp_path: Path
) -> None:
    split = trsr.split(data, n_train=4)
    profiles = {e.user_id: trsr.Profile(e.user_id, "Likes tea.", "counted", 1) for e in split.train}
    model = trsr.fine_tune(str(tiny_model), split.train, profiles, out=tmp_path / "model", **SETTINGS)
    assert model.summarizer is None  # nothing says how to write profiles of other users
    assert model.rank(history=split.test[0].history, candidates=split.test[0].candidates)
    model.save_pretrained(tmp_path / "copy")
    assert filecmp.cmp(tmp_path / "model" / "trsr.json", tmp_path / "copy" / "trsr.json", shallow=False)
    with pytest.raises(DataError, match="exists"):
        model.save_pretrained(tmp_path / "copy")


def test_a_repeated_summary_makes_no_calls(data: trsr.Dataset, tmp_path: Path) -> None:
    log = tmp_path / "calls.jsonl"
    texts = []
    for _ in range(2):
        profiles = summarizer().summarize(data)
        texts.append({user: profile.text for user, profile in profiles.items()})
        n_calls = trsr.Summarizer("recurrent", engine={"kind": "fake", "log": str(log)}).summarize(data)
        assert len(n_calls) == len(profiles)
    assert texts[0] == texts[1]
    assert not log.exists()  # the first summarizer has made every call
    assert profiles.to_frame().columns == ["user_id", "text", "n_items"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: trsr.Summarizer("recurrent", grounding=True), "grounding"),
        (lambda: trsr.Summarizer("recurrent", engine="vllm"), "vllm"),
        (lambda: trsr.Summarizer("recurrent", block_size=0), "segmentation.count.block_size: found 0"),
    ],
)
def test_a_wrong_setting_is_named(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def test_a_wrong_setting_of_split_and_fine_tune_is_named(data: trsr.Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="n_tests"):
        trsr.split(data, n_tests=3)
    with pytest.raises(ConfigError, match="protocol"):
        trsr.split(data, "random")
    with pytest.raises(ConfigError, match="epoch: "):
        trsr.fine_tune("any", trsr.split(data).train, out=tmp_path / "m", epoch=2)


class Shortest:
    """A ranker of one's own."""

    name = "shortest"
    probabilistic = False

    def __init__(self, data: trsr.Dataset) -> None:
        self.titles = {item_id: item.fields["title"] for item_id, item in data.catalogue().items()}

    def rank(self, examples: Sequence[trsr.RankingExample]) -> Iterator[ExampleScores]:
        for example in examples:
            yield without_llm(example, [-len(self.titles[item]) for item in example.candidates])


def test_evaluate_takes_rankers_of_ones_own(data: trsr.Dataset) -> None:
    split = trsr.split(data)
    own = Shortest(data)
    frame = trsr.evaluate([own, trsr.Recency(data)], split.test, ks=(1,)).to_frame()
    assert frame["ranker"].to_list() == ["shortest", "recency"]
    assert {"recall@1", "mrr@1", "auc"} <= set(frame.columns)
    with pytest.raises(ConfigError, match="Two rankers are called 'shortest'"):
        trsr.evaluate([own, own], split.test)

    assert len(trsr.evaluate([own], split.test[:2]).scores["example_id"].unique()) == 2
    with pytest.raises(DataError, match=r"plain list of examples, .* give `split.train`"):
        trsr.evaluate([own], list(split.test))

    class Lazy(Shortest):
        def rank(self, examples: Sequence[trsr.RankingExample]) -> Iterator[ExampleScores]:
            return super().rank(examples[1:])

    with pytest.raises(DataError, match="shortest gave 0 margins for the example"):
        trsr.evaluate([Lazy(data)], split.test)


def test_popularity_learns_only_what_the_split_allows(data: trsr.Dataset) -> None:
    split = trsr.split(data)
    popularity = trsr.Popularity(data)
    with pytest.raises(DataError, match="call `fit` with a split first"):
        list(popularity.rank(split.test))
    trsr.evaluate([popularity], split.test)
    held_out = {
        (e.user_id, i) for e in split.test for i, label in zip(e.candidates, e.labels, strict=True) if label
    }
    learned = set(split.training_events.select("user_id", "item_id").iter_rows())
    assert held_out
    assert not held_out & learned


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_open_run_recommends_and_reads_everything_of_a_run(run_copy: Path) -> None:
    before = contents(run_copy)
    run = trsr.open_run(run_copy)
    user = run.scores["user_id"][0]
    assert contents(run_copy) == before  # opening and reading write nothing
    best = run.recommend(user, top_n=3)
    assert [item.rank for item in best] == [1, 2, 3]
    assert set(run.metrics["rankers"]) == set(run.config.rankers)
    assert "text" in run.profile_table.columns
    with pytest.raises(RunMismatchError, match="is not a run folder; make one with `trsr run`"):
        trsr.open_run(run_copy / "model")


def test_a_run_scores_as_its_recommender_does(finished_run: Path) -> None:
    run = trsr.open_run(finished_run)
    rows = run.scores.filter(ranker="llm")
    example_id = rows["example_id"][0]
    rows = rows.filter(example_id=example_id)
    (example,) = [e for e in run.splits.test if e.example_id == example_id]
    profile = run.profiles[example_id]
    ranked = run.recommender.rank(history=example.history, profile=profile, candidates=example.candidates)
    by_item = {item.item_id: item.margin for item in ranked}
    assert [by_item[item] for item in rows["item_id"]] == pytest.approx(rows["margin"].to_list(), abs=1e-4)


class Baseline(RankerContract):
    make: Any

    @pytest.fixture
    def examples(self, data: trsr.Dataset) -> Sequence[trsr.RankingExample]:
        return trsr.split(data).test

    @pytest.fixture
    def ranker(self, data: trsr.Dataset) -> Any:
        made = type(self).make(data)
        if hasattr(made, "fit"):
            made.fit(trsr.split(data))
        return made


class TestPopularity(Baseline):
    make = trsr.Popularity


class TestRecency(Baseline):
    make = trsr.Recency


class TestBM25(Baseline):
    make = trsr.BM25


class TestShortest(Baseline):
    make = Shortest


def test_a_configuration_names_a_ranker_by_its_import_path(run_copy: Path) -> None:
    folder = run_copy
    config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    config["rankers"] = ["random", "llm", "test_api.Shortest"]
    opened = RunFolder(folder, RunConfig.model_validate(config), "trsr run")
    run_stages(Experiment(opened))
    run = trsr.open_run(folder)
    assert set(run.metrics["rankers"]) == {"random", "llm", "test_api.Shortest"}
    rows = run.scores.filter(ranker="test_api.Shortest")
    titles = {item_id: len(item.fields["title"]) for item_id, item in run.dataset.catalogue().items()}
    assert rows["margin"].to_list() == [-titles[item] for item in rows["item_id"]]


class Unnamed:
    def __init__(self, data: trsr.Dataset) -> None:
        del data

    def rank(self, examples: Sequence[trsr.RankingExample]) -> Iterator[ExampleScores]:
        raise NotImplementedError


class Needy(Shortest):
    def __init__(self, data: trsr.Dataset, half_life: float) -> None:
        super().__init__(data)
        self.half_life = half_life


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_package.Ranker", "cannot be imported"),
        ("test_api.Missing", "cannot be imported"),
        ("test_api.Unnamed", "lacks `name`"),
        ("test_api.Needy", "cannot be made with a dataset as its only argument: .*half_life"),
    ],
)
def test_a_wrong_ranker_of_ones_own_is_refused_before_summaries_are_written(
    path: str, message: str, run_copy: Path
) -> None:
    for name in ("stages.json", "summaries.sqlite", "profiles.parquet"):
        (run_copy / name).unlink()
    config = yaml.safe_load((run_copy / "config.yaml").read_text("utf-8"))
    (run_copy / "config.yaml").write_text(yaml.safe_dump({**config, "rankers": ["random", path]}), "utf-8")
    experiment = Experiment(RunFolder(run_copy, load_config(run_copy / "config.yaml"), "trsr run"))
    with pytest.raises(ConfigError, match=f"rankers: {path} {message}"):
        run_stages(experiment)
    assert not (run_copy / "summaries.sqlite").exists()


def test_an_unknown_ranker_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValidationError, match=r"mypackage.MyRanker; did you mean bm25\?"):
        RunConfig.model_validate({"name": "x", "data": {"kind": "synthetic"}, "rankers": ["bm52"]})
