"""Scores all candidates of a user in one forward pass that reads their shared prefix once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.llm.packing import pack, packed_margins


class SharedPrefixScorer:
    """A `LabelScorer` over a Hugging Face causal language model, with or without an adapter."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def score(
        self, groups: Sequence[ScoringGroup], labels: LabelTokens
    ) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Yield (group index, margins (n_suffixes,)) group by group."""
        for index, group in enumerate(groups):
            with torch.inference_mode():
                margins = packed_margins(self.model, pack(group).to(self.model.device), labels)
            yield index, margins.cpu().numpy()
