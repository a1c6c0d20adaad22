"""Attention over a packed sequence as two dense products, for GPUs: all prefixes at once, then all suffixes.

Prefixes are filled up to the longest, rows of suffixes to the widest: some is multiplied in vain, so that a
layer starts a few products and not several for every user.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from trsr.llm.packing import Layout, Segment, near_mask


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
