"""Attention over a packed sequence as one block-sparse product, for GPUs: PyTorch's FlexAttention.

Blocks of keys that no query of a block may see are skipped, so candidates cost nothing to each other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from trsr.llm.prefix_packing import Layout, Segment


def block_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Return the outputs of a packed sequence, shape (1, H, T, D).

    Args:
        module: The attention layer.
        query: Shape (1, H, T, D).
        key: Shape (1, H_kv, T, D), H_kv a divisor of H.
        value: As `key`.
        layout: Where prefixes and suffixes stand.
        scaling: Factor of the scores; None for 1 / sqrt(D).
        window: Positions a token sees, its own included; None for all before it.
    """
    known = [s.known.layers[module.layer_idx] for s in layout.segments if s.known is not None]
    for segment in layout.segments:
        if segment.keep is not None:
            here = slice(segment.start, segment.start + segment.n_prefix)
            segment.keep.layers[module.layer_idx] = key[:, :, here].clone(), value[:, :, here].clone()
    keys = torch.cat([*(k for k, _ in known), key], dim=2)
    values = torch.cat([*(v for _, v in known), value], dim=2)
    mask = layout.remembered(("blocks", window), lambda: _block_mask(layout, window, query.device))
    out: torch.Tensor = _flex(query.device.type)(
        query, keys, values, block_mask=mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out


@lru_cache
def _flex(device_type: str) -> Callable[..., Any]:
    """Return FlexAttention: compiled on a GPU, where its kernels are; the plain definition elsewhere."""
    plain: Callable[..., Any] = flex_attention
    return torch.compile(plain, dynamic=True) if device_type == "cuda" else plain


def _block_mask(layout: Layout, window: int | None, device: torch.device) -> BlockMask:
    """Say which keys a token sees: those of its own prefix and suffix, up to itself.

    Keys are the known prefixes, one after the other, then the tokens of the sequence.
    """
    tokens = torch.cat([_places(number, s) for number, s in enumerate(layout.segments)], dim=1)
    first = [_prefix_places(number, s) for number, s in enumerate(layout.segments) if s.known is not None]
    keys = torch.cat([*first, tokens], dim=1)
    segment, suffix, position = tokens
    key_segment, key_suffix, key_position = keys

    def may_see(_batch: Any, _head: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        shared = (key_suffix[k] == -1) | (key_suffix[k] == suffix[q])
        distance = position[q] - key_position[k]
        near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        sees: torch.Tensor = (segment[q] == key_segment[k]) & shared & near
        return sees

    return create_block_mask(may_see, None, None, tokens.shape[1], keys.shape[1], device=device)


def _places(number: int, segment: Segment) -> torch.Tensor:
    """Return segment number, suffix number (-1: prefix) and position of a segment's tokens, shape (3, n)."""
    suffixes = segment.owners.flatten()[segment.order]
    positions = segment.n_prefix + segment.steps.flatten()[segment.order]
    own = torch.stack([torch.full_like(suffixes, number), suffixes, positions])
    return own if segment.known is not None else torch.cat([_prefix_places(number, segment), own], dim=1)


def _prefix_places(number: int, segment: Segment) -> torch.Tensor:
    position = torch.arange(segment.n_prefix, device=segment.rows.device)
    return torch.stack([torch.full_like(position, number), torch.full_like(position, -1), position])
