"""Texts written by a Hugging Face model: batching, sharing and stopping change nothing but the time."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from trsr.errors import EngineError
from trsr.llm import transformers_generator as engine
from trsr.llm.base import Generation, GenerationParams, Prompt, TextGenerator
from trsr.llm.transformers_generator import TransformersGenerator
from trsr.testing.engines import TextGeneratorContract, ask

PROMPTS = [
    ask("Seeds and pots?"),
    ask("Which products does a shopper buy who has bought garden hoses, seeds and clay pots before?"),
    ask("Name a colour.", prefill="The colour is"),
    ask("birthday cards"),
    ask("Notes: " + "string lights, " * 12),
]


class TestTransformers(TextGeneratorContract):
    folder: ClassVar[Path]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _model(cls, tiny_model: Path) -> None:
        cls.folder = tiny_model

    @classmethod
    def make_generator(cls) -> TextGenerator:
        return TransformersGenerator(str(cls.folder), device="cpu")


@pytest.fixture(scope="module")
def generator(tiny_model: Path) -> TransformersGenerator:
    return TransformersGenerator(str(tiny_model), device="cpu", max_prompt_tokens=300)


def ordered(generator: TextGenerator, prompts: list[Prompt], params: GenerationParams) -> list[Generation]:
    return sorted(generator.generate(prompts, params), key=lambda result: result.index)


def plain_greedy(generator: TransformersGenerator, prompt: Prompt, n: int, penalty: float = 0.0) -> list[int]:
    """Decode as one would write it first: the whole text again for each token, no cache, no batch."""
    model: Any = generator._model
    ids = generator.tokenizer.encode(generator.tokenizer.render_chat(prompt))
    written: list[int] = []
    for _ in range(n):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids + written])).logits[0, -1].float()
        for token in written:
            logits[token] -= penalty
        token = int(logits.argmax())
        if token in generator._eos:
            break
        written.append(token)
    return written


@pytest.mark.parametrize("penalty", [0.0, 1.5])
def test_a_batch_writes_what_plain_greedy_decoding_writes(
    generator: TransformersGenerator, penalty: float
) -> None:
    params = GenerationParams(max_new_tokens=10, frequency_penalty=penalty)
    for prompt, result in zip(PROMPTS, ordered(generator, PROMPTS, params), strict=True):
        expected = plain_greedy(generator, prompt, 10, penalty)
        assert result.text == generator._text(expected).strip()
        assert result.n_generated_tokens == len(expected)


def test_the_frequency_penalty_changes_the_text(generator: TransformersGenerator) -> None:
    plain = ordered(generator, PROMPTS, GenerationParams(max_new_tokens=24))
    varied = ordered(generator, PROMPTS, GenerationParams(max_new_tokens=24, frequency_penalty=2.0))
    assert [r.text for r in plain] != [r.text for r in varied]


def test_small_batches_write_the_same_texts_as_large_ones(
    generator: TransformersGenerator, tiny_model: Path
) -> None:
    params = GenerationParams(max_new_tokens=10)
    narrow = TransformersGenerator(str(tiny_model), device="cpu", max_batch_tokens=1)
    assert list(narrow._batches([0, 1, 2], [[1], [1], [1]], 10)) == [[0], [1], [2]]
    alone = [result.text for result in ordered(narrow, PROMPTS, params)]
    assert alone == [result.text for result in ordered(generator, PROMPTS, params)]


def test_reading_the_shared_beginning_once_changes_nothing(
    generator: TransformersGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = GenerationParams(max_new_tokens=10)
    ids = [generator.tokenizer.encode(generator.tokenizer.render_chat(prompt)) for prompt in PROMPTS]
    assert engine._common_prefix(ids) > 10, "these prompts begin with the same instruction"
    shared = [result.text for result in ordered(generator, PROMPTS, params)]
    monkeypatch.setattr(engine, "_common_prefix", lambda _: 0)
    assert [result.text for result in ordered(generator, PROMPTS, params)] == shared


def test_equal_prompts_in_a_batch_leave_a_token_to_read(generator: TransformersGenerator) -> None:
    results = ordered(generator, [PROMPTS[0]] * 3, GenerationParams(max_new_tokens=5))
    assert len({result.text for result in results}) == 1


@pytest.mark.parametrize(
    ("rows", "n"), [([[1, 2, 3]], 0), ([[1, 2], [1, 2]], 1), ([[1, 2, 3], [1, 2, 4]], 2), ([[1], [2]], 0)]
)
def test_the_common_prefix_leaves_one_token_of_each_prompt(rows: list[list[int]], n: int) -> None:
    assert engine._common_prefix(rows) == n


def test_the_budget_of_a_batch_counts_padding_and_new_tokens(generator: TransformersGenerator) -> None:
    ids = [[0] * n for n in (90, 80, 30, 10, 10)]
    generator_batches = TransformersGenerator._batches
    small = type("Budget", (), {"max_batch_tokens": 200})()
    assert list(generator_batches(small, [0, 1, 2, 3, 4], ids, 10)) == [[0, 1], [2, 3, 4]]


def test_a_text_ends_before_a_stop_text_and_others_go_on(generator: TransformersGenerator) -> None:
    long = ordered(generator, PROMPTS, GenerationParams(max_new_tokens=16))
    stop = long[0].text[3:6]
    stopped = ordered(generator, PROMPTS, GenerationParams(max_new_tokens=16, stop=(stop,)))
    assert stop not in stopped[0].text
    assert long[0].text.startswith(stopped[0].text)
    assert stopped[0].n_generated_tokens < long[0].n_generated_tokens
    untouched = [i for i, result in enumerate(long) if stop not in result.text]
    assert untouched
    assert [stopped[i].text for i in untouched] == [long[i].text for i in untouched]


def test_the_earliest_of_several_stop_texts_counts() -> None:
    assert engine._until_stop("one two three", ("three", "two")) == "one "
    assert engine._until_stop("one two three", ("four",)) == "one two three"


def test_a_prompt_that_is_too_long_fails_alone(generator: TransformersGenerator) -> None:
    prompts = [PROMPTS[0], ask("garden " * 500), PROMPTS[3]]
    results = ordered(generator, prompts, GenerationParams(max_new_tokens=4))
    assert [result.error is None for result in results] == [True, False, True]
    assert results[1].text == ""
    assert results[1].n_generated_tokens == 0
    assert f"The prompt has {results[1].n_prompt_tokens} tokens, at most 300 fit" in str(results[1].error)


def test_sampling_repeats_with_its_seed_and_differs_with_another(generator: TransformersGenerator) -> None:
    def texts(seed: int) -> list[str]:
        params = GenerationParams(max_new_tokens=12, temperature=2.0, seed=seed)
        return [result.text for result in ordered(generator, PROMPTS, params)]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_a_closed_generator_says_so(tiny_model: Path) -> None:
    generator = TransformersGenerator(str(tiny_model), device="cpu")
    generator.close()
    with pytest.raises(EngineError, match="closed"):
        list(generator.generate(PROMPTS, GenerationParams()))
