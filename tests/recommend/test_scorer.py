"""The model that ranks is opened with its adapter, or refused before anything large is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from trsr.errors import RunMismatchError
from trsr.llm import models
from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.recommend.loading import RecommenderConfig, open_scorer
from trsr.recommend.model_folder import AdapterInfo, write_adapter_info
from trsr.recommend.scorer import PrefixCache


def test_the_base_model_has_no_adapter_and_keeps_prefixes_where_it_is_told(tiny_model: Path) -> None:
    cache = PrefixCache(10**7)
    config = RecommenderConfig(model=str(tiny_model), dtype="float32", device="cpu", max_batch_tokens=99)
    scorer, info = open_scorer(config, None, "any", 1, cache=cache)
    assert info is None
    assert scorer.max_batch_tokens == 99
    assert not scorer.knows((3, 4, 5))
    list(scorer.score([ScoringGroup((3, 4, 5), ((6,), (7, 8)))], LabelTokens(5, 9)))
    assert scorer.knows((3, 4, 5))
    assert len(cache) == 1


@pytest.mark.parametrize(
    ("template_hash", "said"), [("0" * 64, "template"), ("1" * 64, "was trained on other@1")]
)
def test_an_adapter_of_another_prompt_or_model_is_refused(
    template_hash: str, said: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = AdapterInfo(
        base_model=str(tiny_model),
        base_model_id="other@1",
        template="products",
        template_hash="1" * 64,
        positive_token=1,
        negative_token=2,
        prompt={},
        training={},
        metrics={},
        versions={},
    )
    write_adapter_info(tmp_path, info)
    monkeypatch.setattr("trsr.llm.transformers.load_causal_lm", lambda *_, **__: pytest.fail("it was loaded"))
    assert models.model_id(str(tiny_model)) != "other@1"
    with pytest.raises(RunMismatchError, match=said):
        open_scorer(RecommenderConfig(model=str(tiny_model)), tmp_path, template_hash, 1)
