"""The margin between two answers of a language model, in float32: sharing a prefix, or one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from trsr.errors import EngineError
from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.llm.prefix_attention import run_packed, run_rows, together
from trsr.llm.prefix_packing import Packed


def finite(margins: npt.NDArray[np.float32], model: Any) -> npt.NDArray[np.float32]:
    """Return the margins that a model gave.

    Raises:
        EngineError: some are no numbers, with which a candidate would have any rank.
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
    """Let a model compute the logits of the two answers only, inside the block.

    What an architecture does to its logits afterwards (scaling, soft capping) stays. A head that is more than
    a matrix is left whole.

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
    except TypeError:  # of models that keep the head's bias a second time
        model.set_output_embeddings(whole)
    try:
        yield columns
    finally:
        model.set_output_embeddings(whole)


def packed_margins(model: Any, packed: Packed, labels: tuple[int, int]) -> torch.Tensor:
    """Return the margins (n_suffixes,) of a packed sequence, float32; gradients flow when they are enabled.

    Args:
        model: One that reads packed sequences (see `prefix_attention.enable`).
        packed: The sequence.
        labels: The columns of the answers, as `label_head` yields them.
    """
    return _margins(run_packed(model, packed).logits[0].float(), labels)


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
