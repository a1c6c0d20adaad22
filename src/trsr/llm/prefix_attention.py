"""Shared-prefix (KV) attention and the margins between two answers that are read with it.

Two exact ways: with `rows` each prefix of a packed sequence (see `prefix_packing`) attends to itself once,
and its suffixes to it and themselves as a batch of short rows. `padded` does so for all prefixes at once,
with few products per layer for any number of users. `enable` sets one of them in a transformers model and
checks on a small input that its answers do not change.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trsr.errors import EngineError
from trsr.llm.architecture import difference, hidden_masks, length_limit, refuse_unknown_terms, unknown_terms
from trsr.llm.base import LabelTokens, ScoringGroup, Sharing
from trsr.llm.prefix_packing import Layout, Packed, Part, PrefixKV, Segment, near_mask, pack


@dataclass(frozen=True)
class _Places:
    """The places of B prefixes and R rows of suffixes in a sequence of T tokens.

    Attributes:
        prefixes: Shape (B, P), padded with any place.
        rows: Shape (R, W), as in `Segment`.
        users: Shape (R,), the prefix of each row.
        seen: Shape (R, W, P + W), bool: which of the prefix and their row suffix tokens see.
        order: Shape (T,), each token's place in the flattened `prefixes` and `rows`, one after the other.
    """

    prefixes: torch.Tensor
    rows: torch.Tensor
    users: torch.Tensor
    seen: torch.Tensor
    order: torch.Tensor


def _at(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Select places: (1, H, T, D) and (B, P) to (B, H, P, D)."""
    taken: torch.Tensor = x[0].index_select(1, places.flatten()).unflatten(1, places.shape)
    return taken.transpose(0, 1)


def _attend_prefixes(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None, options: dict[str, Any]
) -> torch.Tensor:
    """Return the outputs of prefixes that see themselves only, shape (B, H, P, D)."""
    mask = near_mask(query.shape[2], window, query.device)
    groups = query.shape[1] // key.shape[1]
    keys, values = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    out: torch.Tensor = scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=mask is None, **options
    )
    return out


def _attend_rows(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor:
    """Return the outputs of rows of suffixes, shape (R, H, W, D).

    Query heads that share a key head are concatenated along the length, so keys are not repeated.

    Args:
        query: Shape (R, H, W, D).
        keys: Shape (R, H_kv, P + W, D).
        values: As `keys`.
        seen: Shape (R, W, P + W), bool.
        options: For torch's attention.
    """
    n_rows, n_heads, width, _ = query.shape
    n_kv = keys.shape[1]
    groups = n_heads // n_kv
    q = query.reshape(n_rows, n_kv, groups * width, -1)
    mask = seen.repeat(1, groups, 1)[:, None]
    out: torch.Tensor = scaled_dot_product_attention(q, keys, values, attn_mask=mask, **options)
    return out.reshape(n_rows, n_heads, width, -1)


def _padded_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    window: int | None,
    options: dict[str, Any],
) -> torch.Tensor:
    """Return the outputs of a packed sequence that holds all its prefixes, shape (1, T, H, D)."""
    places = layout.remembered(("padded", window), partial(_find_places, layout.segments, window))
    prefix = _at(key, places.prefixes), _at(value, places.prefixes)
    first = _attend_prefixes(_at(query, places.prefixes), *prefix, window, options)
    keys, values = (
        torch.cat([read.index_select(0, places.users), _at(own, places.rows)], dim=2)
        for read, own in zip(prefix, (key, value), strict=True)
    )
    later = _attend_rows(_at(query, places.rows), keys, values, places.seen, options)
    flat = torch.cat([x.transpose(1, 2).flatten(0, 1) for x in (first, later)])  # (B P + R W, H, D)
    return flat.index_select(0, places.order)[None]


def _find_places(segments: tuple[Segment, ...], window: int | None) -> _Places:
    device = segments[0].rows.device
    longest = max(1, *(segment.n_prefix for segment in segments))
    widest = max(segment.rows.shape[1] for segment in segments)
    prefixes, rows, seen, order = [], [], [], []
    users: list[int] = []
    n_before = len(segments) * longest
    for number, segment in enumerate(segments):
        place = torch.arange(longest, device=device)
        prefixes.append(segment.start + place.clamp(max=max(0, segment.n_prefix - 1)))
        n_rows, width = segment.rows.shape
        fill = widest - width
        rows.append(pad(segment.rows, (0, fill), value=segment.start))
        mask = pad(segment.mask(window), (0, fill, 0, fill))
        absent = mask.new_zeros(n_rows, widest, longest - segment.n_prefix)
        mask = torch.cat([mask[:, :, : segment.n_prefix], absent, mask[:, :, segment.n_prefix :]], dim=2)
        mask[:, width:, 0] = True  # a place that sees nothing would give NaN
        seen.append(mask)
        order.append(number * longest + place[: segment.n_prefix])
        row, column = segment.order // width, segment.order % width
        order.append(n_before + (len(users) + row) * widest + column)
        users += [number] * n_rows
    return _Places(
        torch.stack(prefixes),
        torch.cat(rows),
        torch.tensor(users, device=device),
        torch.cat(seen),
        torch.cat(order),
    )


NAMES: dict[Sharing, str] = {"rows": "trsr_rows", "padded": "trsr_padded"}
_LONGEST_PROBE = 256  # tokens; longer windows are compared as masks

_log = logging.getLogger(__name__)


def shared_prefix_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend according to the layout; without one, as transformers' `sdpa`, whose interface this has.

    Args:
        module: The attention layer.
        query: Shape (1, H, T, D).
        key: Shape (1, H_kv, T, D), H_kv a divisor of H.
        value: As `key`.
        attention_mask: Only used without a layout.
        scaling: Factor of the scores; None for 1 / sqrt(D).
        dropout: Of the attention weights.
        layout: The location of prefixes and suffixes.
        sliding_window: Positions that a token sees, including its own; None for all before it.
        kwargs: Passed to `sdpa`.

    Returns:
        Outputs of shape (1, T, H, D), and None.

    Raises:
        NotImplementedError: the layer adds an unsupported term to the scores.
    """
    if layout is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
        return out, None
    refuse_unknown_terms(kwargs)
    options = {"dropout_p": dropout, "scale": scaling}
    all_read_here = all(segment.known is None and segment.keep is None for segment in layout.segments)
    if module.config._attn_implementation == NAMES["padded"] and all_read_here:
        return _padded_attention(query, key, value, layout, sliding_window, options), None
    return _row_attention(module, query, key, value, layout, sliding_window, options), None


def _row_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    window: int | None,
    options: dict[str, Any],
) -> torch.Tensor:
    """Return the outputs of a packed sequence, shape (1, T, H, D)."""
    parts = []
    for number, segment in enumerate(layout.segments):
        prefix = _prefix_keys(module, key, value, segment)
        if segment.n_read:
            queries = query[:, :, segment.start : segment.start + segment.n_read]
            parts.append(_attend_prefixes(queries, *prefix, window, options))
        keys, values = (
            torch.cat([read.expand(len(segment.rows), -1, -1, -1), _at(own, segment.rows)], dim=2)
            for read, own in zip(prefix, (key, value), strict=True)
        )
        seen = layout.remembered((number, window), partial(segment.mask, window))
        out = _attend_rows(_at(query, segment.rows), keys, values, seen, options)
        out = out.transpose(0, 1).flatten(1, 2)  # (H, R W, D)
        parts.append(out.index_select(1, segment.order)[None])
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous()


def _prefix_keys(
    module: Any, key: torch.Tensor, value: torch.Tensor, segment: Segment
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the prefix's keys and values, shape (1, H_kv, P, D), of this pass or an earlier one."""
    if segment.known is not None:
        return segment.known.layers[module.layer_idx]
    end = segment.start + segment.n_prefix
    pair = key[:, :, segment.start : end], value[:, :, segment.start : end]
    if segment.keep is not None:
        segment.keep.layers[module.layer_idx] = pair[0].clone(), pair[1].clone()
    return pair


for _name in NAMES.values():
    AttentionInterface.register(_name, shared_prefix_attention)
    AttentionMaskInterface.register(_name, sdpa_mask)


def is_enabled(model: Any) -> bool:
    """Whether a model reads packed sequences."""
    return model.config._attn_implementation in NAMES.values()


def fits(model: Any, group: ScoringGroup) -> bool:
    """Whether a group is short enough to share its prefix exactly; logs once per model if one is not."""
    limit = length_limit(model.config)
    if limit is None or len(group.prefix) + max(map(len, group.suffixes), default=0) <= limit:
        return True
    _warn_too_long(type(model).__name__, limit)
    return False


@lru_cache
def _warn_too_long(name: str, limit: int) -> None:
    _log.warning(
        "%s reads texts of more than %d tokens with other rotary positions; their candidates are read one by "
        "one, which is slower.",
        name,
        limit,
    )


def enable(model: Any, sharing: Sharing = "auto") -> bool:
    """Make a model read packed sequences, if its answers do not change.

    A packed group must give the logits of its candidates read one by one. The configuration and the masks are
    checked for what a short text does not show. A warning names the reason against sharing.

    Args:
        model: A transformers causal language model, before any adapter wraps it.
        sharing: `auto` is `padded` on a GPU and `rows` elsewhere; `separate` leaves the model unchanged.

    Returns:
        Whether the model was changed.
    """
    parts = _probe(model.config)
    sequences = [[*part.prefix, *suffix] for part in parts for suffix in part.suffixes]

    def plain() -> torch.Tensor:
        inputs = [torch.tensor([sequence], device=model.device) for sequence in sequences]
        return torch.stack([model(input_ids=tokens, use_cache=False).logits[0, -1] for tokens in inputs])

    # Whether a batch of texts, padded on the right, gives the same logits as each text alone.
    model.reads_rows = not difference(model, lambda: [run_rows(model, sequences)], plain)
    if sharing == "separate":
        return False
    if sharing == "auto":
        sharing = "padded" if model.device.type == "cuda" else "rows"
    before, name = model.config._attn_implementation, NAMES[sharing]

    def packed() -> Iterator[torch.Tensor]:
        model.set_attn_implementation(name)
        yield from _read_packed(model, parts)

    reason = _obstacle(model) or difference(model, packed, plain)
    if not reason:
        return True
    if model.config._attn_implementation != before:
        model.set_attn_implementation(before)
    _log.warning(
        "%s cannot share a prefix exactly (%s); every candidate is read by itself, which is slower.",
        type(model).__name__,
        reason,
    )
    return False


def _obstacle(model: Any) -> str:
    if not model._can_set_attn_implementation():
        return "its attention cannot be replaced"
    if unknown := unknown_terms(model.config):
        return f"what {unknown} does to attention is not known here"
    return hidden_masks(model, torch.tensor([_probe(model.config)[0].prefix], device=model.device))


def together(model: Any, lengths: Sequence[int], max_tokens: int) -> int:
    """Return how many of some texts, shortest first, one pass reads exactly as each alone; at least one.

    Args:
        model: Any causal language model, perhaps wrapped for several processes; one text at a time unless
            `enable` has checked it.
        lengths: Number of tokens of each text, ascending.
        max_tokens: Tokens of a pass, including padding.
    """
    inner = getattr(model, "module", model)
    if not getattr(inner, "reads_rows", False):
        return 1
    if length_limit(inner.config) is not None:  # positions depend on the longest text of a pass
        lengths = [length for length in lengths if length == lengths[0]]
    return max(1, sum(n * length <= max_tokens for n, length in enumerate(lengths, start=1)))


def run_rows(model: Any, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the logits after the last token of each sequence, shape (B, V), float32."""
    device = model.device
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
    tokens = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.long, device=device)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = torch.tensor(sequence, device=device)
    kept, where = (lengths - 1).unique(return_inverse=True)
    options: dict[str, Any] = {"logits_to_keep": kept, "use_cache": False}
    if len(kept) > 1:
        mask = torch.arange(tokens.shape[1], device=device)[None] < lengths[:, None]
        options["attention_mask"] = mask.long()
    logits = model(input_ids=tokens, **options).logits
    if logits.shape[1] != len(kept):  # the model ignores `logits_to_keep`
        where = lengths - 1
    found: torch.Tensor = logits[torch.arange(len(sequences), device=device), where].float()
    return found


def _probe(config: Any) -> list[Part]:
    """Return two groups to compare; the first is longer than the sliding window, if that is short enough."""
    window = getattr(config.get_text_config(decoder=True), "sliding_window", None)
    crosses = window + 3 if isinstance(window, int) and window < _LONGEST_PROBE else 0
    n = min(max(7, crosses), (length_limit(config) or _LONGEST_PROBE) - 4)
    prefix = [3 + (7 * place + place * place // 3) % 26 for place in range(n)]
    return [
        Part(tuple(prefix), ((19, 4), (8,), (6, 23, 9, 12), (4, 19))),
        Part((14, 7, 3), ((8, 5, 21, 2), (19, 4))),
    ]


def _read_packed(model: Any, parts: Sequence[Part]) -> Iterator[torch.Tensor]:
    """Yield the logits of packed sequences read at once, and with prefixes of an earlier pass."""
    yield run_packed(model, pack(parts).to(model.device)).logits[0].float()
    kept = [PrefixKV() for _ in parts]
    first = [replace(part, suffixes=part.suffixes[:1], keep=kv) for part, kv in zip(parts, kept, strict=True)]
    run_packed(model, pack(first).to(model.device))
    again = [replace(part, known=kv) for part, kv in zip(parts, kept, strict=True)]
    yield run_packed(model, pack(again).to(model.device)).logits[0].float()


def run_packed(model: Any, packed: Packed, *, every_position: bool = False) -> Any:
    """Run a model on a packed sequence.

    Its logits have one row per answer, shape (1, n_suffixes, ...), or one per token, shape (1, T, ...).
    """
    return model(
        input_ids=packed.tokens,
        # A four-dimensional mask is passed on unchanged; `layout` is used instead.
        attention_mask=torch.empty(1, 1, 0, 0, dtype=torch.bool, device=packed.tokens.device),
        position_ids=packed.positions,
        logits_to_keep=0 if every_position else packed.answers,
        use_cache=False,
        layout=packed.layout,
    )


def finite(margins: npt.NDArray[np.float32], model: Any) -> npt.NDArray[np.float32]:
    """Return a model's margins.

    Raises:
        EngineError: some are NaN or infinite.
    """
    if n_wrong := int((~np.isfinite(margins)).sum()):
        dtype = str(model.dtype).removeprefix("torch.")
        raise EngineError(
            f"The model gave {n_wrong} of {margins.size} margins that are NaN or infinite: it overflows in "
            f"{dtype}, its training has diverged, or its weights are damaged; set recommender.dtype to "
            "bfloat16 or float32, or lower train.learning_rate."
        )
    return margins


class _LabelHead(nn.Module):
    """Two rows of a language-model head: the positive answer's and the negative answer's."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, head: nn.Linear, labels: LabelTokens) -> None:
        super().__init__()
        rows = [labels.positive, labels.negative]
        bias = None if head.bias is None else head.bias[rows].detach().float()
        self.register_buffer("weight", head.weight[rows].detach().float(), persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the two logits, shape (..., 2)."""
        return nn.functional.linear(hidden.float(), self.weight, self.bias)


@contextmanager
def label_head(model: Any, labels: LabelTokens) -> Iterator[tuple[int, int]]:
    """Make a model compute only the logits of the two answers inside the block.

    Scaling and soft capping of logits are kept. A head that is more than a matrix is not changed.

    Yields:
        The columns of the positive and the negative answer in the model's logits.
    """
    whole = model.get_output_embeddings()
    columns = labels.positive, labels.negative
    if type(whole) is not nn.Linear:
        yield columns
        return
    try:
        model.set_output_embeddings(_LabelHead(whole, labels))
        columns = 0, 1
    except TypeError:  # models with a second reference to the head's bias
        model.set_output_embeddings(whole)
    try:
        yield columns
    finally:
        model.set_output_embeddings(whole)


def packed_margins(model: Any, packed: Packed, labels: tuple[int, int]) -> torch.Tensor:
    """Return the margins (n_suffixes,) of a packed sequence, float32, with gradients if enabled.

    Args:
        model: A model that reads packed sequences (see `enable`).
        packed: The sequence.
        labels: The columns of the answers, from `label_head`.
    """
    return _margins(run_packed(model, packed).logits[0].float(), labels)


def separate_margins(
    model: Any, group: ScoringGroup, labels: tuple[int, int], max_tokens: int
) -> torch.Tensor:
    """Return the margins (n_suffixes,) of a group, each candidate read as its own sequence.

    Args:
        model: Any causal language model.
        group: The candidates.
        labels: The columns of the answers, from `label_head`.
        max_tokens: Tokens of a forward pass, including padding; at least one candidate is read.
    """
    order = sorted(range(len(group.suffixes)), key=lambda place: len(group.suffixes[place]))
    found: list[torch.Tensor] = []
    done = 0
    while done < len(order):
        sequences = [[*group.prefix, *group.suffixes[place]] for place in order[done:]]
        n = together(model, [len(sequence) for sequence in sequences], max_tokens)
        found.append(_margins(run_rows(model, sequences[:n]), labels))
        done += n
    margins = torch.cat(found)
    return margins[torch.tensor(order, device=margins.device).argsort()]


def _margins(logits: torch.Tensor, labels: tuple[int, int]) -> torch.Tensor:
    positive, negative = labels
    return logits[:, positive] - logits[:, negative]
