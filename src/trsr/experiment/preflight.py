"""Checks before hours of work: unusable models and stores, prompts that are too long, a changed dataset.

Models are examined without their weights: tokenizer, configuration, and the names of their layers. A run does
this before its first summary, `trsr plan` before it counts.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Container, Iterator, Sequence
from functools import partial
from pathlib import Path

from trsr.errors import ConfigError, InputError, ModelError, RunMismatchError
from trsr.experiment.config import RunConfig, variants_of
from trsr.experiment.experiment import Experiment, summarized
from trsr.experiment.leakage import check_warm_start
from trsr.llm import models
from trsr.llm.base import LabelTokens
from trsr.llm.chat_format import check_vocabulary
from trsr.llm.engines import (
    EngineConfig,
    FakeEngine,
    LlamaCppEngine,
    OpenAIEngine,
    TransformersEngine,
    n_thought_tokens,
    require_package,
)
from trsr.llm.fake import CHARACTERS_A_TOKEN
from trsr.llm.models import read_config
from trsr.llm.opening import engine_context, server_context, token_counter
from trsr.recommend.loading import RecommenderConfig
from trsr.recommend.prompt import PromptBuilder, PromptConfig, check_context, load_ranking_template
from trsr.summarize.prompts import summary_text
from trsr.summarize.store import open_store
from trsr.summarize.store_url import is_database_url
from trsr.summarize.user_plan import BoundSummarizer, bind_summarizer, plan_user
from trsr.types import History

SURE_CHARACTERS_PER_TOKEN = 6
"""Where a count is rough, a prompt is refused only if it is too long even at this rate."""


def check_models(config: RunConfig) -> None:
    """Look up the models that a run will load; nothing is downloaded and nothing written.

    Raises:
        ModelError: one of them is unknown or cannot be read.
        MissingExtraError: a server is configured, and its client is not installed.
    """
    for server in config.recommender.servers.values():
        require_package(server.kind)
    names = [config.recommender.model] if uses_recommender(config) else []
    if config.summary.needs_calls and isinstance(config.engine, LlamaCppEngine | TransformersEngine):
        names.append(config.engine.model)
    for name in names:
        try:
            models.locate(name)
        except OSError as error:
            raise ModelError(
                f"The model {name!r} cannot be read ({error.strerror}); check the path and its rights."
            ) from error


def check_store(config: RunConfig) -> None:
    """Open the database of the summaries, if one is configured.

    Raises:
        StoreError, OutputError, MissingExtraError: it cannot be used.
    """
    if config.store is not None and is_database_url(config.store):
        open_store(config.store).close()


def check_before_summaries(experiment: Experiment, not_here: Container[str] | None = None) -> None:
    """Check the models and prompts of a run and its variants; report all errors at once.

    Args:
        experiment: The run, with its examples.
        not_here: Models that are not examined; if given, no server is called and no GPU is needed.

    Raises:
        ModelError, ConfigError, RunMismatchError, LeakageError: the error found; several become one
            `ConfigError`.
    """
    found: dict[str, InputError] = {}
    for check in _checks(experiment, not_here):
        try:
            check()
        except InputError as error:
            found.setdefault(str(error), error)
    if len(found) == 1:
        raise next(iter(found.values()))
    if found:
        raise ConfigError(list(found))


def _checks(experiment: Experiment, not_here: Container[str] | None) -> Iterator[Callable[[], object]]:
    """Yield the checks of a run and its variants, once for equal settings."""
    if not_here is None:
        yield partial(check_warm_start, experiment)
    done: set[str] = set()

    def is_new(*settings: object) -> bool:
        named, before = repr(settings), len(done)
        done.add(named)
        return len(done) > before

    for one in (experiment.config, *variants_of(experiment.config).values()):
        engine, model = one.engine, one.recommender.model
        unknown = not_here is not None and (engine.kind == "openai" or _model_of(engine) in not_here)
        if one.summary.needs_calls and not unknown and is_new(one.summary, engine, one.protocol):
            yield partial(_check_summaries, experiment, one)
        unknown = not_here is not None and model in not_here
        if not uses_recommender(one) or unknown:
            continue
        if not is_new(one.prompt, one.recommender, one.train and one.train.lora):
            continue
        yield partial(label_tokens, model, one.prompt.template, experiment.dataset.info.domain)
        yield partial(check_context, model, one.prompt)
        if one.train is not None and one.train.warm_start is None:
            from trsr.train.lora import lora_targets

            yield partial(lora_targets, model, one.train.lora)
        if not_here is None:
            if one.recommender.quantization is not None:
                yield partial(_check_quantization, one.recommender)
            for server in one.recommender.servers.values():
                yield partial(check_server, server, one.prompt)


def _check_quantization(recommender: RecommenderConfig) -> None:
    from trsr.llm.transformers import four_bit, resolve_device, resolve_dtype

    where = resolve_device(recommender.device)
    four_bit(where, resolve_dtype(recommender.dtype, where))


def label_tokens(model: str, template: str, domain: str) -> LabelTokens:
    """Find the answer tokens of a model; only its tokenizer and configuration are loaded.

    Raises:
        ModelError: the model cannot be found, an answer is not one token for it, or it does not know the
            tokens of prompts.
    """
    from trsr.llm.transformers import HfTokenizer

    tokenizer = HfTokenizer(models.hf_folder(model))
    loaded = load_ranking_template(template, domain)
    builder = PromptBuilder(loaded, PromptConfig(template=template), tokenizer, str)
    labels = builder.labels()
    group = builder.build((), "", ["item"]).group
    check_vocabulary(read_config(model), tokenizer, (*group.prefix, *group.suffixes[0]))
    return labels


def check_server(server: OpenAIEngine, prompt: PromptConfig) -> None:
    """Refuse ranking prompts that are longer than the context that a server reports.

    Raises:
        ConfigError: naming both numbers.
    """
    context = server_context(server)
    if context is not None and server.scoring == "top_logprobs":
        context -= 1
    prompt.check_length(context, server.model)


def _check_summaries(experiment: Experiment, config: RunConfig) -> None:
    """Refuse summaries whose prompts are longer than the engine or its model reads.

    Unwritten texts count as the shortest possible: a refused run would certainly fail.
    """
    engine = config.engine
    context, cap = engine_context(engine), getattr(engine, "max_prompt_tokens", None)
    if context is None and cap is None:
        return
    same = config.summary == experiment.config.summary
    summarizer = experiment.summarizer if same else bind_summarizer(experiment.dataset, config.summary)
    # The tokenizer of a GGUF file would have to be de-quantised first.
    at_hand = isinstance(engine, TransformersEngine) or Path(_model_of(engine)).is_dir()
    counter = token_counter(engine, rough=not at_hand)
    histories = [History(e.user_id, e.history) for e in summarized(experiment.splits, config)]
    longest = _longest_prompt(histories, summarizer, counter.count)
    if not counter.exact:
        longest = longest * CHARACTERS_A_TOKEN // SURE_CHARACTERS_PER_TOKEN
    about, n_thoughts = "" if counter.exact else "about ", n_thought_tokens(engine)
    n_new = summarizer.params.max_new_tokens + n_thoughts
    shorter = "lower summary.segmentation.block_size or summary.max_field_tokens"
    shorter += ", or engine.thinking_tokens" if n_thoughts else ""
    if context is not None and longest + n_new > context:
        raise ConfigError(
            f"summary: a prompt has {about}{longest} tokens and its text up to {n_new}, but the model "
            f"{_model_of(engine)!r} reads at most {context} together; {shorter}, or use a model "
            "with a longer context."
        )
    if cap is not None and longest > cap:
        raise ConfigError(
            f"engine.max_prompt_tokens: found {cap}, but a prompt for summaries has {about}{longest} tokens; "
            f"raise it, or {shorter}."
        )


def _longest_prompt(
    histories: Sequence[History], summarizer: BoundSummarizer, n_tokens: Callable[..., int]
) -> int:
    """Return the tokens of the longest prompt; the eight with most characters are counted."""
    placeholder = placeholder_text(summarizer)
    prompts = (
        summarizer.prompt(call, [placeholder] * len(call.inputs))
        for history in histories
        for call in plan_user(history, summarizer).calls
    )
    longest = heapq.nlargest(8, prompts, key=lambda p: sum(len(m.content) for m in p.messages))
    return max(map(n_tokens, longest), default=0)


def placeholder_text(summarizer: BoundSummarizer) -> str:
    """Return the shortest summary there can be; a real one may have `max_new_tokens` more."""
    return summary_text(summarizer.template, "x")


def _model_of(engine: EngineConfig) -> str:
    return "" if isinstance(engine, FakeEngine) else engine.model


def check_dataset(experiment: Experiment) -> None:
    """Compare the dataset with the one that the run started with.

    Raises:
        RunMismatchError: it has changed.
    """
    before = experiment.folder.stages().get("data", {}).get("digest")
    if before is not None and before != dataset_digest(experiment):
        raise RunMismatchError(
            f"The dataset in {experiment.dataset_path} was changed after {experiment.folder.path} "
            "began with it; name another run folder with --out, or restore the old dataset."
        )


def dataset_digest(experiment: Experiment) -> str:
    """Return 12 hex digits that change with any file of the dataset."""
    listed = json.dumps(experiment.dataset.info.sha256, sort_keys=True)
    return hashlib.sha256(listed.encode()).hexdigest()[:12]


def uses_recommender(config: RunConfig) -> bool:
    """Return whether a language model ranks."""
    return config.train is not None or "llm_zero_shot" in config.rankers
