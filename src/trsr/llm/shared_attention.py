"""Attention over a prefix and many suffixes at the cost of what is really seen.

A dense mask over the whole packed sequence makes every suffix pay for all others. Here the prefix attends to
itself once, and each suffix to the prefix and itself, as one batch of short sequences. It is registered with
transformers as an attention implementation and behaves as `sdpa` for any other input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "trsr_shared_prefix"
# Where it is known to be exact: every layer is plain causal attention, and the layout reaches the layers.
MODEL_TYPES = frozenset({"llama"})


@dataclass(frozen=True)
class SharedLayout:
    """Where prefix and suffixes stand in a packed sequence of T tokens.

    Attributes:
        n_prefix: Tokens of the prefix, P.
        rows: Shape (n_suffixes, S), places of each suffix's tokens in the sequence; shorter suffixes are
            filled up with their last place.
        places: Shape (T - P,), for each suffix token in order its place in the flattened `rows`.
        mask: Shape (S, P + S), True where a suffix position may see a prefix or own position.
    """

    n_prefix: int
    rows: torch.Tensor
    places: torch.Tensor
    mask: torch.Tensor

    def to(self, device: torch.device) -> SharedLayout:
        """Return the same layout on another device."""
        return SharedLayout(self.n_prefix, self.rows.to(device), self.places.to(device), self.mask.to(device))


def shared_layout(n_prefix: int, lengths: list[int]) -> SharedLayout:
    """Describe a prefix of `n_prefix` tokens followed by suffixes of the given lengths, each at least 1."""
    size = torch.tensor(lengths)
    longest = int(size.max())
    step = torch.arange(longest)
    starts = n_prefix + size.cumsum(0) - size
    rows = starts[:, None] + torch.minimum(step[None, :], size[:, None] - 1)
    places = torch.nonzero((step[None, :] < size[:, None]).flatten())[:, 0]
    own = step[:, None] >= step[None, :]
    mask = torch.cat([torch.ones(longest, n_prefix, dtype=torch.bool), own], dim=1)
    return SharedLayout(n_prefix, rows, places, mask)


def shared_prefix_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    shared_prefix: SharedLayout | None = None,
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
        dropout: Must be 0 with a layout.
        shared_prefix: The layout.
        kwargs: Passed to `sdpa`.

    Returns:
        Outputs of shape (1, T, H, D), and None.
    """
    if shared_prefix is None:
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
        return out, None
    n_prefix, n_heads = shared_prefix.n_prefix, query.shape[1]
    groups = n_heads // key.shape[1]
    parts = []
    if n_prefix:
        k, v = (x[:, :, :n_prefix].repeat_interleave(groups, dim=1) for x in (key, value))
        parts.append(
            scaled_dot_product_attention(query[:, :, :n_prefix], k, v, is_causal=True, scale=scaling)
        )
    parts.append(_suffixes(query, key, value, shared_prefix, groups, scaling))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _suffixes(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: SharedLayout,
    groups: int,
    scaling: float | None,
) -> torch.Tensor:
    """Return the outputs of all suffix tokens, shape (1, H, T - P, D).

    Query heads that share a key head are laid side by side along the length, so keys are not repeated.
    """
    n, longest = layout.rows.shape
    n_kv, dim = key.shape[1], key.shape[3]
    flat = layout.rows.flatten()

    def rows(x: torch.Tensor) -> torch.Tensor:  # (1, h, T, D) -> (n, h, S, D)
        taken: torch.Tensor = x[0].index_select(1, flat).unflatten(1, (n, longest))
        return taken.transpose(0, 1)

    def seen(x: torch.Tensor) -> torch.Tensor:  # (1, H_kv, T, D) -> (n, H_kv, P + S, D)
        prefix = x[:, :, : layout.n_prefix].expand(n, -1, -1, -1)
        return torch.cat([prefix, rows(x)], dim=2)

    q = rows(query).reshape(n, n_kv, groups * longest, dim)
    mask = layout.mask.repeat(groups, 1)[None, None]
    out: torch.Tensor = scaled_dot_product_attention(q, seen(key), seen(value), attn_mask=mask, scale=scaling)
    out = out.reshape(n, n_kv * groups, longest, dim).transpose(0, 1).flatten(1, 2)  # (H, n S, D)
    return out.index_select(1, layout.places)[None]


AttentionInterface.register(NAME, shared_prefix_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
