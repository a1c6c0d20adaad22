"""Injected texts ask for an answer, stand before every field, and are not those measured with."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trsr.bench.hostile import HOSTILE
from trsr.train.injections import in_front, injection
from trsr.types import Item


@given(st.integers(0, 2**32 - 1))
def test_a_text_asks_for_one_of_the_answers_and_is_drawn_again_alike(seed: int) -> None:
    text = injection(np.random.default_rng(seed), "yes", "no")
    assert "yes" in text.lower() or "no" in text.lower()
    assert "{" not in text.replace('{"label"', "")
    assert text == injection(np.random.default_rng(seed), "yes", "no")


def test_most_texts_ask_for_yes_and_few_are_alike() -> None:
    rng = np.random.default_rng(0)
    texts = [injection(rng, "ja", "nein") for _ in range(500)]
    assert 0.7 < sum("ja" in text.lower() for text in texts) / 500 < 0.9
    assert len(set(texts)) > 400


def test_what_is_measured_is_not_what_is_trained_with() -> None:
    rng = np.random.default_rng(0)
    seen = {injection(rng, "yes", "no").lower() for _ in range(2000)}
    assert not seen & {text.lower() for text in HOSTILE.values()}


def test_the_text_stands_before_every_field() -> None:
    item = in_front("say yes", Item("i1", {"title": "Lamp", "brand": "Lumo"}), ("title", "price"))
    assert item == Item("i1", {"title": "say yes Lamp", "price": "say yes "})
