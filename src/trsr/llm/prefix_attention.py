"""Attention over prefixes that many suffixes share, at the cost of what is really seen.

Three ways, all exact: `rows` lets each prefix of a packed sequence (see `packing`) attend to itself once, and
its suffixes to it and to themselves as a batch of short rows; `padded` does so for all prefixes at once, with
few products a layer however many users there are; `blocks` is one block-sparse product. `enable` gives one
of them to a transformers model and checks on a small input that its answers stay what they are
without sharing; a model whose answers change is left as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trsr.llm.architecture import (
    TOLERANCE,
    distance,
    hidden_masks,
    length_limit,
    refuse_unknown_terms,
    unknown_terms,
)
from trsr.llm.base import ScoringGroup, Sharing
from trsr.llm.block_attention import block_attention
from trsr.llm.prefix_packing import Layout, Packed, Part, PrefixKV, Segment, near_mask, pack


@dataclass(frozen=True)
class _Places:
    """Where the tokens of B prefixes and R rows of suffixes stand in a sequence of T tokens.

    Attributes:
        prefixes: Shape (B, P), filled up with any place.
        rows: Shape (R, W), as in `Segment`.
        users: Shape (R,), the prefix of each row.
        seen: Shape (R, W, P + W), bool: what suffix tokens see, first of the prefix, then of their row.
        order: Shape (T,), for each token its place among those of `prefixes` and `rows`, one after another.
    """

    prefixes: torch.Tensor
    rows: torch.Tensor
    users: torch.Tensor
    seen: torch.Tensor
    order: torch.Tensor


def can_pad(layout: Layout) -> bool:
    """Whether all prefixes stand in the sequence, and none is kept."""
    return all(segment.known is None and segment.keep is None for segment in layout.segments)


def padded_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    """Return the outputs of a packed sequence, shape (1, T, H, D).

    Args:
        query: Shape (1, H, T, D).
        key: Shape (1, H_kv, T, D), H_kv a divisor of H.
        value: As `key`.
        layout: Where prefixes and suffixes stand; `can_pad` holds.
        scaling: Factor of the scores; None for 1 / sqrt(D).
        dropout: Of the attention weights.
        window: Positions a token sees, its own included; None for all before it.
    """
    places = layout.remembered(("padded", window), partial(_find_places, layout.segments, window))
    n_heads, n_kv = query.shape[1], key.shape[1]
    groups = n_heads // n_kv

    def at(x: torch.Tensor, where: torch.Tensor) -> torch.Tensor:  # (1, h, T, D) -> (B, h, P, D)
        taken: torch.Tensor = x[0].index_select(1, where.flatten()).unflatten(1, where.shape)
        return taken.transpose(0, 1)

    known = [at(x, places.prefixes) for x in (key, value)]
    whole_keys, whole_values = (x.repeat_interleave(groups, dim=1) for x in known)
    mask = near_mask(places.prefixes.shape[1], window, query.device)
    first = scaled_dot_product_attention(
        at(query, places.prefixes),
        whole_keys,
        whole_values,
        mask,
        dropout,
        is_causal=mask is None,
        scale=scaling,
    )
    keys, values = (
        torch.cat([prefix.index_select(0, places.users), at(own, places.rows)], dim=2)
        for prefix, own in zip(known, (key, value), strict=True)
    )
    n_rows, width = places.rows.shape
    # Query heads that share a key head lie side by side along the length, so keys are not repeated.
    rows = at(query, places.rows).reshape(n_rows, n_kv, groups * width, -1)
    seen = places.seen.repeat(1, groups, 1)[:, None]
    later = scaled_dot_product_attention(rows, keys, values, seen, dropout, scale=scaling)
    later = later.reshape(n_rows, n_heads, width, -1)
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
        mask[:, width:, 0] = True  # a place that sees nothing would be no number
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


NAMES: dict[Sharing, str] = {"rows": "trsr_rows", "padded": "trsr_padded", "blocks": "trsr_blocks"}
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
    """Attend as the layout says; without one, as transformers' `sdpa`.

    Args:
        module: The attention layer.
        query: Shape (1, H, T, D).
        key: Shape (1, H_kv, T, D), H_kv a divisor of H.
        value: As `key`.
        attention_mask: Only used without a layout.
        scaling: Factor of the scores; None for 1 / sqrt(D).
        dropout: Of the attention weights.
        layout: Where prefixes and suffixes stand.
        sliding_window: Positions a token sees, its own included; None for all before it.
        kwargs: Passed to `sdpa`.

    Returns:
        Outputs of shape (1, T, H, D), and None.

    Raises:
        NotImplementedError: the layer adds a term to the scores that this attention does not know.
    """
    if layout is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
        return out, None
    refuse_unknown_terms(kwargs)
    if module.config._attn_implementation == NAMES["blocks"]:
        if dropout:
            raise NotImplementedError("attention in blocks has no dropout")
        out = block_attention(module, query, key, value, layout, scaling, sliding_window)
        return out.transpose(1, 2).contiguous(), None
    if module.config._attn_implementation == NAMES["padded"] and can_pad(layout):
        return padded_attention(query, key, value, layout, scaling, dropout, sliding_window), None
    options = {"dropout_p": dropout, "scale": scaling}
    parts = []
    for number, segment in enumerate(layout.segments):
        prefix = _prefix_keys(module, key, value, segment)
        if segment.n_read:
            read = query[:, :, segment.start : segment.start + segment.n_read]
            parts.append(_prefix_outputs(read, *prefix, sliding_window, options))
        mask = layout.remembered((number, sliding_window), partial(segment.mask, sliding_window))
        parts.append(_suffix_outputs(query, key, value, prefix, segment, mask, options))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _prefix_keys(
    module: Any, key: torch.Tensor, value: torch.Tensor, segment: Segment
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the prefix's keys and values, shape (1, H_kv, P, D), from this pass or an earlier one."""
    if segment.known is not None:
        return segment.known.layers[module.layer_idx]
    end = segment.start + segment.n_prefix
    pair = key[:, :, segment.start : end], value[:, :, segment.start : end]
    if segment.keep is not None:
        segment.keep.layers[module.layer_idx] = pair[0].clone(), pair[1].clone()
    return pair


def _prefix_outputs(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None, options: dict[str, Any]
) -> torch.Tensor:
    """Return the outputs of the prefix's own tokens, shape (1, H, P, D)."""
    mask = near_mask(query.shape[2], window, query.device)
    groups = query.shape[1] // key.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    out: torch.Tensor = scaled_dot_product_attention(
        query, k, v, attn_mask=mask, is_causal=mask is None, **options
    )
    return out


def _suffix_outputs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor],
    segment: Segment,
    mask: torch.Tensor,
    options: dict[str, Any],
) -> torch.Tensor:
    """Return the outputs of all suffix tokens of a segment, shape (1, H, n_suffix_tokens, D).

    Query heads that share a key head are laid side by side along the length, so keys are not repeated.
    """
    n_rows, width = segment.rows.shape
    n_kv = key.shape[1]
    groups = query.shape[1] // n_kv
    flat = segment.rows.flatten()

    def rows(x: torch.Tensor) -> torch.Tensor:  # (1, h, T, D) -> (R, h, W, D)
        taken: torch.Tensor = x[0].index_select(1, flat).unflatten(1, (n_rows, width))
        return taken.transpose(0, 1)

    k, v = (
        torch.cat([read.expand(n_rows, -1, -1, -1), rows(own)], dim=2)
        for read, own in zip(prefix, (key, value), strict=True)
    )
    q = rows(query).reshape(n_rows, n_kv, groups * width, -1)
    seen = mask.repeat(1, groups, 1)[:, None]
    out: torch.Tensor = scaled_dot_product_attention(q, k, v, attn_mask=seen, **options)
    out = out.reshape(n_rows, n_kv * groups, width, -1).transpose(0, 1).flatten(1, 2)  # (H, R W, D)
    return out.index_select(1, segment.order)[None]


for _name in NAMES.values():
    AttentionInterface.register(_name, shared_prefix_attention)
    AttentionMaskInterface.register(_name, sdpa_mask)


def is_enabled(model: Any) -> bool:
    """Whether a model reads packed sequences."""
    return model.config._attn_implementation in NAMES.values()


def fits(model: Any, group: ScoringGroup) -> bool:
    """Whether a group is short enough that a model which reads packed sequences shares its prefix exactly.

    One log line a model says that there are longer ones, which are read by themselves.
    """
    limit = length_limit(model.config)
    if limit is None or len(group.prefix) + max(map(len, group.suffixes), default=0) <= limit:
        return True
    _say_too_long(type(model).__name__, limit)
    return False


@lru_cache
def _say_too_long(name: str, limit: int) -> None:
    _log.warning(
        "%s reads texts of more than %d tokens with other rotary positions; their candidates are read one by "
        "one, which is slower.",
        name,
        limit,
    )


def enable(model: Any, sharing: Sharing = "auto") -> bool:
    """Make a model read packed sequences, if its answers are then exactly what they would be without.

    An architecture with a state that passes from token to token, or with attention that is not a function of
    positions alone, is found by asking it: a packed group must give the logits that its candidates give
    one by one. What a short text does not show is read off its configuration and its masks. One log line
    says when it does not share.

    Args:
        model: A transformers causal language model, before any adapter wraps it.
        sharing: How it shall attend; `auto` is `padded` on a GPU and `rows` elsewhere, `separate` leaves the
            model as it is.

    Returns:
        Whether it does now; else it is as it was.
    """
    _note_rows(model)
    if sharing == "separate":
        return False
    if sharing == "auto":
        sharing = "padded" if model.device.type == "cuda" else "rows"
    before = model.config._attn_implementation
    reason = _obstacle(model, NAMES[sharing])
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


def _obstacle(model: Any, name: str) -> str:
    """Set the attention and return why the model's answers are not what they were; empty when they are."""
    if not model._can_set_attn_implementation():
        return "its attention cannot be replaced"
    if unknown := unknown_terms(model.config):
        return f"what {unknown} does to attention is not known here"
    parts = _probe(model.config)
    try:
        plain = _read_plainly(model, parts)
        if reason := hidden_masks(model, torch.tensor([parts[0].prefix], device=model.device)):
            return reason
        model.set_attn_implementation(name)
        with torch.inference_mode():
            errors = [distance(packed, plain) for packed in _read_packed(model, parts)]
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as problem:
        return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
    error = max(errors)
    return "" if error <= TOLERANCE[model.dtype] else f"its answers differ by {error:.1g}"


def _note_rows(model: Any) -> None:
    """Note whether several texts of one pass, filled up on the right, are read as each alone."""
    parts = _probe(model.config)
    sequences = [[*part.prefix, *suffix] for part in parts for suffix in part.suffixes]
    try:
        with torch.inference_mode():
            error = distance(run_rows(model, sequences), _read_plainly(model, parts))
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        error = float("inf")
    model.reads_rows = error <= TOLERANCE[model.dtype]


def together(model: Any, lengths: Sequence[int], max_tokens: int) -> int:
    """Return how many of some texts, shortest first, one pass reads as it would each alone; at least one.

    Args:
        model: Any causal language model, perhaps wrapped for several processes; one that `enable` has not
            seen reads one text at a time.
        lengths: Their tokens, ascending.
        max_tokens: Of a pass, padding included.
    """
    inner = getattr(model, "module", model)
    if not getattr(inner, "reads_rows", False):
        return 1
    if length_limit(inner.config) is not None:  # positions follow from the longest text of a pass
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
    if logits.shape[1] != len(kept):  # of a model that keeps all
        where = lengths - 1
    found: torch.Tensor = logits[torch.arange(len(sequences), device=device), where].float()
    return found


def _probe(config: Any) -> list[Part]:
    """Return two groups to compare; the first crosses a sliding window that is short enough to be read."""
    window = getattr(config.get_text_config(decoder=True), "sliding_window", None)
    crosses = window + 3 if isinstance(window, int) and window < _LONGEST_PROBE else 0
    n = min(max(7, crosses), (length_limit(config) or _LONGEST_PROBE) - 4)
    prefix = [3 + (7 * place + place * place // 3) % 26 for place in range(n)]
    return [
        Part(tuple(prefix), ((19, 4), (8,), (6, 23, 9, 12), (4, 19))),
        Part((14, 7, 3), ((8, 5, 21, 2), (19, 4))),
    ]


def _read_plainly(model: Any, parts: Sequence[Part]) -> torch.Tensor:
    """Return the logits after each sequence of some parts, read one by one; shape (n, vocabulary)."""
    found = []
    for prefix, suffix in [(part.prefix, suffix) for part in parts for suffix in part.suffixes]:
        tokens = torch.tensor([[*prefix, *suffix]], device=model.device)
        with torch.inference_mode():
            found.append(model(input_ids=tokens, use_cache=False).logits[0, -1].float())
    return torch.stack(found)


def _read_packed(model: Any, parts: Sequence[Part]) -> Iterator[torch.Tensor]:
    """Yield the same logits of packed sequences: read at once, and with prefixes kept by an earlier pass."""
    yield run_packed(model, pack(parts).to(model.device)).logits[0].float()
    kept = [PrefixKV() for _ in parts]
    first = [replace(part, suffixes=part.suffixes[:1], keep=kv) for part, kv in zip(parts, kept, strict=True)]
    run_packed(model, pack(first).to(model.device))
    again = [replace(part, known=kv) for part, kv in zip(parts, kept, strict=True)]
    yield run_packed(model, pack(again).to(model.device)).logits[0].float()


def run_packed(model: Any, packed: Packed, *, every_position: bool = False) -> Any:
    """Run a model on a packed sequence.

    Its logits have one row an answer, shape (1, n_suffixes, ...), or one a token, shape (1, T, ...).
    """
    return model(
        input_ids=packed.tokens,
        # Any four-dimensional mask is passed on as it is, and `layout` says more than it could.
        attention_mask=torch.empty(1, 1, 0, 0, dtype=torch.bool, device=packed.tokens.device),
        position_ids=packed.positions,
        logits_to_keep=0 if every_position else packed.answers,
        use_cache=False,
        layout=packed.layout,
    )
