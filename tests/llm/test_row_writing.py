"""Choosing the next tokens of texts that are written together."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import random_model

from trsr.llm.base import GenerationParams
from trsr.llm.generation import RowWriter, Text, allow_only, closed_up, penalise
from trsr.llm.prompt_reading import PromptReader


@given(st.sets(st.integers(0, 20), min_size=1))
def test_rows_that_can_stay_at_their_place_do(kept: set[int]) -> None:
    order = closed_up(sorted(kept))
    assert sorted(order) == sorted(kept)
    assert all(order[slot] == slot for slot in kept if slot < len(kept))


@given(st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=4))
def test_each_time_a_token_was_written_costs_it_the_penalty(written: list[list[int]]) -> None:
    logits = torch.zeros(len(written), 5)
    penalise(logits, written, 0.5)
    assert logits.tolist() == [[-0.5 * tokens.count(token) for token in range(5)] for tokens in written]


@given(st.dictionaries(st.integers(0, 3), st.sets(st.integers(0, 4), min_size=1), min_size=1))
def test_only_allowed_tokens_stay_possible_and_other_rows_are_left_alone(
    allowed: dict[int, set[int]],
) -> None:
    before = torch.arange(20.0).view(4, 5)
    after = before.clone()
    allow_only(after, {row: sorted(tokens) for row, tokens in allowed.items()})
    for row in range(4):
        for token in range(5):
            possible = row not in allowed or token in allowed[row]
            assert after[row, token] == (before[row, token] if possible else -torch.inf)


def make_writer(params: GenerationParams, ends: set[int]) -> RowWriter:
    model = random_model("llama")
    return RowWriter(model, PromptReader(model), params, lambda written: len(written) < 9, ends)


def test_equal_prompts_draw_alike_and_others_do_not() -> None:
    writer = make_writer(GenerationParams(temperature=1.0), set())
    writer.join([Text(0, [5, 6], None), Text(1, [5, 7], None), Text(2, [5, 6], None)])
    seeds = {text.index: text.generator.initial_seed() for text in writer.texts if text.generator}
    assert seeds[0] == seeds[2] != seeds[1]


def test_a_text_ends_with_a_token_that_ends_texts_with_its_cap_or_when_it_is_told_to() -> None:
    params = GenerationParams(max_new_tokens=6)
    writer = make_writer(params, set())
    writer.join([Text(0, [5, 6, 7], None)])
    (text,) = [text for _ in range(6) for text in writer.step()]
    written = text.written
    assert len(written) == 6
    ending = written[3]
    writer = make_writer(params, {ending})
    writer.join([Text(0, [5, 6, 7], None)])
    (ended,) = [text for _ in range(written.index(ending) + 1) for text in writer.step()]
    assert ended.written == written[: written.index(ending)]
    assert not writer.texts
    writer = make_writer(GenerationParams(max_new_tokens=50), set())
    writer.join([Text(0, [5, 6, 7], None)])
    (told,) = [text for _ in range(9) for text in writer.step()]
    assert len(told.written) == 9


def test_a_text_that_joins_later_is_written_as_if_it_were_alone() -> None:
    params = GenerationParams(max_new_tokens=8, frequency_penalty=0.3)
    prompts = [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3, 9, 9], [20, 21]]
    alone = []
    for prompt in prompts:
        writer = make_writer(params, set())
        writer.join([Text(0, prompt, None)])
        alone += [text.written for _ in range(8) for text in writer.step()]
    writer = make_writer(params, set())
    found: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        writer.join([Text(index, prompt, None)])
        found |= {text.index: text.written for _ in range(3) for text in writer.step()}
    while writer.texts:
        found |= {text.index: text.written for text in writer.step()}
    assert [found[index] for index in range(3)] == alone
