"""What is found out before hours of work: a model or store that cannot serve, a dataset that has changed.

It would come to light only at training or ranking, when all summaries have been paid for, or never. Models
are looked into without their weights: tokenizer, configuration, and the names of their layers. A run does
this before its first summary, `trsr plan` before it counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trsr.data.dataset import Dataset
from trsr.errors import ConfigError, InputError, MissingExtraError, ModelError, RunMismatchError
from trsr.experiment.config import RunConfig, variants_of
from trsr.experiment.experiment import Workbench, item_cuts
from trsr.experiment.experiment import summarised as summarised_examples
from trsr.experiment.forecast import longest_prompt
from trsr.llm import models
from trsr.llm.base import LabelTokens
from trsr.llm.context import check_vocabulary, context_length, read_config
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
from trsr.llm.opening import engine_context, server_context, token_counter
from trsr.recommend.loading import RecommenderConfig
from trsr.recommend.prompt import PromptBuilder, PromptConfig, load_ranking_template
from trsr.splitting.examples import build_examples
from trsr.storage import read_json
from trsr.summarize.store import open_store
from trsr.summarize.store_url import is_database
from trsr.summarize.user_plan import Summariser, make_summariser
from trsr.text import FieldCut
from trsr.types import History

FILE = "field_cuts.json"
_SETTINGS = {
    "prompt": ("prompt.max_field_tokens", "tokens"),
    "summary": ("summary.max_field_tokens", "words"),
}


def shown_items(bench: Workbench) -> set[str]:
    """Return the items that the prompts of the test show."""
    n_recent = bench.config.prompt.n_recent
    return {
        item
        for example in bench.splits.test
        for item in (*example.candidates, *(example.history[-n_recent:] if n_recent else ()))
    }


def summary_cuts(bench: Workbench) -> Callable[[str], dict[str, FieldCut]]:
    """Return what `summary.max_field_tokens` cuts from an item's fields, by its id."""
    summary = bench.config.summary
    return item_cuts(bench.dataset, summary.fields, summary.max_field_tokens, None)


def write_cuts(
    bench: Workbench, part: str, cuts: Callable[[str], Mapping[str, FieldCut]], items: Iterable[str]
) -> None:
    """Keep in the run what one cap cut from the texts of some items."""
    fields: dict[str, dict[str, int]] = {}
    for item in items:
        for field, cut in cuts(item).items():
            counts = fields.setdefault(field, {"texts": 0, "cut_texts": 0, "tokens": 0, "cut_tokens": 0})
            counts["texts"] += 1
            counts["cut_texts"] += cut.n_cut > 0
            counts["tokens"] += cut.n_tokens
            counts["cut_tokens"] += cut.n_cut
    cap = getattr(bench.config, part).max_field_tokens
    bench.folder.write_json(FILE, {**read_cuts(bench), part: {"cap": cap, "fields": fields}})


def read_cuts(bench: Workbench) -> dict[str, Any]:
    """Return what `write_cuts` kept; empty for a run made before it did."""
    file = bench.folder.path / FILE
    return dict(read_json(file)) if file.exists() else {}


def cut_sentences(facts: Mapping[str, Any]) -> list[str]:
    """Say which fields were cut, and how much of them."""
    said = []
    for part, found in facts.items():
        setting, unit = _SETTINGS[part]
        cut = [
            f"{field}: {counts['cut_texts']:,} of {counts['texts']:,} texts cut, "
            f"{counts['cut_tokens'] / counts['tokens']:.0%} of their {unit}"
            for field, counts in found["fields"].items()
            if counts["cut_tokens"]
        ]
        if cut:
            said.append(f"{setting} ({found['cap']}) cut {'; '.join(cut)}.")
    return said


Summarised = Callable[[RunConfig], tuple[Sequence[History], Summariser]]
"""Returns the histories that a configuration summarises, and with what."""
SURE_CHARACTERS_A_TOKEN = 6
"""Where a count is rough, a prompt is refused only if it is too long even at so many."""


def check_models(config: RunConfig) -> None:
    """Look up the models that a run will load; nothing is downloaded and nothing written.

    Raises:
        ModelError: one of them is unknown, or may not be looked into.
        MissingExtraError: they are to be asked on a server, and the client is not installed.
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
    """Open the database that is to keep the summaries.

    Raises:
        StoreError, OutputError, MissingExtraError: it cannot be used.
    """
    if config.store is not None and is_database(config.store):
        open_store(config.store).close()


def check_before_summaries(
    config: RunConfig,
    domain: str,
    summarised: Summarised,
    *more: Callable[[], object],
    not_here: Container[str] | None = None,
) -> None:
    """Check what a run and its variants ask of their models, and say all that is wrong at once.

    Args:
        config: The run.
        domain: That of its data.
        summarised: Says what a configuration summarises.
        more: What else is to be checked; each raises what it finds.
        not_here: Models that are not looked into; given, no server is asked either.

    Raises:
        ModelError, ConfigError, RunMismatchError, LeakageError: what is wrong; several things are one
            `ConfigError`.
    """
    found: dict[str, InputError] = {}
    for check in (*more, *_model_checks(config, domain, summarised, not_here)):
        try:
            check()
        except InputError as error:
            found.setdefault(str(error), error)
    if len(found) == 1:
        raise next(iter(found.values()))
    if found:
        raise ConfigError(list(found))


def check_plan(config: RunConfig, dataset: Dataset) -> list[str]:
    """Check what a run would, with the models that are on this machine; no server is asked.

    Returns:
        A sentence for each model that is not checked.

    Raises:
        ModelError, ConfigError: as `check_before_summaries`; also for a model that the hub does not have.
    """
    configs = [config, *variants_of(config).values()]
    names = {one.recommender.model for one in configs if uses_recommender(one)}
    names |= {one.engine.model for one in configs if isinstance(one.engine, TransformersEngine)}
    try:
        missing = {name for name in names if models.is_missing(name)}
        splits = build_examples(dataset, config.protocol, config.seed)

        def planned(one: RunConfig) -> tuple[list[History], Summariser]:
            examples = summarised_examples(splits, one)
            return [History(e.user_id, e.history) for e in examples], make_summariser(dataset, one.summary)

        check_before_summaries(config, dataset.info.domain, planned, not_here=missing)
    except MissingExtraError as error:
        return [f"The models are not looked into: {error}"]
    return [
        f"The model {name!r} is not on this machine, so that its answers, context and layers are not checked."
        for name in sorted(missing)
    ]


def _model_checks(
    config: RunConfig, domain: str, summarised: Summarised, not_here: Container[str] | None
) -> Iterator[Callable[[], object]]:
    """Yield the checks of a run and its variants, each once."""
    done: set[str] = set()
    for one in (config, *variants_of(config).values()):
        asked = not_here is None or not (one.engine.kind == "openai" or _model_of(one.engine) in not_here)
        if asked and one.summary.needs_calls and _is_new(done, one.summary, one.engine, one.protocol):
            yield partial(_check_summaries, one, summarised)
        if uses_recommender(one) and (not_here is None or one.recommender.model not in not_here):
            settings = (one.prompt, one.recommender, one.train and one.train.lora)
            if _is_new(done, *settings):
                if one.recommender.quantization is not None and not_here is None:
                    yield partial(_check_quantization, one.recommender)
                yield from recommender_checks(one, domain)
                servers = one.recommender.servers.values() if not_here is None else ()
                for server in servers:
                    yield partial(check_server, server, one.prompt)


def _is_new(done: set[str], *settings: object) -> bool:
    named = repr(settings)
    is_new = named not in done
    done.add(named)
    return is_new


def recommender_checks(config: RunConfig, domain: str) -> Iterable[Callable[[], object]]:
    """Return the checks of the model that ranks: answers, context, the layers that are to be adapted."""
    model, prompt, train = config.recommender.model, config.prompt, config.train
    yield partial(label_tokens, model, prompt.template, domain)
    yield partial(check_context, model, prompt)
    if train is not None and train.warm_start is None:
        from trsr.train.lora import lora_targets

        yield partial(lora_targets, model, train.lora)


def _check_quantization(recommender: RecommenderConfig) -> None:
    from trsr.llm.transformers import four_bit, resolve_device, resolve_dtype

    where = resolve_device(recommender.device)
    four_bit(where, resolve_dtype(recommender.dtype, where))


def label_tokens(model: str, template: str, domain: str) -> LabelTokens:
    """Find the answer tokens of a model; only its tokenizer and configuration are loaded.

    Raises:
        ModelError: the model cannot be had, an answer is not one token for it, or the tokens of prompts are
            unknown to it.
    """
    from trsr.llm.transformers import HfTokenizer

    tokenizer = HfTokenizer(models.hf_folder(model))
    loaded = load_ranking_template(template, domain)
    builder = PromptBuilder(loaded, PromptConfig(template=template), tokenizer, str)
    labels = builder.labels()
    group = builder.build((), "", ["item"]).group
    check_vocabulary(read_config(model), tokenizer, (*group.prefix, *group.suffixes[0]))
    return labels


def check_context(model: str, prompt: PromptConfig) -> None:
    """Refuse ranking prompts that are longer than a model reads; the answer is read at their last token.

    Raises:
        ConfigError: naming both numbers.
    """
    _check_prompt(context_length(model), prompt, model)


def check_server(server: OpenAIEngine, prompt: PromptConfig) -> None:
    """Refuse ranking prompts that are longer than a server says that its model reads.

    Raises:
        ConfigError: naming both numbers.
    """
    context = server_context(server)
    _check_prompt(
        context if context is None or server.scoring != "top_logprobs" else context - 1, prompt, server.model
    )


def _check_prompt(context: int | None, prompt: PromptConfig, model: str) -> None:
    if context is not None and prompt.max_tokens > context:
        raise ConfigError(
            f"prompt.max_tokens: found {prompt.max_tokens}, but the model {model!r} reads at most {context} "
            f"tokens; set it to {context} or less, or use a model with a longer context."
        )


def _check_summaries(config: RunConfig, summarised: Summarised) -> None:
    check_summary_prompts(*summarised(config), config.engine)


def check_summary_prompts(histories: Sequence[History], summariser: Summariser, engine: EngineConfig) -> None:
    """Refuse summaries whose prompts are longer than the engine or its model reads.

    Texts not yet written are taken to be short: what is refused here would certainly fail.

    Raises:
        ConfigError: naming both numbers.
    """
    context, cap = engine_context(engine), getattr(engine, "max_prompt_tokens", None)
    if context is None and cap is None:
        return
    n_new = summariser.params.max_new_tokens + n_thought_tokens(engine)
    counter = token_counter(engine) if _counts_at_once(engine) else token_counter(engine, rough=True)
    longest = longest_prompt(histories, summariser, counter.count)
    about = "" if counter.exact else "about "
    if not counter.exact:
        longest = longest * CHARACTERS_A_TOKEN // SURE_CHARACTERS_A_TOKEN
    shorter = "lower summary.segmentation.block_size or summary.max_field_tokens"
    shorter += ", or engine.thinking_tokens" if n_thought_tokens(engine) else ""
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


def _counts_at_once(engine: EngineConfig) -> bool:
    """Return whether the tokenizer is at hand; that of a GGUF file costs a de-quantising first."""
    return Path(_model_of(engine)).is_dir() or isinstance(engine, TransformersEngine)


def _model_of(engine: EngineConfig) -> str:
    return "" if isinstance(engine, FakeEngine) else engine.model


def check_dataset(bench: Workbench) -> None:
    """Compare the dataset with the one that the run began with.

    Raises:
        RunMismatchError: it was changed since.
    """
    before = bench.folder.stages().get("data", {}).get("digest")
    if before is not None and before != dataset_digest(bench):
        raise RunMismatchError(
            f"The dataset in {bench.dataset_path} was changed after {bench.folder.path} had begun with it; "
            "name another run folder with --out, or bring the old dataset back."
        )


def dataset_digest(bench: Workbench) -> str:
    """Return 12 hex digits that change with any file of the dataset."""
    listed = json.dumps(bench.dataset.info.sha256, sort_keys=True)
    return hashlib.sha256(listed.encode()).hexdigest()[:12]


def uses_recommender(config: RunConfig) -> bool:
    """Return whether a language model ranks."""
    return config.train is not None or "llm_zero_shot" in config.rankers
