"""Texts written together equal the texts written one by one, on every architecture."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import random_model
from transformers import GenerationConfig

from trsr.llm import text_batch
from trsr.llm.base import GenerationParams, PhrasePart
from trsr.llm.constrained import PhraseConstraint
from trsr.llm.text_batch import PromptReader, Text, TextBatch, batch_obstacle, choose, common_beginning

# Two kinds of prompts with their own beginnings, one token alone, two equal ones; longer than the windows.
FIRST, SECOND = list(range(5, 26)), list(range(30, 39))
PROMPTS = [
    [*FIRST, 40, 41, 42, 43, 44, 45, 46],
    [*SECOND, 47],
    [*FIRST, 50, 51],
    [*SECOND, 52, 53, 54, 55, 56],
    [7],
    [*FIRST, 50, 51],
    [9, 8, 7, 6, 5, 4, 3],
]
KINDS = ["first", "second", "first", "second", "short", "first", "alone"]
BATCHED = [
    "llama", "qwen3", "mistral", "gemma2", "gemma3_text", "phi", "gpt_neox", "opt", "gpt2", "bloom", "falcon",
]  # fmt: skip
ALONE = ["mamba", "falcon_mamba", "mamba2", "qwen3_next", "recurrent_gemma", "lfm2", "rwkv"]
CHANGES: dict[str, dict[str, Any]] = {
    "bart": {"decoder_layers": 2, "d_model": 32, "decoder_attention_heads": 4, "decoder_ffn_dim": 64},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8},
}


def texts() -> list[Text]:
    both = zip(PROMPTS, KINDS, strict=True)
    return [Text(number, list(prompt), kind) for number, (prompt, kind) in enumerate(both)]


def written(batch: TextBatch, *joins: list[Text]) -> list[list[int]]:
    """Write texts that join in groups, two steps apart; return their tokens by index."""
    found: dict[int, list[int]] = {}
    for some in joins:
        batch.join(some)
        found |= {text.index: text.written for _ in range(2) if batch.texts for text in batch.step()}
    while batch.texts:
        found |= {text.index: text.written for text in batch.step()}
    return [found[index] for index in sorted(found)]


def generated(model: Any, prompt: list[int], n: int) -> list[int]:
    model.generation_config = GenerationConfig()
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False)
    return list(out[0, len(prompt) :].tolist())


@pytest.mark.filterwarnings("error::FutureWarning")  # of an argument whose name changes
@pytest.mark.parametrize("model_type", BATCHED)
def test_batch_gives_the_logits_and_texts_of_each_prompt_alone(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_batch, "PASS_TOKENS", 10)  # several passes
    model = random_model(model_type)
    assert batch_obstacle(model) == ""
    batch = TextBatch(model, GenerationParams(max_new_tokens=6), {-1})
    batch.join(texts())
    with torch.inference_mode():
        found = batch.next_logits()
        for text, logits in zip(batch.texts, found, strict=True):
            plain = model(torch.tensor([text.prompt])).logits[0, -1]
            torch.testing.assert_close(logits, plain, atol=1e-4, rtol=1e-4)
    expected = [generated(model, prompt, 6) for prompt in PROMPTS]
    batch = TextBatch(model, GenerationParams(max_new_tokens=6), {-1})
    assert written(batch, texts()[:1], texts()[1:4], texts()[4:]) == expected


@pytest.mark.parametrize("model_type", [*ALONE, *CHANGES])
def test_text_of_a_model_that_remembers_more_is_written_as_generate_writes_it(model_type: str) -> None:
    model = random_model(model_type, **CHANGES.get(model_type, {}))
    assert batch_obstacle(model)
    batch = TextBatch(model, GenerationParams(max_new_tokens=6), {-1}, one_by_one=True)
    some = [texts()[0], texts()[4]]
    assert written(batch, some) == [generated(model, text.prompt, 6) for text in some]


def test_batch_obstacle_names_settings_that_are_not_known() -> None:
    assert "a_chunk_of_keys=4096" in batch_obstacle(random_model("llama", a_chunk_of_keys=4096))


def test_batch_obstacle_finds_a_model_that_writes_other_texts_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = random_model("llama")
    right = TextBatch.next_logits
    monkeypatch.setattr(TextBatch, "next_logits", lambda batch: right(batch).flip(0))
    assert "differ" in batch_obstacle(model)


@pytest.mark.parametrize("model_type", ["llama", "mamba"])
def test_text_obeys_ends_penalty_cap_and_seed_and_leaves_the_models_settings(model_type: str) -> None:
    model = random_model(model_type)
    model.generation_config = GenerationConfig(repetition_penalty=1.5, num_beams=3)

    def write(ends: set[int], n: int = 8, **params: Any) -> list[int]:
        options = GenerationParams(max_new_tokens=n, **params)
        alone = model_type == "mamba"
        batch = TextBatch(model, options, ends, lambda tokens: len(tokens) < 7, one_by_one=alone)
        return written(batch, texts()[:1])[0]

    plain = write(set())
    assert write(set(), n=6) == plain[:6]
    assert len(plain) == 7
    assert write({plain[3]}) == plain[: plain.index(plain[3])]
    assert len(set(write(set(), frequency_penalty=100.0))) == 7
    assert write(set(), temperature=5.0) == write(set(), temperature=5.0) != plain
    assert model.generation_config.num_beams == 3


def test_equal_prompts_draw_alike_and_others_do_not() -> None:
    batch = TextBatch(random_model("llama"), GenerationParams(temperature=1.0), set())
    batch.join([Text(0, [5, 6]), Text(1, [5, 7]), Text(2, [5, 6])])
    seeds = {text.index: text.generator.initial_seed() for text in batch.texts if text.generator}
    assert seeds[0] == seeds[2] != seeds[1]


def counting_reader() -> tuple[Any, list[int]]:
    """Return a prompt reader, and a list to which every pass adds its number of tokens."""
    model = random_model("llama")
    counts: list[int] = []
    model.register_forward_pre_hook(lambda _module, args: counts.append(args[0].numel()))
    reader = PromptReader(model)

    def read(prompts: list[list[int]], kinds: str) -> None:
        both = zip(prompts, kinds, strict=True)
        with torch.inference_mode():
            list(reader.read([Text(0, prompt, kind) for prompt, kind in both]))

    return read, counts


def test_beginning_of_a_kind_is_read_once() -> None:
    read, counts = counting_reader()
    prompts = [[*FIRST, 40 + i, 41, 42] for i in range(6)]
    read(prompts[:4], "aaaa")
    read(prompts[4:5], "a")
    read(prompts[5:], "a")
    assert counts == [len(FIRST), 4 * 2, 2, 2]


def test_beginning_becomes_shorter_when_a_prompt_of_its_kind_ends_it_earlier() -> None:
    read, counts = counting_reader()
    read([[5, 6, 7, 8, 9]], "a")  # alone, it says nothing about its kind
    read([[5, 6, 7, 8, 9], [5, 6, 7, 8, 10]], "aa")
    read([[5, 6, 20, 21]], "a")
    read([[5, 6, 7, 8, 9]], "a")
    read([[5, 6, 7]], "b")
    assert counts == [4, 4, 2, 1, 2, 2]


def test_prompts_of_like_length_are_read_together_without_much_padding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(text_batch, "PASS_TOKENS", 20)
    read, counts = counting_reader()
    read([[10 + n, *[3] * (n - 1), 4] for n in (10, 2, 9, 2, 10, 2)], "abcdef")
    assert counts == [20, 9 * 2, 2 * 2]


@pytest.mark.parametrize(
    ("rows", "n"), [([[1, 2], [1, 2]], 1), ([[1, 2, 3], [1, 2, 4]], 2), ([[1], [2]], 0), ([[1], [1, 2]], 0)]
)
def test_common_beginning_leaves_one_token_of_each_prompt(rows: list[list[int]], n: int) -> None:
    assert common_beginning(rows) == rows[0][:n]


@given(st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=4))
def test_each_time_a_token_was_written_costs_it_the_penalty(tokens: list[list[int]]) -> None:
    logits = torch.zeros(len(tokens), 5)
    some = [Text(0, [0], written=written) for written in tokens]
    choose(logits, some, GenerationParams(frequency_penalty=0.5))
    assert logits.tolist() == [[-0.5 * written.count(token) for token in range(5)] for written in tokens]


def tokens_of(token: int, text: str) -> list[int]:
    return [token] * len(text)


def test_only_allowed_tokens_stay_possible_and_other_rows_are_left_alone() -> None:
    logits = torch.arange(20.0).view(4, 5)
    some = [Text(row, [0]) for row in range(4)]
    for row, token in ((1, 3), (2, 0)):
        some[row].constraint = PhraseConstraint([PhrasePart(("x",), 1)], partial(tokens_of, token), [4])
    assert choose(logits, some, GenerationParams()).tolist() == [4, 3, 0, 4]
    assert logits[0].tolist() == [0, 1, 2, 3, 4]
    assert logits[1].isinf().tolist() == [True, True, True, False, True]
