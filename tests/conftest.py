"""What many tests share: no network, one thread, and a language model small enough to run in milliseconds."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from filelock import FileLock
from postgres_server import Server, running_server
from programs import need_program

if TYPE_CHECKING:
    from shop import Shop

    from trsr.experiment.experiment import Experiment
    from trsr.serve.store import ServeStore

# Before any model library is imported; tests that start processes pass these on.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("POLARS_MAX_THREADS", "2")

_NUMBERS = itertools.count()
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CORPUS = (
    "yes\nno\nAnswer yes or no.",
    "system user assistant Candidate: Profile: Recent products, newest last:",
    "This shopper buys garden supplies, seeds and clay pots, and before that string lights.",
    "You predict which product a shopper buys next. The profile is their long-term interest,",
    "Categories: Title: Brand: Description: Products, oldest first: Will the shopper buy the candidate next?",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a database by the fixture that starts one."""
    for item in items:
        if "postgres" in getattr(item, "fixturenames", ()):
            item.add_marker("postgres")


def save_tiny_model(
    folder: Path, *, hidden_size: int = 32, seed: int = 0, single_answers: bool = True
) -> Path:
    """Save a random Llama of two layers with a byte-level BPE tokenizer in ChatML, and return its folder.

    With `single_answers`, "yes" and "no" are one token each; else every letter is a token of its own.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]
    options: dict[str, Any] = {
        "initial_alphabet": pre_tokenizers.ByteLevel.alphabet(),
        "show_progress": False,
    }
    size = 512 if single_answers else 258
    bpe.train_from_iterator(_CORPUS, trainers.BpeTrainer(vocab_size=size, special_tokens=special, **options))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", bos_token="<|im_start|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=2 * hidden_size,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            initializer_range=0.2,  # far enough from uniform that different texts get different answers
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    # It writes words with blanks between them rather than single bytes.
    words = [i for token, i in tokenizer.get_vocab().items() if token.startswith("Ġ") and len(token) > 3]
    with torch.no_grad():
        model.lm_head.weight[words] *= 3
    model.save_pretrained(folder)
    return folder


MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """Has a folder made by the first of pytest's processes that asks; the others wait, and only read it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_model(make_once: MakeOnce) -> Path:
    """The folder of a tiny random model, good as `recommender.model` and as the engine's `model`."""
    import torch

    torch.set_num_threads(1)
    return make_once("tiny-llama", save_tiny_model)


@pytest.fixture(scope="session")
def two_token_model(make_once: MakeOnce) -> Path:
    """A tiny model whose tokenizer needs several tokens for "yes" and for "no"."""
    return make_once(
        "tiny-letters", lambda folder: save_tiny_model(folder, hidden_size=16, single_answers=False)
    )


@pytest.fixture(scope="session")
def llama_url() -> Iterator[str]:
    """The base URL of a real llama.cpp server with the embedded model; four slots of 512 tokens."""
    from trsr.llm import models
    from trsr.llm.llamacpp import open_server

    server = open_server(models.gguf_file(models.EMBEDDED_MODEL), n_parallel=4, slot_tokens=512, threads=1)
    yield f"{server.listening_address}/v1"
    del server


def tiny_run(model: Path, **changes: Any) -> dict[str, Any]:
    """Return the configuration of a whole experiment that takes seconds; `changes` replace its parts."""
    history = {"min_history": 9, "max_history": 14, "mean_history": 12}
    negatives = {"kind": "uniform", "n_train": 2, "n_test": 5}
    sizes = {"min_history": 8, "max_history": 13, "n_train": 8, "n_valid": 3, "n_test": 12}
    steps = {"epochs": 2, "batch_size": 2, "evaluations": 2, "save_steps": 1}
    return {
        "name": "tiny",
        "seed": 7,
        "data": {"kind": "synthetic", "n_users": 40, "n_items": 200, **history},
        "protocol": {"kind": "sampled", "negatives": negatives, **sizes},
        "summary": {"method": "recurrent", "max_field_tokens": 6, "max_new_tokens": 8},
        "engine": {"kind": "fake"},
        "prompt": {"n_recent": 2, "max_field_tokens": 6, "max_tokens": 320},
        "recommender": {"model": str(model), "dtype": "float32", "device": "cpu"},
        "baselines": {"embedding": {"model": str(model)}},
        "train": {"learning_rate": 0.01, "lora": {"r": 4, "dropout": 0.1}, **steps},
        **changes,
    }


@pytest.fixture(scope="session")
def config_file(tiny_model: Path, make_once: MakeOnce) -> Path:
    """The file of an experiment with the tiny model and the fake engine."""
    content = yaml.safe_dump(tiny_run(tiny_model))
    folder = make_once("config", lambda new: (new / "tiny.yaml").write_text(content, encoding="utf-8"))
    return folder / "tiny.yaml"


@pytest.fixture(scope="session")
def finished_run(config_file: Path, make_once: MakeOnce) -> Path:
    """The folder of that experiment, run to its end; tests only read it, or copy it."""
    from trsr.experiment.config import load_config
    from trsr.experiment.experiment import Experiment
    from trsr.experiment.run_folder import RunFolder
    from trsr.experiment.stages import run_stages

    def run(folder: Path) -> None:
        opened = RunFolder(folder / "out", load_config(config_file), "trsr run tiny.yaml --out out")
        run_stages(Experiment(opened))

    return make_once("finished", run) / "out"


def open_experiment(config: Path, out: Path, *changes: str) -> Experiment:
    """Open a run folder with a configuration and changes `a.b=value`."""
    from trsr.experiment.config import load_config
    from trsr.experiment.experiment import Experiment
    from trsr.experiment.run_folder import RunFolder

    return Experiment(RunFolder(out, load_config(config, changes), "trsr run"))


def experiment_of(content: dict[str, Any], out: Path) -> Experiment:
    """Open a run folder with a configuration as `tiny_run` returns it."""
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return open_experiment(file, out)


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, which a test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "copy"))


@pytest.fixture
def experiment(run_copy: Path, config_file: Path) -> Experiment:
    """The experiment of that copy."""
    return open_experiment(config_file, run_copy)


@pytest.fixture
def small_run(tiny_model: Path, tmp_path: Path) -> Callable[..., Experiment]:
    """Makes runs without a language model that ranks, with parts of the configuration changed."""

    def make(name: str, **changes: Any) -> Experiment:
        small = {"train": None, "rankers": ["random", "bm25"], "summary": {"method": "counted"}}
        return experiment_of(tiny_run(tiny_model, **(small | changes)), tmp_path / name)

    return make


def forget(run: Path, *stages: str) -> None:
    """Take stages back from a run's list of finished ones."""
    facts = json.loads((run / "stages.json").read_text())
    (run / "stages.json").write_text(json.dumps({k: v for k, v in facts.items() if k not in stages}))


@dataclass(frozen=True)
class Answer:
    """What a command did: its exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def trsr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs `trsr` with some arguments in this process."""
    from trsr.cli import main

    def run(*arguments: str | Path) -> Answer:
        monkeypatch.setattr("sys.argv", ["trsr", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        else:
            code = 0
        printed = capsys.readouterr()
        return Answer(code, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server of its own for the tests."""
    with running_server(need_program("postgres").parent) as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Server) -> str:
    """The URL of an empty place for each test: a schema, since a database takes a second to make."""
    import psycopg

    name = f"t{next(_NUMBERS)}"
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as db:
        db.execute(f"CREATE SCHEMA {name}".encode())
    return f"{postgres.url('postgres')}?connect_timeout=60&options=-csearch_path%3D{name}"


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """A service with one key and an empty database; its client has the key."""
    from shop import open_shop

    with open_shop(tmp_path / "serve.sqlite") as opened:
        yield opened


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ServeStore]:
    """An empty database of the service."""
    from trsr.serve.store import ServeStore

    with closing(ServeStore(tmp_path / "serve.sqlite")) as opened:
        yield opened
