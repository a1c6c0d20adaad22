"""Asks two engines the same ranking questions of a run and says how far their margins are apart.

Each side builds its prompts with its own tokenizer and chat format, so that a wrong template, a damaged
conversion or another model shows before anything large is ranked. A server gets token ids, as when ranking.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import TypeAdapter, ValidationError

from trsr.errors import ConfigError, DataError
from trsr.experiment.config import validation_sentences
from trsr.experiment.experiment import Workbench
from trsr.llm import models
from trsr.llm.base import LabelScorer, LabelTokens, ScoringGroup
from trsr.llm.engines import EngineConfig, LlamaCppEngine, OpenAIEngine, TransformersEngine, require_package
from trsr.llm.opening import open_remote_scorer
from trsr.recommend.loading import RecommenderConfig, open_scorer
from trsr.recommend.model_folder import read_adapter_info
from trsr.recommend.prompt import PromptBuilder
from trsr.types import RankingExample

CANDIDATES_A_USER = 5
_TOP_LOGPROBS = 2000  # of a llama.cpp server of our own, which has no limit
_SLOTS = 4


@dataclass(frozen=True, slots=True)
class EngineComparison:
    """How two engines answered the same questions.

    Attributes:
        n_prompts: Prompts scored by each.
        n_users: Users they are about; ranks are compared within a user.
        max_difference: Largest absolute difference of two margins, in logits.
        mean_difference: Mean absolute difference, in logits.
        mean_shift: Mean of the second engine's margin less the first's: a shift leaves ranks as they are.
        spread: Standard deviation of the first engine's margins within a user, the scale of all these.
        kendall_tau: Mean of Kendall's tau-b over users; None where no user has two different margins.
        same_top: Share of users whose best candidate is the same.
        same_tokens: Share of prompts that both engines read as the same token ids.
        tolerance: Largest difference at which the engines agree, in logits.
    """

    n_prompts: int
    n_users: int
    max_difference: float
    mean_difference: float
    mean_shift: float
    spread: float
    kendall_tau: float | None
    same_top: float
    same_tokens: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether no margin differs by more than the tolerance."""
        return self.max_difference <= self.tolerance

    def facts(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return {**asdict(self), "agrees": self.agrees}


@dataclass(frozen=True, slots=True)
class _Side:
    """An engine that is open, with what builds its prompts."""

    scorer: LabelScorer
    builder: PromptBuilder
    labels: LabelTokens


def parse_engine(text: str) -> EngineConfig | str:
    """Read what names an engine on the command line.

    `llm` and `llm_zero_shot` are the run's own models in this process; else `KIND`, `KIND:MODEL`,
    `openai:MODEL@URL`, or a YAML mapping with the settings of an engine.

    Raises:
        ConfigError: it is none of these, or an engine that cannot score.
    """
    if text in {"llm", "llm_zero_shot"}:
        return text
    if text.startswith("{"):
        try:
            named = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"The engine {text!r} is not a YAML mapping; check its quotes.") from error
    else:
        kind, _, model = text.partition(":")
        model, _, url = model.partition("@") if kind == "openai" else (model, "", "")
        named = {"kind": kind} | ({"model": model} if model else {}) | ({"base_url": url} if url else {})
    try:
        config: EngineConfig = TypeAdapter(EngineConfig).validate_python(named)
    except ValidationError as error:
        raise ConfigError(
            [f"engine {text}: {sentence}" for sentence in validation_sentences(error)]
        ) from error
    if not isinstance(config, LlamaCppEngine | OpenAIEngine | TransformersEngine):
        raise ConfigError(
            f"The engine {text!r} scores no labels; "
            "expected llm, llm_zero_shot, transformers, llamacpp or openai."
        )
    return config


def compare_engines(
    bench: Workbench,
    first: EngineConfig | str,
    second: EngineConfig | str,
    *,
    n_prompts: int,
    tolerance: float,
) -> EngineComparison:
    """Score prompts of a run's test examples with two engines, one after the other.

    Args:
        bench: A run with examples and profiles.
        first: As `parse_engine` returns it.
        second: Likewise.
        n_prompts: Prompts, at least 2; those of the first users, `CANDIDATES_A_USER` of each at most.
        tolerance: Largest difference at which they agree, in logits.

    Raises:
        DataError: the run has no examples or profiles yet.
        MissingLabelsError: a server tells too few logprobs.
        EngineError, ModelError: an engine cannot be used.
    """
    examples = _questions(bench, n_prompts)
    asked: list[list[ScoringGroup]] = []
    answers: list[list[npt.NDArray[np.float64]]] = []
    for engine in (first, second):
        with _open(bench, engine) as side:
            groups = [
                side.builder.build(e.history, bench.profiles.get(e.example_id, ""), e.candidates).group
                for e in examples
            ]
            found = dict(side.scorer.score(groups, side.labels))
        asked.append(groups)
        answers.append([found[index].astype(np.float64) for index in range(len(groups))])
    return _compared(asked, answers, tolerance=tolerance)


def _questions(bench: Workbench, n_prompts: int) -> list[RankingExample]:
    """Return the first test examples, with few candidates each and `n_prompts` together."""
    folder = bench.folder.path
    if not (folder / "profiles.parquet").exists():
        raise DataError(f"{folder} holds no prompts yet; make them with `trsr train` or `trsr run`.")
    found: list[RankingExample] = []
    left = n_prompts
    for example in bench.splits.test:
        n = min(left, CANDIDATES_A_USER, len(example.candidates))
        if n == 0:
            break
        found.append(replace(example, candidates=example.candidates[:n], labels=example.labels[:n]))
        left -= n
    if left:
        raise DataError(f"{folder} has {n_prompts - left} prompts of its test users; ask for no more.")
    return found


def _compared(
    asked: Sequence[Sequence[ScoringGroup]],
    answers: Sequence[Sequence[npt.NDArray[np.float64]]],
    *,
    tolerance: float,
) -> EngineComparison:
    first, second = answers
    shifts = np.concatenate(second) - np.concatenate(first)
    taus = [tau for tau in map(kendall_tau, first, second) if tau is not None]
    same = [
        one.prefix + left == other.prefix + right
        for one, other in zip(*asked, strict=True)
        for left, right in zip(one.suffixes, other.suffixes, strict=True)
    ]
    return EngineComparison(
        n_prompts=len(shifts),
        n_users=len(first),
        max_difference=float(np.abs(shifts).max()),
        mean_difference=float(np.abs(shifts).mean()),
        mean_shift=float(shifts.mean()),
        spread=float(np.sqrt(np.mean([margins.var() for margins in first]))),
        kendall_tau=float(np.mean(taus)) if taus else None,
        same_top=float(np.mean([a.argmax() == b.argmax() for a, b in zip(first, second, strict=True)])),
        same_tokens=float(np.mean(same)),
        tolerance=tolerance,
    )


def kendall_tau(left: npt.ArrayLike, right: npt.ArrayLike) -> float | None:
    """Return Kendall's tau-b, in [-1, 1]; None where one side has only ties (Kendall, Biometrika 1945).

    tau_b = (concordant - discordant) / sqrt(pairs untied on the left * pairs untied on the right)
    """
    one, other = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    rows, columns = np.triu_indices(len(one), 1)
    a, b = np.sign(one[rows] - one[columns]), np.sign(other[rows] - other[columns])
    scale = np.sqrt(np.abs(a).sum() * np.abs(b).sum())
    return float((a * b).sum() / scale) if scale else None


@contextmanager
def _open(bench: Workbench, engine: EngineConfig | str) -> Iterator[_Side]:
    """Open an engine, and close it again: two models need not fit into memory together."""
    if isinstance(engine, LlamaCppEngine):
        with _open_llamacpp(bench, engine) as side:
            yield side
    elif isinstance(engine, OpenAIEngine):
        # Prompts are the run's own token ids, and the labels those that its model was trained on.
        yield _Side(open_remote_scorer(engine), bench.builder, _own_labels(bench))
    elif isinstance(engine, TransformersEngine):
        from trsr.llm.transformers import HfTokenizer

        builder = _builder(bench, HfTokenizer(models.hf_folder(engine.model)))
        own = RecommenderConfig(model=engine.model, dtype=engine.dtype, device=engine.device)
        version = builder.tokenizer.prompt_version
        yield _Side(open_scorer(own, None, builder.template.hash, version)[0], builder, builder.labels())
    else:
        adapter = bench.folder.path / "model" if engine == "llm" else None
        scorer, info = open_scorer(
            bench.config.recommender, adapter, bench.ranking_template.hash, bench.tokenizer.prompt_version
        )
        yield _Side(scorer, bench.builder, info.labels if info else bench.labels)


@contextmanager
def _open_llamacpp(bench: Workbench, engine: LlamaCppEngine) -> Iterator[_Side]:
    """Start llama.cpp on a loopback port; its GGUF file brings tokenizer and chat format."""
    require_package(engine.kind)
    from trsr.llm.llamacpp import LlamaCppTokenizer, default_threads, open_server

    server = open_server(
        models.gguf_file(engine.model),
        n_parallel=_SLOTS,
        slot_tokens=bench.config.prompt.max_tokens + 8,
        threads=engine.threads or default_threads(),
    )
    builder = _builder(bench, LlamaCppTokenizer(server, engine.model, bench.tokenizer.special_texts))
    url = f"{server.listening_address}/v1"
    served = OpenAIEngine(base_url=url, model=engine.model, concurrency=_SLOTS, top_logprobs=_TOP_LOGPROBS)
    yield _Side(open_remote_scorer(served), builder, builder.labels())


def _builder(bench: Workbench, tokenizer: Any) -> PromptBuilder:
    """Return a builder of the run's questions for another tokenizer; fields are cut by the run's own."""
    return PromptBuilder(bench.ranking_template, bench.config.prompt, tokenizer, bench.builder.item_text)


def _own_labels(bench: Workbench) -> LabelTokens:
    folder = bench.folder.path / "model"
    return read_adapter_info(folder).labels if folder.exists() else bench.labels
