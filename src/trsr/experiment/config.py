"""Joins the configurations of all stages in one file, and reports all its mistakes at once."""

from __future__ import annotations

import copy
import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

from trsr.baselines.settings import BaselinesConfig
from trsr.data.importers import ImportConfig
from trsr.data.synthetic import SyntheticConfig
from trsr.errors import ConfigError
from trsr.llm.engines import DEFAULT_ENGINE, EngineConfig
from trsr.recommend.loading import RecommenderConfig
from trsr.recommend.prompt import PromptConfig
from trsr.splitting.sampled import SampledProtocol
from trsr.splitting.split import ProtocolConfig
from trsr.summarize.plan import SummaryConfig
from trsr.summarize.store_url import check_store_url, hide_password
from trsr.train.config import ProfileKind, TrainConfig


def nearest_setting(name: str) -> str | None:
    """Return the known setting most similar to a name, or None."""
    schema = RunConfig.model_json_schema()
    groups = [schema, *schema["$defs"].values()]
    known = {setting for group in groups for setting in group.get("properties", ())}
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return found[0] if found else None


def _hint(name: str) -> str:
    near = nearest_setting(name)
    return f"the nearest is {near}." if near else "check the spelling."


def line_of(text: str, place: Sequence[str | int]) -> int | None:
    """Return the line (from 1) of a key in a YAML text; parts that are no key there (tags) are skipped.

    `place` is as the `loc` of a pydantic error.
    """
    node, line = yaml.compose(text, Loader=yaml.SafeLoader), None
    for part in place:
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == str(part)), None)
            if pair is not None:
                line, node = pair[0].start_mark.line + 1, pair[1]
                continue
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
            continue
        if part == place[-1]:
            return None
    return line


class _Loader(yaml.SafeLoader):
    """Reports keys that a group has twice; YAML would silently take the last."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.problems: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and lines.setdefault(key.value, line) != line:
                self.problems.append(
                    f"{key.value}: is given twice in the same group (lines {lines[key.value]} and {line}); "
                    "keep one."
                )
        return super().construct_mapping(node, deep)


BuiltInRanker = Literal[
    "random",
    "popularity",
    "popularity_decayed",
    "recency",
    "bm25",
    "embedding",
    "bag_of_words",
    "ncf",
    "gru4rec",
    "bert4rec",
    "sasrec",
    "llm_zero_shot",
    "llm",
    "llm_no_profile",
    "llm_counted",
    "fusion",
    "fusion_all",
    "fusion_no_llm",
]
_IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def _known_ranker(name: str) -> str:
    built_in = get_args(BuiltInRanker)
    if name in built_in or _IMPORT_PATH.fullmatch(name):
        return name
    near = difflib.get_close_matches(name, built_in, n=1, cutoff=0.6)
    raise ValueError(
        f"expected {', '.join(built_in)} or the import path of a class, such as mypackage.MyRanker"
        + (f"; did you mean {near[0]}?" if near else "")
    )


RankerName = Annotated[str, AfterValidator(_known_ranker)]
"""A built-in ranker, or the import path of a class that is one (`trsr.recommend.ranker.Ranker`)."""
OWN_MODEL: dict[RankerName, ProfileKind] = {"llm": "own", "llm_no_profile": "none", "llm_counted": "counted"}
"""The rankers that are the run's fine-tuned model, with the kind of profile in their prompts."""
FUSIONS: tuple[RankerName, ...] = ("fusion", "fusion_all", "fusion_no_llm")
"""The rankers that combine others, and rank after them."""
VARIABLE_PARTS = ("protocol", "summary", "engine", "prompt", "recommender", "train")
"""The parts of a configuration in which a variant may differ from its run."""
StorePlace = Annotated[str, AfterValidator(check_store_url), PlainSerializer(hide_password, return_type=str)]
"""Where summaries are kept; serialized without its password."""
_VARIANT_NAME = re.compile(r"[A-Za-z0-9_.=-]+")
_NOTHING = object()
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FolderData(_Part):
    """A dataset folder that exists already (see `trsr import`)."""

    kind: Literal["folder"]
    path: Path
    """The folder."""


class EvaluateConfig(_Part):
    """The metrics computed from the scores."""

    ks: tuple[Annotated[int, Field(ge=1)], ...] = (3, 5, 10)
    """Cut-offs of recall, mrr and ndcg."""


class RunConfig(_Part):
    """A whole experiment, from raw files to the report."""

    name: str
    """The title of the report."""
    seed: int = Field(default=0, ge=0)
    data: Annotated[FolderData | SyntheticConfig | ImportConfig, Field(discriminator="kind")]
    protocol: ProtocolConfig = SampledProtocol()
    summary: SummaryConfig = SummaryConfig()
    engine: EngineConfig = DEFAULT_ENGINE
    """Writes the summaries; by default the faster local one, `transformers` (see `trsr bench summarize`)."""
    store: StorePlace | None = Field(default=None, repr=False)
    """Where summaries are kept: a file, or a database that many runs on many machines share
    (`postgresql://USER:$PASSWORD@HOST/DATABASE`, extra `postgres`); by default
    `summaries.sqlite` in the run."""
    prompt: PromptConfig = PromptConfig()
    recommender: RecommenderConfig = RecommenderConfig()
    train: TrainConfig | None = TrainConfig()
    """None ranks without fine-tuning."""
    rankers: tuple[RankerName, ...] = ("random", "popularity", "recency", "bm25", "llm_zero_shot", "llm")
    baselines: BaselinesConfig = BaselinesConfig()
    """Settings of the rankers that have any."""
    evaluate: EvaluateConfig = EvaluateConfig()
    variants: dict[str, dict[str, Any]] = {}
    """More models for the same examples: a ranker's name, and `{a.b: value}` for the settings in which it
    differs from this run. Each is fine-tuned separately; equal summaries are written once."""
    sweep: dict[str, tuple[str | int | float | bool | None, ...]] = {}
    """Settings to try one at a time, `a.b: [values]`; every value but the run's own is a variant."""


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
        loader = _Loader(text)
        content = loader.get_single_data()
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise ConfigError(
            f"The configuration {path} is not YAML{line}: {getattr(error, 'problem', error)}."
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"The configuration {path} holds no settings; expected `name:`, `data:` and so on.")
    problems = list(dict.fromkeys(loader.problems))
    for override in overrides:
        _override(content, override, problems)
    content = _expand(content, problems)
    try:
        config = RunConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError([*problems, *validation_sentences(error, text)]) from error
    problems = problems or _mistakes_together(config)
    if problems:
        raise ConfigError(problems)
    return config


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
                problems.append(
                    f"{_short(value)} names the environment variable {name}, which is not set; set it."
                )
        return _VARIABLE.sub(lambda match: os.environ.get(match[1], ""), value)
    return value


def validation_sentences(error: ValidationError, text: str | None = None) -> Iterable[str]:
    """Yield one sentence per validation error: the setting, the value found, the value expected.

    With the `text` of a run's YAML file, an unknown setting has its line and the nearest known one.
    """
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "the configuration"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            line = None if text is None else line_of(text, problem["loc"])
            at = f" (line {line})" if line else ""
            hint = "check the spelling." if text is None else _hint(str(problem["loc"][-1]))
            yield f"{where}{at}: there is no such setting; {hint}"
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
    text = hide_password(repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def _mistakes_together(config: RunConfig) -> list[str]:
    """Return the mistakes that involve several fields."""
    rankers, problems = config.rankers, list[str]()
    for name in (name for name in OWN_MODEL if name in rankers):
        kind = OWN_MODEL[name]
        if config.train is None:
            problems.append(
                f"rankers: `{name}` is the fine-tuned model, but `train` is null; use `llm_zero_shot`."
            )
        elif kind not in {"own", config.summary.method} and not getattr(config.train.profiles, kind):
            problems.append(
                f"rankers: `{name}` uses prompts that the model was not trained on; give "
                f"train.profiles.{kind} a share of the training users, such as 0.25."
            )
    problems += grammar_mistakes(config.summary, config.engine)
    for name in FUSIONS:
        if name in rankers and name != "fusion_no_llm" and "llm" not in rankers:
            problems.append(f"rankers: `{name}` joins `llm` with other rankers; name `llm` too.")
        if name in rankers and name != "fusion" and not joinable(rankers):
            problems.append(f"rankers: `{name}` joins the run's baselines; name one, such as bm25.")
    if not rankers:
        problems.append("rankers: the list is empty; name at least one.")
    variants, of_variants = _resolve_variants(config)
    problems += of_variants
    for name, variant in variants.items():
        if (variant.summary, variant.engine) != (config.summary, config.engine):
            mistakes = grammar_mistakes(variant.summary, variant.engine)
            problems += [f"variants.{name}: {mistake}" for mistake in mistakes]
    return problems


def joinable(rankers: Sequence[RankerName]) -> list[RankerName]:
    """Return the baselines that a fusion can learn from: all but `random`."""
    return [n for n in rankers if n not in {"random", "llm_zero_shot", *OWN_MODEL, *FUSIONS}]


def grammar_mistakes(summary: SummaryConfig, engine: EngineConfig) -> Iterable[str]:
    """Yield a mistake if grounded summaries need `engine.grammar` and it is missing."""
    constrained = summary.grounded and summary.needs_calls
    if constrained and engine.kind == "openai" and engine.grammar is None:
        yield (
            "engine.grammar: is missing, and grounded summaries need it; set it to the server's kind, "
            "llama.cpp, vllm or sglang, or summary.grounded to false."
        )


def swept(config: RunConfig) -> dict[str, dict[str, str]]:
    """Return, for every swept setting, the name of the ranker of each value, by value as text.

    The run's own value keeps its position in the list, or comes first, and names the run's own model.
    """
    settings = config.model_dump(mode="json")
    found: dict[str, dict[str, str]] = {}
    for setting, values in config.sweep.items():
        own = _look_up(settings, setting)
        tried = values if own in values else (own, *values)
        names = [own_ranker(config) if value == own else _sweep_name(setting, value) for value in tried]
        found[setting] = dict(zip(map(_as_text, tried), names, strict=True))
    return found


def own_ranker(config: RunConfig) -> RankerName:
    """Return the run's main language model: the fine-tuned one, or the base model if none is trained."""
    return "llm_zero_shot" if config.train is None else "llm"


def variants_of(config: RunConfig) -> dict[str, RunConfig]:
    """Return the whole configuration of each variant, by the name of its ranker: `variants`, then `sweep`.

    A variant ranks with its own language model only, and has no variants.
    """
    return _resolve_variants(config)[0]


def _resolve_variants(config: RunConfig) -> tuple[dict[str, RunConfig], list[str]]:
    """Return the variants, and a sentence for every mistake in them."""
    settings = config.model_dump(mode="json")
    wanted, problems = dict(config.variants), []
    for setting, values in config.sweep.items():
        for value in values:
            if value != _look_up(settings, setting):
                wanted[_sweep_name(setting, value)] = {setting: value}
    found: dict[str, RunConfig] = {}
    for name, changes in wanted.items():
        mistakes = [f"variants.{name}: {why}" for why in _variant_mistakes(settings, name, changes)]
        if not mistakes:
            content = _changed(settings, changes)
            try:
                variant = RunConfig.model_validate(content)
                found[name] = variant.model_copy(update={"rankers": (own_ranker(variant),)})
            except ValidationError as error:
                mistakes = [f"variants.{name}: {sentence}" for sentence in validation_sentences(error)]
        problems += mistakes
    return found, problems


def _variant_mistakes(settings: Mapping[str, Any], name: str, changes: Mapping[str, Any]) -> Iterable[str]:
    """Yield the mistakes in a variant's name and in the names of its settings."""
    if not _VARIANT_NAME.fullmatch(name) or name in get_args(BuiltInRanker):
        yield "the name must be letters, digits and . _ = - and not a ranker's name; choose another."
    for setting in changes:
        if setting.split(".")[0] not in VARIABLE_PARTS:
            yield f"{setting} cannot vary within a run; expected a setting of {', '.join(VARIABLE_PARTS)}."
        elif _look_up(settings, setting) is _NOTHING:
            yield f"{setting} is no setting of this run; {_hint(setting.rpartition('.')[2])}"


def _changed(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of resolved settings with some changed, without variants and the run's servers."""
    content = copy.deepcopy({k: v for k, v in settings.items() if k not in {"variants", "sweep"}})
    content["recommender"]["servers"] = {}  # they hold the run's own models
    for setting, value in changes.items():
        *parents, last = setting.split(".")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    return content


def _look_up(settings: Mapping[str, Any], setting: str) -> Any:
    """Return the value of a dotted setting, `_NOTHING` if there is none."""
    place: Any = settings
    for part in setting.split("."):
        place = place.get(part, _NOTHING) if isinstance(place, Mapping) else _NOTHING
    return place


def _sweep_name(setting: str, value: Any) -> str:
    return f"{setting.rpartition('.')[2]}={_as_text(value)}"


def _as_text(value: Any) -> str:
    return json.dumps(value).strip('"')


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
