"""Lays out candidates that share a prefix as one sequence: the prefix is read once.

    prefix  suffix 0  suffix 1  suffix 2 ...
    0 .. p  p ..      p ..      p ..          positions start again at each suffix

A suffix sees the prefix and itself, never another suffix, so every token gets what it would get in a sequence
of its own. Training and ranking both use this layout.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.llm.shared_attention import NAME, SharedLayout, shared_layout


@dataclass(frozen=True)
class Packed:
    """One group as one sequence of T tokens.

    Attributes:
        tokens: Shape (1, T), token ids.
        positions: Shape (1, T), reset at each suffix.
        mask: Shape (1, 1, T, T), bool, True where a row may see a column.
        answers: Shape (n_suffixes,), the place of each suffix's last token, where the answer is predicted.
        layout: The same as `mask`, for models whose attention uses it.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    answers: torch.Tensor
    layout: SharedLayout

    def to(self, device: torch.device) -> Packed:
        """Return the same layout on another device."""
        return Packed(*(getattr(self, field.name).to(device) for field in fields(self)))


def pack(group: ScoringGroup) -> Packed:
    """Lay out a group; every suffix has at least one token.

    Raises:
        ValueError: a suffix is empty.
    """
    if not all(group.suffixes):
        raise ValueError("a suffix without tokens has no answer position")
    n_prefix = len(group.prefix)
    lengths = torch.tensor([n_prefix, *map(len, group.suffixes)])
    tokens = torch.tensor([*group.prefix, *(token for suffix in group.suffixes for token in suffix)])
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)  # (T,): 0 is the prefix
    ends = lengths.cumsum(0)
    place = torch.arange(len(tokens))
    starts = (ends - lengths)[owner]
    positions = torch.where(owner == 0, place, n_prefix + place - starts)
    related = (owner[:, None] == owner[None, :]) | (owner[None, :] == 0)
    mask = related & (place[:, None] >= place[None, :])
    layout = shared_layout(n_prefix, lengths[1:].tolist())
    return Packed(tokens[None], positions[None], mask[None, None], ends[1:] - 1, layout)


def packed_margins(model: Any, packed: Packed, labels: LabelTokens) -> torch.Tensor:
    """Return the margins (n_suffixes,) of a packed group, float32 whatever the model's precision.

    Only the answer positions go through the language model head. Gradients flow when they are enabled.
    """
    shared = model.config._attn_implementation == NAME
    layout = {"shared_prefix": packed.layout} if shared else {}
    out = model(
        input_ids=packed.tokens,
        attention_mask=packed.mask,
        position_ids=packed.positions,
        logits_to_keep=packed.answers,
        use_cache=False,
        **layout,
    )
    logits: torch.Tensor = out.logits[0].float()
    return logits[:, labels.positive] - logits[:, labels.negative]
