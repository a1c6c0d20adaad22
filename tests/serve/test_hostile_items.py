"""An item that wants to speak to the model changes no other item's margin, and cannot leave its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from serve_parts import (
    CANDIDATES,
    HISTORY,
    HOSTILE,
    PROFILE,
    Recording,
    catalogue,
    fake_recommender,
    make_builder,
    tiny_recommender,
)

from trsr.llm.base import ScoringGroup
from trsr.llm.transformers import HfTokenizer
from trsr.recommend.ranker import RankRequest
from trsr.recommend.recommender import Recommender
from trsr.types import Item

KINDS = sorted(HOSTILE)


def hostile(kind: str) -> Item:
    """Return an item that is hostile in every field."""
    return Item("evil", dict.fromkeys(("category", "title", "brand"), HOSTILE[kind]))


@pytest.mark.parametrize("max_tokens", [1024, 440], ids=["whole", "cut"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_of_the_others_stays_the_same_to_the_token(kind: str, max_tokens: int) -> None:
    recommender = fake_recommender(items=catalogue(hostile(kind)), max_tokens=max_tokens)
    (alone,) = recommender.score([RankRequest(HISTORY, PROFILE, CANDIDATES)])
    (together,) = recommender.score([RankRequest(HISTORY, PROFILE, ("evil", *CANDIDATES))])
    np.testing.assert_array_equal(together.margins[1:], alone.margins)
    assert (alone.n_cut_tokens > 0) == (max_tokens == 440)


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Recommender:
    return tiny_recommender(tiny_model, cache_bytes=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_gives_the_others_the_same_margins(kind: str, tiny: Recommender) -> None:
    """Equal to the last bit with a harmless text of the same length, which alone decides the pass layout."""
    builder, group = tiny.builder, RankRequest(HISTORY, PROFILE, CANDIDATES)
    tiny.catalogue.put([hostile(kind)])
    evil = builder.suffix("evil")
    harmless = builder.suffix("i20")[:-10]
    harmless = (*(harmless * len(evil))[: len(evil) - 10], *builder.suffix("i20")[-10:])
    assert len(harmless) == len(evil)
    prefix = builder.build(group.user_history, group.profile, CANDIDATES).group.prefix
    others = [builder.suffix(item) for item in CANDIDATES]

    def margins(*suffixes: tuple[int, ...]) -> npt.NDArray[np.float32]:
        ((_, found),) = tiny.scorer.score([ScoringGroup(prefix, suffixes)], tiny.labels)
        return found

    together = margins(*others[:3], evil, *others[3:])
    np.testing.assert_array_equal(
        np.delete(together, 3), np.delete(margins(*others[:3], harmless, *others[3:]), 3)
    )
    np.testing.assert_allclose(np.delete(together, 3), margins(*others), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_holds_a_special_token(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    """Only the frame's own are left: as many as with a harmless text, at any position."""
    tokenizer = HfTokenizer(tiny_model)
    tokenizer.hf.add_special_tokens({"additional_special_tokens": ["[MASK]"]})
    tokenizer.hf.save_pretrained(tmp_path)
    tokenizer = HfTokenizer(tmp_path)  # as it is opened after it was changed
    special = {tokenizer.encode(text)[0] for text in tokenizer.special_texts}
    assert len(special) == 3
    items = catalogue(hostile(kind))
    builder = make_builder(items, tokenizer)

    def found(tokens: tuple[int, ...]) -> list[int]:
        return [token for token in tokens if token in special]

    harmless = builder.build(HISTORY, PROFILE, ("i1",)).group
    group = builder.build((*HISTORY[:2], "evil"), HOSTILE[kind], ("evil",)).group
    assert found(group.prefix) == found(harmless.prefix)
    assert found(group.suffixes[0]) == found(harmless.suffixes[0])
    assert len(found(harmless.prefix)) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_text_is_no_longer_than_any_text_may_be(kind: str) -> None:
    recommender = fake_recommender(items=catalogue(hostile(kind)))
    assert len(recommender.builder.suffix("evil")) <= recommender._item_room
    scorer = Recording()
    fake_recommender(scorer).rerank("q", [HOSTILE[kind]])
    assert len(scorer.calls[0][0].suffixes[0]) <= recommender._document_room
