"""The paper's recipe on MIND, with other sizes and models, runs from raw files to the report."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest
from conftest import Answer
from helpers import ROOT
from real_tokenizers import save_model_for, save_real_tokenizer

pytestmark = pytest.mark.slow
RECIPE = ROOT / "configs/paper_mind.yaml"
_WORDS = ["market", "team", "season", "storm", "recipe", "phone", "travel", "film", "court", "price"]
_SMALL = (
    "protocol.n_train=6",
    "protocol.n_valid=3",
    "protocol.n_test=6",
    "train.epochs=2",
    "train.batch_size=2",
)
_MODELS = {
    "Llama-2": ("llama2", "llama", {}, ()),
    "Pythia": (
        "gpt2",
        "gpt_neox",
        {"num_key_value_heads": 4},
        ("train.lora.target_modules=[query_key_value, dense]",),
    ),
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this session share."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if base.name.startswith("popen-") else base) / "npm"


@pytest.fixture
def mind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny folder in MIND's format, named by `TRSR_MIND`."""
    rng = random.Random(1)
    news = [f"N{number}" for number in range(90)]
    folder = tmp_path / "mind"
    folder.mkdir()
    rows = [
        [item, f"kind{n % 4}", f"part{n % 7}", " ".join(rng.sample(_WORDS, 6)), "", "", "[]", "[]"]
        for n, item in enumerate(news)
    ]
    (folder / "news.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    lines = []
    for user in range(30):
        *history, clicked, shown = rng.sample(news, rng.randint(14, 24))
        time = f"11/{rng.randint(9, 14)}/2019 {rng.randint(1, 11)}:05:58 AM"
        lines.append(f"{user}\tU{user}\t{time}\t{' '.join(history)}\t{clicked}-1 {shown}-0\n")
    (folder / "behaviors.tsv").write_text("".join(lines))
    monkeypatch.setenv("TRSR_MIND", str(folder))
    return folder


def changes(*settings: str) -> Iterator[str]:
    for setting in settings:
        yield from ("--set", setting)


@pytest.mark.parametrize("name", _MODELS)
@pytest.mark.usefixtures("mind")
def test_paper_recipe_runs_on_mind(
    name: str, packages: Path, tmp_path: Path, trsr: Callable[..., Answer]
) -> None:
    tokenizer, model_type, settings, own = _MODELS[name]
    folder = save_real_tokenizer(tokenizer, tmp_path / name, packages, chat=False)
    model = save_model_for(folder, model_type, **settings)
    sized = changes(*_SMALL, *own, f"recommender={{model: {model}, dtype: float32}}", "engine={kind: fake}")
    answer = trsr("run", RECIPE, "--out", tmp_path / "out", *sized)
    assert answer.code == 0, answer.err
    out = tmp_path / "out"
    assert (out / "report.html").is_file()
    scores = pl.read_parquet(out / "scores.parquet")
    assert {"random", "ncf", "sasrec", "llm_zero_shot", "llm", "llm_hierarchical"} <= set(scores["ranker"])
    assert scores.filter(pl.col("ranker") == "llm")["margin"].is_finite().all()
    checked = json.loads(trsr("models", "check", out / "model", "--json").out)
    facts = {check["check"]: check for check in checked["checks"]}
    assert [check for check in checked["checks"] if not check["ok"]] == []
    assert facts["labels paper"]["message"].endswith("one token each.")
    assert ("once" in facts["BOS"]["message"]) == (name == "Llama-2")
