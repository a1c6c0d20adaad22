"""Reads the margin between two answers off a language model: sharing a prefix, or one candidate by itself.

Only the rows of the two answers pass through the language-model head, in float32 whatever the model
computes in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.llm.packing import Packed
from trsr.llm.shared_attention import run_packed


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
    """Let a model compute the logits of the two answers only, inside the block.

    What an architecture does to its logits afterwards (scaling, soft capping) stays. A head that is more than
    a matrix is left whole.

    Yields:
        The columns of the positive and the negative answer in the model's logits.
    """
    whole = model.get_output_embeddings()
    if type(whole) is not nn.Linear:
        yield labels.positive, labels.negative
        return
    model.set_output_embeddings(_LabelHead(whole, labels))
    try:
        yield 0, 1
    finally:
        model.set_output_embeddings(whole)


def packed_margins(model: Any, packed: Packed, labels: tuple[int, int]) -> torch.Tensor:
    """Return the margins (n_suffixes,) of a packed sequence, float32; gradients flow when they are enabled.

    Args:
        model: One that reads packed sequences (see `shared_attention.enable`).
        packed: The sequence.
        labels: The columns of the answers, as `label_head` yields them.
    """
    logits = run_packed(model, packed).logits[0].float()
    return _margins(logits, labels)


def separate_margins(
    model: Any, group: ScoringGroup, labels: tuple[int, int], max_tokens: int
) -> torch.Tensor:
    """Return the margins (n_suffixes,) of a group, each candidate read as a sequence of its own.

    Args:
        model: Any causal language model.
        group: The candidates.
        labels: The columns of the answers, as `label_head` yields them.
        max_tokens: Tokens a forward pass, padding included; at least one candidate is read.
    """
    lengths = [len(group.prefix) + len(suffix) for suffix in group.suffixes]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    found: list[torch.Tensor] = []
    places: list[int] = []
    while len(places) < len(order):
        rest = order[len(places) :]
        batch = [i for n, i in enumerate(rest, start=1) if n == 1 or n * lengths[i] <= max_tokens]
        sequences = [[*group.prefix, *group.suffixes[i]] for i in batch]
        found.append(_batch_margins(model, sequences, labels))
        places += batch
    margins = torch.cat(found)
    return margins[torch.tensor(places, device=margins.device).argsort()]


def _batch_margins(model: Any, sequences: Sequence[Sequence[int]], labels: tuple[int, int]) -> torch.Tensor:
    """Return the margins after the last token of each sequence, shape (B,); padding stands on the right."""
    device = model.device
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
    tokens = torch.zeros(len(sequences), int(lengths.max()), dtype=torch.long, device=device)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = torch.tensor(sequence, device=device)
    mask = torch.arange(tokens.shape[1], device=device)[None] < lengths[:, None]
    kept, where = (lengths - 1).unique(return_inverse=True)
    out = model(input_ids=tokens, attention_mask=mask.long(), logits_to_keep=kept, use_cache=False)
    rows = torch.arange(len(sequences), device=device)
    return _margins(out.logits[rows, where].float(), labels)


def _margins(logits: torch.Tensor, labels: tuple[int, int]) -> torch.Tensor:
    positive, negative = labels
    return logits[:, positive] - logits[:, negative]
