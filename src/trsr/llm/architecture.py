"""Find out from a model's configuration and masks what its attention and positions depend on.

A short probe shows neither a window of thousands of tokens nor positions that change with the length.
Unknown settings are reported here, and `prefix_attention` and `generation` then read texts one by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trsr.errors import first_line

_FIXED_ROPE = frozenset({None, "default", "linear", "llama3", "yarn", "proportional", "mrope"})
# Rotary positions that change with the longest sequence of a pass.
_ROPE_BY_LENGTH = frozenset({"dynamic", "longrope"})
# Arguments by which some architectures change the scores of attention.
_UNKNOWN_ARGUMENTS = ("softcap", "s_aux", "position_bias", "head_mask")
# Names of settings of attention that is no function of the distance between two tokens.
_LONG_RANGE = re.compile(
    "window|chunk|sparse|alibi|dilat|stride|local_|lsh|hash|compress|index_topk|index_block|indexer"
    "|temperature_tuning|scaling_n_floor|logn|ntk|block_size|random_blocks|segment|memory_len|mem_len"
)
# Exceptions: names with another meaning, or settings that the masks show (`hidden_masks`).
_UNDERSTOOD = re.compile(
    r"_?(prefix_dense_)?sliding_window(_pattern|_size)?|use_sliding_window|max_window_layers|chunk_size_feed_forward"
    r"|(mamba_)?chunk_size|attention_chunk_size|local_attention|decoder_sparse_step|num_local_experts|index_topk_freq"
)
# Relative differences up to this are rounding; wrong positions or masks change logits by far more.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}
# Raised by models that do not support the probe.
_PROBE_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError)
_WATCH = "trsr_watch"
_MOST_POSITIONS = 1 << 20


def difference(
    model: Any, read: Callable[[], Iterable[torch.Tensor]], plain: Callable[[], torch.Tensor]
) -> str:
    """Return why logits computed in other ways differ from the plain ones; empty if they are equal.

    Args:
        model: A causal language model.
        read: Yields logits of the other ways, shape (n_texts, V).
        plain: Returns the logits of texts read one by one, shape (n_texts, V).
    """
    try:
        with torch.inference_mode():
            expected = plain().float()
            spread = (expected - expected.mean(dim=0)).norm()
            for found in read():
                if found.shape != expected.shape:
                    return "it gives the logits of other tokens than those requested"
                error = float((found - expected).norm() / spread)
                if not error <= _TOLERANCE[model.dtype]:  # also if it is NaN
                    return f"its answers differ by {error:.1g}"
    except _PROBE_ERRORS as problem:
        return first_line(problem)
    return ""


def length_limit(config: Any) -> int | None:
    """Return the text length beyond which rotary positions depend on it; None for no limit."""
    limits = []
    for rope in _ropes(config):
        kind = str(rope.get("rope_type"))
        if kind == "longrope":
            limits.append(int(rope.get("original_max_position_embeddings") or _context(config)))
        elif "dynamic" in kind:
            limits.append(_context(config))
    return min(limits, default=None)


def unknown_terms(config: Any) -> str:
    """Name the settings that may change attention or positions in unknown ways; empty for none."""
    kinds = {rope.get("rope_type") for rope in _ropes(config)} - _FIXED_ROPE - _ROPE_BY_LENGTH
    found = [f"rope_type={kind}" for kind in sorted(map(str, kinds))]
    for name, value in sorted(config.get_text_config(decoder=True).to_dict().items()):
        if value and _LONG_RANGE.search(name) and not _UNDERSTOOD.fullmatch(name):
            found.append(f"{name}={value}" if isinstance(value, int | float | str) else name)
    return ", ".join(found)


def refuse_unknown_terms(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that change attention scores in unsupported ways.

    Raises:
        NotImplementedError: naming the first.
    """
    if terms := [name for name in _UNKNOWN_ARGUMENTS if arguments.get(name) is not None]:
        raise NotImplementedError(f"attention with {terms[0]} cannot share a prefix here")


def forget_lengths(model: nn.Module) -> None:
    """Make dynamic rotary positions independent of longer texts read before."""
    for module in model.modules():
        if "dynamic" in str(getattr(module, "rope_type", "")) and hasattr(module, "max_seq_len_cached"):
            module.register_forward_pre_hook(_forget_length)


def _forget_length(module: Any, _args: Any) -> None:
    for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
        setattr(module, name, module.original_max_seq_len)
    for name, used in list(module.named_buffers(recurse=False)):
        first = getattr(module, name.removesuffix("inv_freq") + "original_inv_freq", None)
        if first is not None:
            module.register_buffer(name, first.to(used.device).clone(), persistent=False)


def hidden_masks(model: Any, tokens: torch.Tensor) -> str:
    """Describe masks that hide more than the sliding windows named by their layers; empty for none.

    The masks are evaluated over the model's whole context, however short `tokens` are.

    Args:
        model: A causal language model whose attention can be replaced.
        tokens: Shape (1, T), any text.
    """
    watch = _Watch(_context(model.config))
    AttentionInterface.register(_WATCH, watch.attend)
    AttentionMaskInterface.register(_WATCH, watch.make_mask)
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(_WATCH)
        with torch.inference_mode():
            model(input_ids=tokens, use_cache=False)
    except _PROBE_ERRORS as problem:
        return first_line(problem)
    finally:
        model.set_attn_implementation(before)
    return watch.reason


class _Watch:
    """Attends as `sdpa` and notes the first mask not explained by its layer's window."""

    def __init__(self, n_positions: int) -> None:
        self.reason = ""
        self._n_positions = min(n_positions, _MOST_POSITIONS)
        self._made: list[tuple[torch.Tensor, Callable[..., Any]]] = []
        self._explained: dict[tuple[int, int | None], bool] = {}

    def make_mask(self, *args: Any, **kwargs: Any) -> torch.Tensor | None:
        mask: torch.Tensor | None = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
        if mask is not None:
            self._made.append((mask, kwargs["mask_function"]))
        return mask

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> Any:
        refuse_unknown_terms(kwargs)
        if attention_mask is not None and not self.reason:
            self.reason = self._judge(attention_mask, sliding_window)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    def _judge(self, mask: torch.Tensor, window: int | None) -> str:
        for number, (made, function) in enumerate(self._made):
            if made.data_ptr() == mask.data_ptr() and made.shape == mask.shape:
                if (number, window) not in self._explained:
                    self._explained[number, window] = self._is_explained(function, window, mask.device)
                if self._explained[number, window]:
                    return ""
                named = "" if window is None else f" of {window}"
                return f"its masks hide more than the windows{named} that its layers name"
        return "its layers make masks of their own"

    def _is_explained(self, function: Callable[..., Any], window: int | None, device: torch.device) -> bool:
        """Whether a mask is causal, within the window if any, at positions all over the context."""
        n = self._n_positions
        edges = {2**k + d for k in range(21) for d in (-1, 0)} | {n - 1}
        edges |= set() if window is None else {window - 1, window, window + 1}
        first = torch.zeros((), dtype=torch.long, device=device)
        for place in sorted(edge for edge in edges if 0 <= edge < n):
            keys = torch.arange(min(place + 2, n), device=device)
            query = torch.full_like(keys, place)
            expected = keys <= query if window is None else (keys <= query) & (query - keys < window)
            try:
                seen = torch.as_tensor(function(first, first, query, keys)).expand_as(expected)
            except (IndexError, RuntimeError):  # the mask depends on more than positions
                return False
            if not bool((seen == expected).all()):
                return False
        return True


def _context(config: Any) -> int:
    """Return the context length in a configuration; 2^17 if it has none."""
    return int(getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or 1 << 17)


def _ropes(config: Any) -> list[dict[str, Any]]:
    """Return the rotary settings: one, or one per kind of layer."""
    found = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    nested = [rope for rope in found.values() if isinstance(rope, dict) and "rope_type" in rope]
    return nested or [found]
