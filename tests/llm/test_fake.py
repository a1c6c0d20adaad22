"""The fake engine keeps the contracts and its own promises; keys identify requests."""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trsr.llm.base import (
    GenerationParams,
    LabelScorer,
    Message,
    PhrasePart,
    Prompt,
    TextGenerator,
    prompt_key,
)
from trsr.llm.fake import FakeGenerator, FakeScorer, FakeTokenizer, RoughTokenizer, fake_text
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


def test_the_text_names_the_frequent_words_and_depends_on_the_seed_only_when_sampling() -> None:
    sampled = {fake_text(PROMPTS[0], GenerationParams(temperature=1.0, seed=seed)) for seed in range(20)}
    (greedy,) = {fake_text(PROMPTS[0], GenerationParams(seed=seed)) for seed in range(20)}
    assert len(sampled) > 1
    assert "gardens" in greedy
    assert "gardens" not in fake_text(PROMPTS[1], GenerationParams())


def test_chosen_calls_fail_and_calls_are_counted() -> None:
    generator = FakeGenerator(fail_on=2)
    results = list(generator.generate(PROMPTS, GenerationParams()))
    assert [result.error is None for result in results] == [True, False, True, False]
    assert all(not result.text for result in results if result.error)
    assert generator.n_calls == 4
    generator = FakeGenerator(fail_on=lambda prompt: "chess" in prompt.messages[1].content)
    results = list(generator.generate(PROMPTS, GenerationParams()))
    assert [result.index for result in results if result.error] == [1]


def test_results_come_out_of_order_unless_shuffle_is_off() -> None:
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
def test_the_tokenizers_are_reversible(text: str) -> None:
    encodable = text.encode(errors="ignore").decode()
    for tokenizer in (FakeTokenizer(), RoughTokenizer()):
        assert tokenizer.decode(tokenizer.encode(encodable)) == encodable
    assert len(RoughTokenizer().encode(text)) == -(-len(text) // 4)


@pytest.mark.parametrize(
    ("word", "n"), [("yes", 1), ("no", 1), ("Yes", 1), ("No", 1), ("<|im_end|>", 1), ("note", 4)]
)
def test_answers_and_chat_markers_are_one_token(word: str, n: int) -> None:
    assert len(FakeTokenizer().encode(word)) == n


def test_a_chat_ends_with_the_prefill() -> None:
    text = FakeTokenizer().render_chat(Prompt((Message("user", "Hello"),), "Well,"))
    assert text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nWell,"


MESSAGES = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.text())
PARTS = st.builds(PhrasePart, st.lists(st.text()).map(tuple), st.integers(1, 9), st.text())
ANY_PROMPT = st.builds(
    Prompt, st.lists(MESSAGES, max_size=4).map(tuple), st.text(), st.none() | st.lists(PARTS).map(tuple)
)


@given(ANY_PROMPT, st.text(), st.builds(GenerationParams, seed=st.integers(0, 3)))
def test_a_key_is_the_hash_of_the_sorted_json_as_in_stores_of_earlier_versions(
    prompt: Prompt, model_id: str, params: GenerationParams
) -> None:
    whole = asdict(prompt)
    if prompt.parts is None:
        del whole["parts"]
    content = {"prompt": whole, "model": model_id, "params": asdict(params)}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    assert prompt_key(prompt, model_id, params) == hashlib.sha256(text.encode()).hexdigest()
