"""llama.cpp in this process, with the embedded model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trsr.errors import ModelError
from trsr.llm.base import Generation, GenerationParams, Prompt, TextGenerator
from trsr.llm.engines import LlamaCppEngine
from trsr.llm.llamacpp import LlamaCppGenerator, default_threads
from trsr.testing.contracts import TextGeneratorContract, ask

pytestmark = [pytest.mark.model, pytest.mark.slow]


def open_engine(**options: Any) -> LlamaCppGenerator:
    return LlamaCppGenerator(LlamaCppEngine(**{"max_prompt_tokens": 64, "threads": 1, **options}))


def answers(engine: LlamaCppGenerator, prompts: list[Prompt], n_new: int) -> list[Generation]:
    return sorted(engine.generate(prompts, GenerationParams(max_new_tokens=n_new)), key=lambda r: r.index)


class TestLlamaCpp(TextGeneratorContract):
    @classmethod
    def make_generator(cls) -> TextGenerator:
        return open_engine(n_parallel=3, max_prompt_tokens=200)


def test_a_prompt_longer_than_its_slot_fails_alone() -> None:
    engine = open_engine(n_parallel=2, max_prompt_tokens=60)
    results = answers(engine, [ask("word " * 400), ask("word " * 60), ask("Name a colour.")], 4)
    engine.close()
    assert [result.error is None for result in results] == [False, False, True]
    for result in results[:2]:
        assert result.text == ""
        assert str(result.n_prompt_tokens) in str(result.error)
        assert "max_prompt_tokens" in str(result.error)


def test_texts_do_not_depend_on_the_number_of_slots_and_threads() -> None:
    prompts = [ask(f"Write about {topic}. " * n) for n, topic in enumerate(("tea", "cats", "rain"), 1)]
    texts = []
    for n_parallel, threads in ((1, 2), (3, 1)):
        engine = open_engine(n_parallel=n_parallel, threads=threads)
        texts.append([result.text for result in answers(engine, prompts, 10)])
        engine.close()
    assert texts[0] == texts[1]


def test_a_larger_cap_than_before_starts_larger_slots() -> None:
    engine = open_engine(n_parallel=1)
    answers(engine, [ask("Hello")], 1)
    (long,) = answers(engine, [ask("Count to one thousand.", prefill="1, 2, 3, 4, 5, 6,")], 230)
    engine.close()
    assert long.n_generated_tokens > 192  # the first server's slots ended there


@pytest.mark.parametrize(("named", "threads"), [("3", 3), ("0", None), ("many", None), (None, None)])
def test_a_share_of_the_machine_is_kept_to(
    named: str | None, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if named is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", named)
    n_cpus = os.cpu_count() or 1
    assert default_threads() in ([threads] if threads else range(1, n_cpus + 1))


def test_a_broken_file_and_an_unknown_model_are_one_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really")
    with pytest.raises(ModelError, match="could not load"):
        answers(open_engine(model=str(broken)), [ask("Hello")], 4)
    with pytest.raises(ModelError, match="smollm2-135m"):
        open_engine(model="smollm3")


@pytest.mark.parametrize(
    "code",
    [
        # not closed
        "results = LlamaCppGenerator(LlamaCppEngine(n_parallel=2, max_prompt_tokens=64, threads=1)).generate("
        "[ask('Hello')] * 4, GenerationParams(max_new_tokens=4)); assert next(results).error is None",
        # never used
        "[open_server(models.gguf_file(models.EMBEDDED_MODEL), n_parallel=1, slot_tokens=64, threads=1)"
        " and None for _ in range(8)]",
    ],
)
def test_a_process_with_an_open_server_still_ends(code: str) -> None:
    imports = (
        "from trsr.llm import models; from trsr.llm.base import GenerationParams; "
        "from trsr.llm.engines import LlamaCppEngine; from trsr.testing.contracts import ask; "
        "from trsr.llm.llamacpp import LlamaCppGenerator, open_server; "
    )
    done = subprocess.run([sys.executable, "-c", imports + code], timeout=500, check=False)
    assert done.returncode == 0
