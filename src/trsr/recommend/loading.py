"""Loads the model that ranks: the base model as it is, or with the adapter of a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from trsr.llm import models
from trsr.llm.base import LabelScorer, Sharing
from trsr.llm.engines import OpenAIEngine
from trsr.llm.opening import open_remote_scorer
from trsr.recommend.model_folder import AdapterInfo, check_adapter, load_adapter, read_adapter_info

if TYPE_CHECKING:
    from trsr.recommend.scorer import PrefixCache


class RecommenderConfig(BaseModel):
    """The language model that ranks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "smollm2-135m"
    """The embedded model, a hub id or a local folder."""
    dtype: str = "auto"
    device: str = "auto"
    quantization: Literal["4bit"] | None = None
    """`4bit` loads the model in NF4 (bitsandbytes, NVIDIA GPUs only) under a LoRA adapter in float32, as
    QLoRA does; scores are those of the model so rounded."""
    sharing: Sharing = "auto"
    """How candidates share the reading of their prefix: `rows`, `padded` (for GPUs) or `separate`, which
    reads it again for each. Results are equal; models that cannot share are read
    separately. `auto` is `padded` on a GPU, else `rows`."""
    max_batch_tokens: int = Field(default=4096, ge=1)
    """Most tokens of a forward pass when ranking; bounds the memory."""
    servers: dict[Literal["llm", "llm_zero_shot"], OpenAIEngine] = {}
    """Servers that score the test's candidates in place of this process, by ranker: for `llm` one that holds
    the fine-tuned model, for `llm_zero_shot` the base model. `model` still names the tokenizer."""


def open_scorer(
    recommender: RecommenderConfig,
    adapter: Path | None,
    template_hash: str,
    prompt_version: int,
    *,
    server: OpenAIEngine | None = None,
    cache: PrefixCache | None = None,
) -> tuple[LabelScorer, AdapterInfo | None]:
    """Load the model, and what its adapter says about itself.

    Args:
        recommender: Names the base model, its precision and its device.
        adapter: A model folder; None for the base model as it is.
        template_hash: Of the prompt template that will be rendered.
        prompt_version: Of the tokenizer that will read it.
        server: Holds the model and scores in place of this process, which then loads no weights.
        cache: Where prefixes are kept between calls; None to forget them.

    Raises:
        ModelError: the base model cannot be had.
        RunMismatchError: the model folder is damaged, or was trained on another template or base model.
        MissingExtraError: a package is not installed.
    """
    info = None
    if adapter is not None:
        info = read_adapter_info(adapter)
        check_adapter(
            info,
            adapter,
            template_hash=template_hash,
            prompt_version=prompt_version,
            base_model_id=models.model_id(recommender.model),
            quantization=recommender.quantization,
        )
    if server is not None:
        return open_remote_scorer(server), info

    from trsr.llm import prefix_attention
    from trsr.llm.transformers import load_causal_lm
    from trsr.recommend.scorer import SharedPrefixScorer

    model = load_causal_lm(
        recommender.model,
        dtype=recommender.dtype,
        device=recommender.device,
        quantization=recommender.quantization,
    )
    prefix_attention.enable(model, recommender.sharing)
    if adapter is not None:
        adapted = load_adapter(model, adapter)
        # Merged into 4 bits, the adapter would be rounded too: there it stays apart from the weights.
        model = adapted.base_model.model if recommender.quantization else adapted.merge_and_unload()
        model = model.eval()
    return SharedPrefixScorer(model, max_batch_tokens=recommender.max_batch_tokens, cache=cache), info
