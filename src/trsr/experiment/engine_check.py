"""Scores the same prompts of a run with two engines and compares their margins.

Each side builds its prompts with its own tokenizer and chat format: a wrong template, a damaged conversion or
another model shows before a large run. A server gets token ids, as when ranking.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import TypeAdapter, ValidationError

from trsr.errors import ConfigError, DataError
from trsr.experiment.config import validation_sentences
from trsr.experiment.experiment import Experiment
from trsr.llm import models
from trsr.llm.base import LabelScorer, LabelTokens
from trsr.llm.engines import EngineConfig, LlamaCppEngine, OpenAIEngine, TransformersEngine, require_package
from trsr.llm.opening import open_remote_scorer
from trsr.recommend.loading import RecommenderConfig, open_scorer
from trsr.recommend.model_folder import read_adapter_info
from trsr.recommend.prompt import PromptBuilder
from trsr.types import RankingExample

CANDIDATES_PER_USER = 5
_TOP_LOGPROBS = 2000  # of a llama.cpp server of our own, which has no limit
_SLOTS = 4

Side = tuple[LabelScorer, PromptBuilder, LabelTokens]
"""An open engine, its prompt builder and its answer tokens."""


@dataclass(frozen=True, slots=True)
class EngineComparison:
    """How two engines answered the same prompts; margins and their differences are in logits.

    Attributes:
        n_prompts: Prompts scored by each.
        n_users: Users they are about; ranks are compared within a user.
        max_difference: Largest absolute difference of two margins.
        mean_difference: Mean absolute difference.
        mean_shift: Mean of the second engine's margin minus the first's; a shift does not change ranks.
        spread: Standard deviation of the first engine's margins within a user, to judge the differences by.
        kendall_tau: Mean of Kendall's tau-b over users; None where no user has two different margins.
        same_top: Share of users whose best candidate is the same.
        same_tokens: Share of prompts that both engines read as the same token ids.
        agrees: Whether no margin differs by more than the tolerance.
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
    agrees: bool


def parse_engine(text: str) -> EngineConfig | str:
    """Parse the name or the settings of an engine from the command line.

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
    experiment: Experiment,
    first: EngineConfig | str,
    second: EngineConfig | str,
    *,
    n_prompts: int,
    tolerance: float,
) -> EngineComparison:
    """Score prompts of a run's test examples with two engines, one after the other.

    Args:
        experiment: A run with examples and profiles.
        first: As `parse_engine` returns it.
        second: As `parse_engine` returns it.
        n_prompts: Prompts, at least 2; of the first users, `CANDIDATES_PER_USER` of each at most.
        tolerance: Largest difference of margins at which the engines agree, in logits.

    Raises:
        DataError: the run has no examples or profiles yet.
        MissingLabelsError: a server returns too few logprobs.
        EngineError, ModelError: an engine cannot be used.
    """
    examples = _first_examples(experiment, n_prompts)
    prompts: list[list[tuple[int, ...]]] = []
    answers: list[list[npt.NDArray[np.float64]]] = []
    for engine in (first, second):
        with _open(experiment, engine) as (scorer, builder, labels):
            groups = [
                builder.build(e.history, experiment.profiles.get(e.example_id, ""), e.candidates).group
                for e in examples
            ]
            found = dict(scorer.score(groups, labels))
        prompts.append([(*group.prefix, *suffix) for group in groups for suffix in group.suffixes])
        answers.append([found[index].astype(np.float64) for index in range(len(groups))])
    one, other = answers
    shifts = np.concatenate(other) - np.concatenate(one)
    taus = [tau for tau in map(kendall_tau, one, other) if tau is not None]
    return EngineComparison(
        n_prompts=len(shifts),
        n_users=len(one),
        max_difference=float(np.abs(shifts).max()),
        mean_difference=float(np.abs(shifts).mean()),
        mean_shift=float(shifts.mean()),
        spread=float(np.sqrt(np.mean([margins.var() for margins in one]))),
        kendall_tau=float(np.mean(taus)) if taus else None,
        same_top=float(np.mean([a.argmax() == b.argmax() for a, b in zip(one, other, strict=True)])),
        same_tokens=float(np.mean([a == b for a, b in zip(*prompts, strict=True)])),
        agrees=bool(np.abs(shifts).max() <= tolerance),
    )


def _first_examples(experiment: Experiment, n_prompts: int) -> list[RankingExample]:
    """Return the first test examples, with few candidates each and `n_prompts` together."""
    folder = experiment.folder.path
    if not (folder / "profiles.parquet").exists():
        raise DataError(f"{folder} holds no prompts yet; make them with `trsr train` or `trsr run`.")
    found: list[RankingExample] = []
    left = n_prompts
    for example in experiment.splits.test:
        n = min(left, CANDIDATES_PER_USER, len(example.candidates))
        if n == 0:
            break
        found.append(replace(example, candidates=example.candidates[:n], labels=example.labels[:n]))
        left -= n
    if left:
        raise DataError(f"{folder} has {n_prompts - left} prompts of its test users; lower --prompts.")
    return found


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
def _open(experiment: Experiment, engine: EngineConfig | str) -> Iterator[Side]:
    """Open an engine, and close it again: two models need not fit into memory together."""

    def builder_of(tokenizer: Any) -> PromptBuilder:  # fields are cut by the run's own tokenizer
        return PromptBuilder(
            experiment.ranking_template, experiment.config.prompt, tokenizer, experiment.builder.item_text
        )

    adapter, template = experiment.folder.path / "model", experiment.ranking_template.hash
    if isinstance(engine, OpenAIEngine):  # reads the run's own token ids
        labels = read_adapter_info(adapter).labels if adapter.exists() else experiment.labels
        yield open_remote_scorer(engine), experiment.builder, labels
    elif isinstance(engine, TransformersEngine):
        from trsr.llm.transformers import HfTokenizer

        builder = builder_of(HfTokenizer(models.hf_folder(engine.model)))
        own = RecommenderConfig(model=engine.model, dtype=engine.dtype, device=engine.device)
        version = builder.tokenizer.prompt_version
        yield open_scorer(own, None, template, version)[0], builder, builder.labels()
    elif isinstance(engine, LlamaCppEngine):
        require_package(engine.kind)
        from trsr.llm.llamacpp import LlamaCppTokenizer, default_threads, open_server

        server = open_server(  # on a loopback port; its GGUF file brings tokenizer and chat format
            models.gguf_file(engine.model),
            n_parallel=_SLOTS,
            slot_tokens=experiment.config.prompt.max_tokens + 8,
            threads=engine.threads or default_threads(),
        )
        builder = builder_of(LlamaCppTokenizer(server, engine.model, experiment.tokenizer.special_texts))
        url = f"{server.listening_address}/v1"
        served = OpenAIEngine(
            base_url=url, model=engine.model, concurrency=_SLOTS, top_logprobs=_TOP_LOGPROBS
        )
        yield open_remote_scorer(served), builder, builder.labels()
    else:
        version = experiment.tokenizer.prompt_version
        own_adapter = adapter if engine == "llm" else None
        scorer, info = open_scorer(experiment.config.recommender, own_adapter, template, version)
        yield scorer, experiment.builder, info.labels if info else experiment.labels
