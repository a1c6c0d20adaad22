"""Opens the language model that ranks: here, with a run's adapter merged in or without, or on a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trsr.config import RecommenderConfig
from trsr.llm import models
from trsr.llm.adapter import AdapterInfo, check_adapter, load_adapter, read_adapter_info
from trsr.llm.base import LabelScorer
from trsr.llm.engines import OpenAIEngine, open_remote_scorer

if TYPE_CHECKING:
    from trsr.rank.prefix_cache import PrefixCache
    from trsr.rank.shared_prefix import SharedPrefixScorer


def open_scorer(
    recommender: RecommenderConfig,
    adapter: Path | None,
    template_hash: str,
    prompt_version: int,
    *,
    cache: PrefixCache | None = None,
) -> tuple[SharedPrefixScorer, AdapterInfo | None]:
    """Load the model, and what its adapter says about itself.

    Args:
        recommender: Names the base model, its precision and its device.
        adapter: A model folder; None for the base model as it is.
        template_hash: Of the prompt template that will be rendered.
        prompt_version: Of the tokenizer that will read it.
        cache: Where prefixes are kept between calls; None to forget them.

    Raises:
        ModelError: the base model cannot be had.
        RunMismatchError: the model folder is damaged, or was trained on another template or base model.
    """
    from trsr.llm import shared_attention
    from trsr.llm.transformers import load_causal_lm
    from trsr.rank.shared_prefix import SharedPrefixScorer

    info = _checked_info(recommender, adapter, template_hash, prompt_version)
    model = load_causal_lm(
        recommender.model,
        dtype=recommender.dtype,
        device=recommender.device,
        quantization=recommender.quantization,
    )
    shared_attention.enable(model, recommender.sharing)
    if adapter is not None:
        adapted = load_adapter(model, adapter)
        # Merged into 4 bits, the adapter would be rounded too: there it stays beside the weights.
        model = adapted.base_model.model if recommender.quantization else adapted.merge_and_unload()
        model = model.eval()
    scorer = SharedPrefixScorer(model, max_batch_tokens=recommender.max_batch_tokens, cache=cache)
    return scorer, info


def open_server_scorer(
    server: OpenAIEngine,
    recommender: RecommenderConfig,
    adapter: Path | None,
    template_hash: str,
    prompt_version: int,
) -> tuple[LabelScorer, AdapterInfo | None]:
    """Return a scorer over a server that holds the model, and what its adapter says about itself.

    Args:
        server: Where the model is.
        recommender: As for `open_scorer`; no model is loaded.
        adapter: The model folder of what is served; None for the base model as it is.
        template_hash: Of the prompt template that will be rendered.
        prompt_version: Of the tokenizer that will read it.

    Raises:
        RunMismatchError: as for `open_scorer`.
        MissingExtraError: the client's package is not installed.
    """
    return open_remote_scorer(server), _checked_info(recommender, adapter, template_hash, prompt_version)


def _checked_info(
    recommender: RecommenderConfig, adapter: Path | None, template_hash: str, prompt_version: int
) -> AdapterInfo | None:
    if adapter is None:
        return None
    info = read_adapter_info(adapter)
    base = models.model_id(recommender.model)
    check_adapter(
        info,
        adapter,
        template_hash=template_hash,
        prompt_version=prompt_version,
        base_model_id=base,
        quantization=recommender.quantization,
    )
    return info
