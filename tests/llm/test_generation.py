"""The engine `transformers`: batching, sharing and stopping change nothing but the time."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from trsr.errors import EngineError
from trsr.llm.base import Generation, GenerationParams, Message, Prompt, TextGenerator
from trsr.llm.generation import (
    SmallBatchLinear,
    TransformersGenerator,
    how_many_join,
    use_small_batch_linear,
)
from trsr.llm.text_batch import PromptReader, Text, TextBatch
from trsr.testing.contracts import TextGeneratorContract, ask

PROMPTS = [
    ask("Seeds and pots?"),
    ask("Which products does a shopper buy who has bought garden hoses, seeds and clay pots before?"),
    ask("Name a colour.", prefill="The colour is"),
    ask("birthday cards"),
    ask("Notes: " + "string lights, " * 12),
]
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}


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


class Counter:
    """Counts the rows that are written at each step, and notes the prompts of each reading."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.longest: list[int] = []
        self.joined: list[list[int]] = []
        step, join = TextBatch.step, TextBatch.join

        def count_step(batch: TextBatch) -> list[Text]:
            self.rows.append(len(batch.texts))
            self.longest.append(max(len(text.prompt) for text in batch.texts))
            return step(batch)

        def count_join(batch: TextBatch, texts: list[Text]) -> None:
            self.joined.append([text.index for text in texts])
            join(batch, texts)

        monkeypatch.setattr(TextBatch, "step", count_step)
        monkeypatch.setattr(TextBatch, "join", count_join)


def test_waiting_prompts_join_as_others_finish(
    generator: TransformersGenerator, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = max(result.n_prompt_tokens for result in ordered(generator, PROMPTS, GenerationParams()))
    budget = 3 * (long + 16)
    few = TransformersGenerator(str(tiny_model), device="cpu", max_batch_tokens=budget)
    prompts = [ask(f"{prompt.messages[-1].content} {n}") for prompt in PROMPTS for n in range(3)]
    stop = GenerationParams(max_new_tokens=16, stop=("d",))  # texts of many lengths
    expected = [(r.text, r.n_generated_tokens) for r in ordered(generator, prompts, stop)]
    assert len({n for _, n in expected}) > 2
    counter = Counter(monkeypatch)
    assert [(r.text, r.n_generated_tokens) for r in ordered(few, prompts, stop)] == expected
    sizes = zip(counter.rows, counter.longest, strict=True)
    assert all(rows * (longest + 16) <= budget for rows, longest in sizes)
    assert sum(map(len, counter.joined)) == len(prompts)
    assert sum(counter.rows) / len(counter.rows) > 2.7, "short texts make room before long ones have ended"


@pytest.mark.parametrize(
    ("waiting", "present", "budget", "max_rows", "n"),
    [
        ([90, 80, 30, 10, 10], [], 200, None, 2),  # rows count at the length of the longest and new tokens
        ([30, 10, 10], [80], 270, None, 2),
        ([30, 10, 10], [80], 270, 2, 1),
        ([30, 10, 10], [80], 100, None, 0),
        ([500, 10], [], 200, None, 1),  # one is always written
        ([500], [10], 200, None, 0),
        ([10] * 2, [10] * 6, 2000, None, 2),
        ([10] * 1, [10] * 6, 2000, None, 0),  # too few to be worth it yet
        ([], [10], 2000, None, 0),
        ([], [], 2000, None, 0),
    ],
)
def test_so_many_join(
    waiting: list[int], present: list[int], budget: int, max_rows: int | None, n: int
) -> None:
    new, old = ([Text(0, [0] * length) for length in lengths] for lengths in (waiting, present))
    assert how_many_join(new, old, 10, budget, max_rows) == n


@pytest.mark.parametrize("length", [1, 2, 5])
def test_writing_ends_with_the_token_that_completes_a_stop_text(
    generator: TransformersGenerator, length: int
) -> None:
    batch = TextBatch(generator._model, GenerationParams(max_new_tokens=16), generator._eos)
    text = generator._text_of(0, PROMPTS[0])
    batch.join([text])
    while batch.texts:
        batch.step()
    tokens = text.written
    whole = generator._decode(tokens)
    for start in range(1, len(whole) - length):
        stop = whole[start : start + length]
        needed = next(n for n in range(1, 17) if stop in generator._decode(tokens[:n]))
        (found,) = generator.generate(PROMPTS[:1], GenerationParams(max_new_tokens=16, stop=(stop,)))
        assert found.n_generated_tokens == needed


def test_a_prompt_that_is_too_long_fails_alone(generator: TransformersGenerator) -> None:
    prompts = [PROMPTS[0], ask("garden " * 500), PROMPTS[3]]
    results = ordered(generator, prompts, GenerationParams(max_new_tokens=4))
    assert [result.error is None for result in results] == [True, False, True]
    assert results[1].text == ""
    assert results[1].n_generated_tokens == 0
    assert f"The prompt has {results[1].n_prompt_tokens} tokens, at most 300 fit" in str(results[1].error)


def test_sample_of_a_prompt_depends_on_its_seed_and_not_on_other_prompts(
    generator: TransformersGenerator,
) -> None:
    def texts(prompts: list[Prompt], seed: int = 3) -> list[str]:
        params = GenerationParams(max_new_tokens=12, temperature=2.0, seed=seed)
        return [result.text for result in ordered(generator, prompts, params)]

    together = texts(PROMPTS)
    assert [text for prompt in PROMPTS for text in texts([prompt])] == together
    assert texts(PROMPTS[::-1])[::-1] == together != texts(PROMPTS, seed=4)


def test_prompts_of_two_kinds_are_written_in_one_batch_as_apart(
    generator: TransformersGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    briefly = Message("system", "Answer briefly.")
    others = [Prompt((briefly, *prompt.messages[1:])) for prompt in PROMPTS]
    params = GenerationParams(max_new_tokens=8)
    apart = [r.text for kind in (PROMPTS, others) for r in ordered(generator, kind, params)]
    beginnings: set[tuple[int, ...]] = set()
    real = PromptReader._read_pass

    def remember(reader: PromptReader, beginning: tuple[int, ...], texts: Any) -> Any:
        beginnings.add(beginning)
        return real(reader, beginning, texts)

    monkeypatch.setattr(PromptReader, "_read_pass", remember)
    counter = Counter(monkeypatch)
    assert [result.text for result in ordered(generator, [*PROMPTS, *others], params)] == apart
    assert [len(joined) for joined in counter.joined] == [10]
    assert len(beginnings) == 2
    assert min(map(len, beginnings)) > 10


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (1, 5), (4, 5), (5, 5), (16, 1, 5), (17, 5), (4, 3, 5), (0, 5)])
def test_small_batch_linear_gives_what_the_layer_gives(shape: tuple[int, ...], bias: bool) -> None:
    layer, x = torch.nn.Linear(5, 7, bias=bias), torch.randn(shape)
    expected = layer(x)
    use_small_batch_linear(layer)
    assert type(layer) is SmallBatchLinear
    torch.testing.assert_close(layer(x), expected)
    half = torch.nn.Linear(5, 7).to(torch.bfloat16)
    use_small_batch_linear(half)
    assert type(half) is torch.nn.Linear


def test_time_is_shared_out_among_the_texts_and_reading_is_a_part_of_it(tiny_model: Path) -> None:
    generator = TransformersGenerator(str(tiny_model), device="cpu")
    started = time.perf_counter()
    results = ordered(generator, PROMPTS, GenerationParams(max_new_tokens=4))
    taken = time.perf_counter() - started
    assert 0 < sum(result.seconds for result in results) <= taken
    assert 0 < generator.reading_seconds < taken


@pytest.mark.parametrize(
    ("settings", "max_prompt_tokens", "n_together"),
    [
        ({"max_position_embeddings": 512, "rope_parameters": DYNAMIC}, 508, len(PROMPTS)),
        ({"max_position_embeddings": 512, "rope_parameters": DYNAMIC}, 509, 1),
        ({"a_chunk_of_keys": 4096}, 300, 1),
    ],
)
def test_texts_are_written_together_only_where_that_is_exact(
    settings: dict[str, Any],
    max_prompt_tokens: int,
    n_together: int,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "other"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    generator = TransformersGenerator(str(folder), device="cpu", max_prompt_tokens=max_prompt_tokens)
    counter = Counter(monkeypatch)
    results = ordered(generator, PROMPTS, GenerationParams(max_new_tokens=4))
    assert all(result.error is None for result in results)
    assert max(map(len, counter.joined)) == n_together
    assert caplog.text.count("one text at a time") == ("a_chunk_of_keys" in settings)


def test_a_closed_generator_says_so(tiny_model: Path) -> None:
    generator = TransformersGenerator(str(tiny_model), device="cpu")
    generator.close()
    with pytest.raises(EngineError, match="closed"):
        list(generator.generate(PROMPTS, GenerationParams()))


def test_prompts_that_follow_from_answers_wait_until_the_first_round_is_read(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_by_one = TransformersGenerator(str(tiny_model), device="cpu", max_rows=1)
    counter = Counter(monkeypatch)
    prompts = [ask("Seeds?"), ask("Which pots, seeds?"), ask("Pots?")]
    for result in one_by_one.generate(prompts, GenerationParams(max_new_tokens=2)):
        if result.index < 3:
            prompts.append(
                ask("Known before: clay pots and seeds. And now " + "string lights " * result.index)
            )
    order = [index for joined in counter.joined for index in joined]
    assert sorted(order[:3]) == [0, 1, 2]
    assert sorted(order[3:]) == [3, 4, 5]
    assert set(counter.rows) == {1}
