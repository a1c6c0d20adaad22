"""Composes the configurations of all stages into one file, and reports every mistake in it at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trsr.data.import_config import ImportConfig
from trsr.data.protocols import ProtocolConfig, SampledProtocol
from trsr.data.synthetic import SyntheticConfig
from trsr.errors import ConfigError
from trsr.llm.base import Sharing
from trsr.llm.engines import DEFAULT_ENGINE, EngineConfig
from trsr.prompt.ranking import PromptConfig
from trsr.rank.settings import BaselinesConfig
from trsr.summarize.plan import SummaryConfig
from trsr.train.config import TrainConfig

RankerName = Literal[
    "random",
    "popularity",
    "popularity_decayed",
    "recency",
    "bm25",
    "embedding",
    "ncf",
    "gru4rec",
    "bert4rec",
    "sasrec",
    "llm_zero_shot",
    "llm",
    "fusion",
]
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FolderData(_Part):
    """A dataset folder that exists already (see `trsr import`)."""

    kind: Literal["folder"]
    path: Path
    """The folder."""


class RecommenderConfig(_Part):
    """The language model that ranks."""

    model: str = "smollm2-135m"
    """The embedded model, a hub id or a local folder."""
    dtype: str = "auto"
    device: str = "auto"
    sharing: Sharing = "auto"
    """How candidates share the reading of their prefix: `rows`, `blocks` (for GPUs), or `separate`, which
    reads it again for each. Results are equal; models that cannot share are read separately."""
    max_batch_tokens: int = Field(default=4096, ge=1)
    """Most tokens of a forward pass when ranking; bounds the memory."""


class EvaluateConfig(_Part):
    """What is computed from the scores."""

    ks: tuple[Annotated[int, Field(ge=1)], ...] = (3, 5, 10)
    """Cut-offs of recall, mrr and ndcg."""


class RunConfig(_Part):
    """A whole experiment, from raw files to the report."""

    name: str
    """Stands in the report."""
    seed: int = Field(default=0, ge=0)
    data: Annotated[FolderData | SyntheticConfig | ImportConfig, Field(discriminator="kind")]
    protocol: ProtocolConfig = SampledProtocol()
    summary: SummaryConfig = SummaryConfig()
    engine: EngineConfig = DEFAULT_ENGINE
    """Writes the summaries; by default the faster local one, `transformers` (see `trsr bench summarize`)."""
    prompt: PromptConfig = PromptConfig()
    recommender: RecommenderConfig = RecommenderConfig()
    train: TrainConfig | None = TrainConfig()
    """None ranks without fine-tuning."""
    rankers: tuple[RankerName, ...] = ("random", "popularity", "recency", "bm25", "llm_zero_shot", "llm")
    baselines: BaselinesConfig = BaselinesConfig()
    """Settings of those rankers that have any."""
    evaluate: EvaluateConfig = EvaluateConfig()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file; `$NAME` in a value is an environment variable, `overrides` are `a.b=value`.

    Raises:
        ConfigError: with every mistake found, one sentence each.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"The configuration {path} cannot be read ({error.strerror}); check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The configuration {path} is not UTF-8 text; save it as UTF-8.") from error
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise ConfigError(
            f"The configuration {path} is not YAML{line}: {getattr(error, 'problem', error)}."
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"The configuration {path} holds no settings; expected `name:`, `data:` and so on.")
    problems: list[str] = []
    for override in overrides:
        _override(content, override, problems)
    content = _expand(content, problems)
    return _validate(content, problems)


def _override(content: dict[str, Any], override: str, problems: list[str]) -> None:
    """Set one value named by a dotted path."""
    name, equals, text = override.partition("=")
    *parents, last = name.split(".")
    if not equals or not last:
        problems.append(f"--set {override}: expected the form a.b=value.")
        return
    place: Any = content
    for parent in parents:
        place = place.setdefault(parent, {}) if isinstance(place, dict) else None
        if place is None:
            content_at = ".".join(parents)
            problems.append(f"--set {override}: {content_at} is not a group of settings.")
            return
    if not isinstance(place, dict):
        problems.append(f"--set {override}: {'.'.join(parents)} is not a group of settings.")
        return
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        problems.append(f"--set {override}: {text!r} is not a YAML value; put it in quotes.")


def _expand(value: Any, problems: list[str]) -> Any:
    """Replace `$NAME` in every text by the environment variable."""
    if isinstance(value, dict):
        return {key: _expand(inner, problems) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expand(inner, problems) for inner in value]
    if isinstance(value, str):
        for name in _VARIABLE.findall(value):
            if name not in os.environ:
                problems.append(f"{value!r} names the environment variable {name}, which is not set; set it.")
        return _VARIABLE.sub(lambda match: os.environ.get(match[1], ""), value)
    return value


def _validate(content: dict[str, Any], problems: list[str]) -> RunConfig:
    try:
        config = RunConfig.model_validate(content)
    except ValidationError as error:
        problems.extend(validation_sentences(error))
    else:
        if not problems:
            _check_together(config)
            return config
    raise ConfigError(problems)


def validation_sentences(error: ValidationError) -> Iterable[str]:
    """Say each validation error in one sentence: where, what was found, what was expected."""
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "the configuration"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            yield f"{where}: there is no such setting; check the spelling."
        elif problem["type"] == "union_tag_invalid":
            found, known = problem["ctx"]["tag"], problem["ctx"]["expected_tags"]
            yield f"{where}.kind: found {_short(found)}, expected one of {known}."
        elif problem["type"] == "union_tag_not_found":
            yield f"{where}.kind: is missing; give it a value."
        elif problem["type"] == "missing":
            yield f"{where}: is missing; give it a value."
        else:
            yield f"{where}: found {_short(problem['input'])}, {message[:1].lower()}{message[1:]}."


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_together(config: RunConfig) -> None:
    """Check what single fields cannot know."""
    problems = []
    if "llm" in config.rankers and config.train is None:
        problems.append("rankers: `llm` is the fine-tuned model, but `train` is null; use `llm_zero_shot`.")
    if "fusion" in config.rankers and "llm" not in config.rankers:
        problems.append("rankers: `fusion` joins `llm` with cheap rankers; name `llm` too.")
    if not config.rankers:
        problems.append("rankers: the list is empty; name at least one.")
    if problems:
        raise ConfigError(problems)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return `a.b: OLD -> NEW` for every setting in which two resolved configurations differ."""
    found = []
    for key in sorted(set(old) | set(new)):
        name = f"{prefix}{key}"
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{name}.")
        elif before != after:
            found.append(f"{name}: {_short(before)} -> {_short(after)}")
    return found
