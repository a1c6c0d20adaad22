"""An experiment with several seeds: ordinary run folders below one result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_run

from trsr.errors import RunMismatchError
from trsr.experiment import seeds as pipeline_seeds
from trsr.experiment import stages
from trsr.experiment.config import RunConfig
from trsr.experiment.experiment import Experiment
from trsr.experiment.run_folder import RunFolder
from trsr.experiment.seeds import run_seeds

RUN = {"train": None, "rankers": ["random", "popularity", "bm25"]}


def run(out: Path, n: int = 2, first: int = 7, **changes: object) -> list[str]:
    """Run seeds without a language model for ranking; return the notifications."""
    said: list[str] = []

    def open_experiment(seed: int, folder: Path) -> Experiment:
        config = RunConfig.model_validate(tiny_run(Path("smollm2-135m"), **(RUN | changes)) | {"seed": seed})
        return Experiment(RunFolder(folder, config, f"trsr run tiny.yaml --out {out.name} --seeds {n}"))

    run_seeds(out, open_experiment, range(first, first + n), said.append)
    return said


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("seeds") / "out"
    run(out)
    return out


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_each_seed_is_a_whole_run_below_the_pool(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {"metrics.json", "report.html", "seed7", "seed8"}
    for name in ("config.yaml", "scores.parquet", "metrics.json", "report.html"):
        assert (finished / "seed8" / name).exists()


def test_the_pool_holds_the_mean_and_the_spread_of_the_seeds(finished: Path) -> None:
    pooled = json.loads((finished / "metrics.json").read_text())
    assert pooled["seeds"] == [7, 8]
    assert pooled["protocol"]["seeds"] == "7, 8"
    parts = [json.loads((finished / f"seed{seed}" / "metrics.json").read_text()) for seed in (7, 8)]
    for ranker, entries in pooled["rankers"].items():
        means = [part["rankers"][ranker]["auc"]["value"] for part in parts]
        assert entries["auc"]["by_seed"] == means
        assert entries["auc"]["seed_std"] == pytest.approx(np.std(means, ddof=1), abs=2e-6)
    assert len(pooled["comparisons"]) == 9
    users = [part["counts"]["users"] for part in parts]
    assert max(users) <= pooled["counts"]["users"] <= sum(users)
    assert pooled["counts"]["candidates"] == sum(part["counts"]["candidates"] for part in parts)


def test_the_report_of_the_pool_shows_the_spread_and_where_the_seeds_are(finished: Path) -> None:
    report = (finished / "report.html").read_text()
    for text in (
        "tiny, seeds 7, 8",
        "; seeds ±0.",
        "folders seed7, seed8",
        "--seeds 2",
        "Comparison of rankers",
    ):
        assert text in report
    assert "Example users<" not in report


def test_what_is_finished_is_not_repeated_and_more_seeds_can_be_added(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (copy / "metrics.json").read_bytes()
    assert run(copy) == []
    assert (copy / "metrics.json").read_bytes() == before
    said = run(copy, n=3)
    assert {line.split(":")[0] for line in said} == {"seed 9"}
    assert json.loads((copy / "metrics.json").read_text())["seeds"] == [7, 8, 9]


def test_summaries_of_the_seed_before_are_not_asked_for_again(tmp_path: Path) -> None:
    everyone = {"protocol": tiny_run(Path())["protocol"] | {"n_train": 25}}
    run(tmp_path / "out", **everyone)
    facts = json.loads((tmp_path / "out" / "seed8" / "stages.json").read_text())["summarize"]
    assert facts["calls_from_store"] > 0  # of the users whom both seeds test
    assert not list((tmp_path / "out" / "seed8").glob(".*partial*"))


@pytest.mark.slow
def test_a_killed_seed_is_taken_up_where_it_was_left(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(_: Experiment) -> dict[str, object]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stages, "STAGES", stages.STAGES | {"rank": kill})
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out")
    said = run(tmp_path / "out")
    assert [line.split(":")[1].strip() for line in said if line.startswith("seed 7")] == ["rank", "evaluate"]
    pooled = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert pooled["rankers"] == json.loads((finished / "metrics.json").read_text())["rankers"]


def test_a_folder_of_something_else_is_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(RunMismatchError, match="holds a run of one seed"):
        run(copy / "seed7")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(RunMismatchError, match="not empty and holds no run"):
        run(tmp_path / "other")
    with pytest.raises(RunMismatchError, match="another configuration"):
        run(copy, summary={"method": "counted"})
    assert pipeline_seeds.check_seeds_folder(tmp_path / "new") is None  # type: ignore[func-returns-value]
