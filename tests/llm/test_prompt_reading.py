"""Prompts read together leave a model knowing what it knows of each alone, on every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import random_model
from transformers import GenerationConfig

from trsr.llm import prompt_reading
from trsr.llm.base import GenerationParams
from trsr.llm.generation import RowWriter, Text
from trsr.llm.prompt_reading import PromptReader, as_argument, common_prefix, joined, keep_rows

# Two kinds of prompts with their own beginnings, one prompt alone, two equal ones; longer than the windows.
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


def plain_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0, -1]
    return logits


class Writer:
    """Gives rows of a cache their next tokens, as `RowWriter` does; row i holds prompt i."""

    def __init__(self, model: Any, prompts: list[list[int]], kinds: list[str], n_new: int) -> None:
        self.model = model
        with torch.inference_mode():
            passes = PromptReader(model).read(prompts, kinds)
            self.cache: Any = joined([done.rows for done in passes], model.config, n_new)
            order = [place for done in passes for place in done.places]
            self.texts = [list(prompts[place]) for place in order]
            self.n_columns = max(map(len, prompts))
            self.go_on([order.index(place) for place in range(len(prompts))], [])

    def step(self) -> torch.Tensor:
        """Return the logits after the last token of each row."""
        positions = torch.tensor([[len(text) - 1] for text in self.texts])
        mask = (torch.arange(self.n_columns) >= self.n_columns - 1 - positions).long()
        with torch.inference_mode():
            logits: torch.Tensor = self.model(
                torch.tensor([text[-1:] for text in self.texts]),
                attention_mask=mask,
                position_ids=positions,
                **as_argument(self.model, self.cache),
            ).logits[:, -1]
        return logits

    def go_on(self, rows: list[int], tokens: list[int]) -> None:
        """Keep some rows and give each a token."""
        if rows != list(range(len(self.texts))):
            with torch.inference_mode():
                keep_rows(self.cache, rows)
        self.texts = [self.texts[row] for row in rows]
        if tokens:
            self.texts = [[*text, token] for text, token in zip(self.texts, tokens, strict=True)]
            self.n_columns += 1

    def check(self) -> None:
        found = self.step()
        for row, text in enumerate(self.texts):
            torch.testing.assert_close(found[row], plain_logits(self.model, text), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("error::FutureWarning")  # of an argument whose name changes
@pytest.mark.parametrize("model_type", BATCHED)
def test_a_batch_reads_and_writes_as_each_prompt_alone(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_reading, "PASS_TOKENS", 10)  # several passes
    model = random_model(model_type)
    assert PromptReader(model).in_batches
    writer = Writer(model, PROMPTS, KINDS, n_new=3)
    writer.check()
    writer.go_on([0, 6, 2, 3, 4], [11, 12, 13, 14, 15])
    writer.check()
    writer.go_on([4, 1], [21, 22])
    writer.check()


STATEFUL = ["mamba", "falcon_mamba", "mamba2", "qwen3_next", "recurrent_gemma", "lfm2", "rwkv"]


@pytest.mark.parametrize("model_type", [*STATEFUL, "bart", "gpt_neo", "llama"])
def test_what_is_not_proven_to_be_written_together_is_written_as_generate_writes_it(
    model_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    changes: dict[str, dict[str, Any]] = {
        "bart": {"decoder_layers": 2, "d_model": 32, "decoder_attention_heads": 4, "decoder_ffn_dim": 64},
        "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8},
        "llama": {"a_chunk_of_keys": 4096},
    }
    model = random_model(model_type, **changes.get(model_type, {}))
    reader = PromptReader(model)
    assert not reader.in_batches
    assert "one text at a time" in caplog.text
    PromptReader(model)
    assert caplog.text.count("one text at a time") == 1
    writer = RowWriter(model, reader, GenerationParams(max_new_tokens=6), lambda _: True, {-1})
    writer.join([Text(number, PROMPTS[place], None) for number, place in enumerate((0, 4))])
    written = {}
    while writer.texts:
        written.update({text.index: text.written for text in writer.step()})
    model.generation_config = GenerationConfig()
    for number, place in enumerate((0, 4)):
        prompt = torch.tensor([PROMPTS[place]])
        ones = torch.ones_like(prompt)
        whole = model.generate(prompt, attention_mask=ones, max_new_tokens=6, do_sample=False)
        assert written[number] == whole[0, prompt.shape[1] :].tolist()


def test_a_text_written_alone_obeys_ends_penalty_and_wording_and_leaves_the_models_settings() -> None:
    model = random_model("mamba")
    model.generation_config = GenerationConfig(repetition_penalty=1.5, num_beams=3)

    def write(ends: set[int], **params: Any) -> list[int]:
        options = GenerationParams(max_new_tokens=8, **params)
        writer = RowWriter(model, PromptReader(model), options, lambda written: len(written) < 7, ends)
        writer.join([Text(0, PROMPTS[0], None)])
        (text,) = writer.step()
        return text.written

    plain = write(set())
    assert len(plain) == 7
    assert write({plain[3]}) == plain[: plain.index(plain[3])]
    assert len(set(write(set(), frequency_penalty=100.0))) == 7
    assert write(set(), temperature=5.0) == write(set(), temperature=5.0) != plain
    assert model.generation_config.num_beams == 3


@pytest.mark.parametrize(("longest", "together"), [(None, False), (51, False), (50, True)])
def test_texts_whose_positions_follow_from_their_length_are_written_together_only_below_it(
    longest: int | None, together: bool
) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    model = random_model("llama", rope_parameters=rope, max_position_embeddings=50)
    assert PromptReader(model, longest).in_batches is together


def count_tokens(model: Any) -> list[int]:
    """Return a list to which every pass of the model adds how many tokens it reads."""
    counts: list[int] = []
    model.register_forward_pre_hook(lambda _module, args: counts.append(args[0].numel()))
    return counts


def test_what_prompts_of_a_kind_begin_with_is_read_once() -> None:
    model = random_model("llama")
    reader = PromptReader(model)
    counts = count_tokens(model)
    prompts = [[*FIRST, 40 + i, 41, 42] for i in range(6)]
    with torch.inference_mode():
        reader.read(prompts[:4], ["first"] * 4)
        reader.read(prompts[4:5], ["first"])
        reader.read(prompts[5:], ["first"])
    assert counts == [len(FIRST), 4 * 2, 2, 2]


def test_a_beginning_becomes_shorter_when_a_prompt_of_its_kind_ends_it_earlier() -> None:
    model = random_model("llama")
    reader = PromptReader(model)
    counts = count_tokens(model)
    with torch.inference_mode():
        reader.read([[5, 6, 7, 8, 9]], ["a"])  # alone, it says nothing about its kind
        reader.read([[5, 6, 7, 8, 9], [5, 6, 7, 8, 10]], ["a", "a"])
        reader.read([[5, 6, 20, 21]], ["a"])
        reader.read([[5, 6, 7, 8, 9]], ["a"])
        reader.read([[5, 6, 7]], ["b"])
    assert counts == [4, 4, 2, 1, 2, 2]


def test_prompts_of_like_length_are_read_together_without_much_padding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prompt_reading, "PASS_TOKENS", 20)
    model = random_model("llama")
    reader = PromptReader(model)
    counts = count_tokens(model)
    prompts = [[10 + n, *[3] * (n - 1), 4] for n in (10, 2, 9, 2, 10, 2)]
    with torch.inference_mode():
        reader.read(prompts, list("abcdef"))
    assert counts == [20, 9 * 2, 2 * 2]


@pytest.mark.parametrize(
    ("rows", "n"), [([[1, 2, 3]], 0), ([[1, 2], [1, 2]], 1), ([[1, 2, 3], [1, 2, 4]], 2), ([[1], [2]], 0)]
)
def test_the_common_prefix_leaves_one_token_of_each_prompt(rows: list[list[int]], n: int) -> None:
    assert common_prefix(rows) == n
