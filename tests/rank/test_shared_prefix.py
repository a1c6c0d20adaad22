"""Scores from the shared prefix keep the contract of every scorer."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from trsr.llm.adapter import quiet_peft
from trsr.llm.base import LabelScorer, LabelTokens, ScoringGroup
from trsr.llm.transformers import load_causal_lm
from trsr.rank.shared_prefix import SharedPrefixScorer
from trsr.testing.engines import LabelScorerContract


class TestSharedPrefix(LabelScorerContract):
    tolerance = 1e-4
    folder: ClassVar[Path]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _model(cls, tiny_model: Path) -> None:
        cls.folder = tiny_model

    @classmethod
    def make_scorer(cls) -> LabelScorer:
        return SharedPrefixScorer(load_causal_lm(str(cls.folder), dtype="float32", device="cpu"))


def test_a_merged_adapter_scores_as_the_adapter_does(tiny_model: Path) -> None:
    torch.manual_seed(0)
    group = ScoringGroup((20, 21, 22, 23), ((30, 31), (32,)))
    labels = LabelTokens(5, 9)
    with quiet_peft():
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(load_causal_lm(str(tiny_model), dtype="float32", device="cpu"), lora).eval()
    ((_, apart),) = SharedPrefixScorer(model).score([group], labels)
    ((_, merged),) = SharedPrefixScorer(model.merge_and_unload().eval()).score([group], labels)
    plain = SharedPrefixScorer(load_causal_lm(str(tiny_model), dtype="float32", device="cpu"))
    ((_, without),) = plain.score([group], labels)
    np.testing.assert_allclose(merged, apart, atol=1e-4)
    assert np.abs(merged - without).max() > 0.1
