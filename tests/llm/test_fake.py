"""The fake engine keeps the contracts and its own promises."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trsr.llm.base import GenerationParams, LabelScorer, Message, Prompt, TextGenerator, prompt_key
from trsr.llm.fake import FakeGenerator, FakeScorer, FakeTokenizer, fake_text
from trsr.testing.contracts import LabelScorerContract, TextGeneratorContract, ask


class TestFakeGenerator(TextGeneratorContract):
    @classmethod
    def make_generator(cls) -> TextGenerator:
        return FakeGenerator()


class TestFakeScorer(LabelScorerContract):
    tolerance = 0.0

    @classmethod
    def make_scorer(cls) -> LabelScorer:
        return FakeScorer()


PROMPTS = [
    ask(f"Stories about {word}, {word} and football") for word in ("gardens", "chess", "sailing", "bread")
]


def test_the_text_names_the_frequent_words_of_the_prompt() -> None:
    assert "gardens" in fake_text(PROMPTS[0], GenerationParams())
    assert "gardens" not in fake_text(PROMPTS[1], GenerationParams())


def test_sampling_depends_on_the_seed_and_greedy_decoding_does_not() -> None:
    sampled = {fake_text(PROMPTS[0], GenerationParams(temperature=1.0, seed=seed)) for seed in range(20)}
    greedy = {fake_text(PROMPTS[0], GenerationParams(seed=seed)) for seed in range(20)}
    assert len(sampled) > 1
    assert len(greedy) == 1


def test_every_second_call_fails_and_calls_are_counted() -> None:
    generator = FakeGenerator(fail_on=2)
    results = list(generator.generate(PROMPTS, GenerationParams()))
    assert [result.error is None for result in results] == [True, False, True, False]
    assert all(not result.text for result in results if result.error)
    assert generator.n_calls == 4


def test_chosen_prompts_fail() -> None:
    generator = FakeGenerator(fail_on=lambda prompt: "chess" in prompt.messages[1].content)
    results = generator.generate(PROMPTS, GenerationParams())
    assert [result.index for result in results if result.error] == [1]


def test_results_come_out_of_order_unless_asked_not_to() -> None:
    prompts = PROMPTS * 3
    shuffled = [result.index for result in FakeGenerator().generate(prompts, GenerationParams())]
    ordered = [result.index for result in FakeGenerator(shuffle=False).generate(prompts, GenerationParams())]
    assert ordered == list(range(12))
    assert shuffled != ordered


def test_a_log_names_every_call_when_it_begins(tmp_path: Path) -> None:
    generator, keys = FakeGenerator(log=tmp_path / "calls.jsonl"), []
    for result in generator.generate(PROMPTS, GenerationParams()):
        keys.append(prompt_key(PROMPTS[result.index], generator.model_id, GenerationParams()))
        noted = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
        assert [call["key"] for call in noted] == keys
        assert {call["process"] for call in noted} == {os.getpid()}


@given(st.text())
def test_the_tokenizer_is_reversible(text: str) -> None:
    tokenizer = FakeTokenizer()
    encodable = text.encode(errors="ignore").decode()
    assert tokenizer.decode(tokenizer.encode(encodable)) == encodable


@pytest.mark.parametrize("word", ["yes", "no", "Yes", "No", "<|im_end|>"])
def test_answers_and_chat_markers_are_one_token(word: str) -> None:
    assert len(FakeTokenizer().encode(word)) == 1


def test_a_word_that_begins_with_no_is_not_an_answer() -> None:
    assert len(FakeTokenizer().encode("note")) == 4


def test_a_chat_ends_with_the_prefill() -> None:
    text = FakeTokenizer().render_chat(Prompt((Message("user", "Hello"),), "Well,"))
    assert text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nWell,"
