"""Opens what a service needs from a run folder, or from a model folder and a dataset. Writes nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from trsr.config import FolderData, RecommenderConfig, load_config
from trsr.data.tables import Dataset
from trsr.errors import DataError, RunMismatchError
from trsr.llm import models
from trsr.llm.adapter import FILE_NAME, read_adapter_info
from trsr.llm.engines import DEFAULT_ENGINE, EngineConfig
from trsr.pipeline.preflight import check_context
from trsr.pipeline.scorer import open_scorer
from trsr.pipeline.workbench import check_fields, make_summariser
from trsr.prompt.ranking import PromptBuilder, PromptConfig, load_ranking_template
from trsr.rank.calibration import Calibration
from trsr.serve.catalogue import Catalogue
from trsr.serve.recommender import Recommender
from trsr.serve.retrieval import Retriever
from trsr.summarize.plan import SummaryConfig
from trsr.summarize.run import Summariser

CACHE_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Serving:
    """The parts of a service, over one catalogue: an item put into it is known to all of them."""

    recommender: Recommender
    retriever: Retriever
    summariser: Summariser
    engine: EngineConfig
    """Writes the profiles; not started."""
    dataset: Dataset
    catalogue: Catalogue
    summaries: str | Path | None
    """Where the run keeps the summaries it wrote: a file, or the URL of a database; None if nowhere."""


@dataclass(frozen=True)
class _Settings:
    """What a run folder or a model folder says."""

    recommender: RecommenderConfig
    adapter: Path | None
    prompt: PromptConfig
    summary: SummaryConfig
    engine: EngineConfig
    data: Path | None
    summaries: str | Path | None


def open_for_serving(
    model_or_run: Path, data: Path | None = None, *, cache_bytes: int = CACHE_BYTES
) -> Serving:
    """Load the model, its prompt and its dataset.

    Args:
        model_or_run: A run folder, or a model folder: then profiles are made with the default summary
            settings and engine, since a model folder does not say how they were made.
        data: The dataset folder; needed with a model folder, else the run's own is the default.
        cache_bytes: Most memory for prefixes read before.

    Raises:
        RunMismatchError: the folder is neither, is not finished, or was made by something else.
        DataError: there is no dataset, or it is damaged.
        ModelError: the base model cannot be had.
        EngineError: it gives margins that are no numbers.
        MissingExtraError: a package is missing.
    """
    from trsr.llm.transformers import HfTokenizer
    from trsr.rank.prefix_cache import PrefixCache

    settings = _settings(model_or_run)
    folder = data or settings.data
    if folder is None:
        raise DataError(f"{model_or_run} is a model folder, which holds no data; name a dataset with --data.")
    dataset = Dataset.open(folder)
    prompt = settings.prompt
    check_context(settings.recommender.model, prompt)
    check_fields(dataset, prompt.fields)
    tokenizer = HfTokenizer(models.hf_folder(settings.recommender.model))
    template = load_ranking_template(prompt.template, dataset.info.domain)
    catalogue = Catalogue(dataset.catalogue(), dataset.info.text_fields)
    texts = catalogue.texts(prompt.fields, prompt.max_field_tokens, tokenizer)
    builder = PromptBuilder(template, prompt, tokenizer, texts)
    labels = builder.labels()
    scorer, info = open_scorer(
        settings.recommender,
        settings.adapter,
        template.hash,
        tokenizer.prompt_version,
        cache=PrefixCache(cache_bytes),
    )
    saved = info.calibration if info is not None else None
    recommender = Recommender(
        scorer,
        builder,
        labels if info is None else info.labels,
        catalogue,
        model_name=model_or_run.resolve().name,
        calibration=Calibration.from_json(saved) if saved is not None else None,
        knows=scorer.knows,
    )
    recommender.rerank("probe", ["probe"])
    return Serving(
        recommender=recommender,
        retriever=Retriever(catalogue, dataset.info.category_fields, _popularity(dataset)),
        summariser=_live(make_summariser(dataset, settings.summary), catalogue),
        engine=settings.engine,
        dataset=dataset,
        catalogue=catalogue,
        summaries=settings.summaries,
    )


def _settings(folder: Path) -> _Settings:
    """Read a run folder or a model folder."""
    if (folder / "config.yaml").is_file():
        config = load_config(folder / "config.yaml")
        adapter = folder / "model" if config.train is not None else None
        own = config.data.path if isinstance(config.data, FolderData) else folder / "data"
        prompt = _trained_prompt(adapter, config.prompt)
        file = folder / "summaries.sqlite"
        summaries = config.store or (file if file.is_file() else None)
        return _Settings(config.recommender, adapter, prompt, config.summary, config.engine, own, summaries)
    if (folder / FILE_NAME).is_file():
        info = read_adapter_info(folder)
        prompt = _trained_prompt(folder, PromptConfig.model_validate(info.prompt))
        base = RecommenderConfig.model_validate({"model": info.base_model, "quantization": info.quantization})
        return _Settings(base, folder, prompt, SummaryConfig(), DEFAULT_ENGINE, None, None)
    raise RunMismatchError(
        f"{folder} is neither a run folder nor a model folder; make one with `trsr run` or `trsr demo`."
    )


def _trained_prompt(adapter: Path | None, prompt: PromptConfig) -> PromptConfig:
    """Name the template that the adapter was trained on, whatever the domain of the data it now serves."""
    if adapter is None:
        return prompt
    return prompt.model_copy(update={"template": read_adapter_info(adapter).template})


def _live(summariser: Summariser, catalogue: Catalogue) -> Summariser:
    """Let a summariser read items as the catalogue has them now."""
    text = catalogue.texts(summariser.config.fields, summariser.config.max_field_tokens, None)
    return replace(
        summariser,
        items=catalogue.items,
        item_text=text,
        n_tokens=lambda item_id: len(text(item_id).split()),
    )


def _popularity(dataset: Dataset) -> dict[str, int]:
    """Return how many users met each item."""
    counts = dataset.events().group_by("item_id").agg(pl.col("user_id").n_unique())
    return dict(counts.collect().iter_rows())
