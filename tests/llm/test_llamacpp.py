"""llama.cpp in this process, with the embedded model."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trsr.errors import ModelError
from trsr.llm import models
from trsr.llm.base import GenerationParams, TextGenerator
from trsr.llm.engines import LlamaCppEngine
from trsr.llm.llamacpp import (
    LlamaCppGenerator,
    LlamaCppTokenizer,
    default_threads,
    open_server,
)
from trsr.testing.contracts import TextGeneratorContract, ask

pytestmark = [pytest.mark.model, pytest.mark.slow]


def _engine(**options: Any) -> LlamaCppGenerator:
    return LlamaCppGenerator(LlamaCppEngine(**{"max_prompt_tokens": 64, "threads": 1, **options}))


class TestLlamaCpp(TextGeneratorContract):
    @classmethod
    def make_generator(cls) -> TextGenerator:
        return _engine(n_parallel=3, max_prompt_tokens=200)


def test_a_prompt_longer_than_its_slot_fails_alone() -> None:
    generator = _engine(n_parallel=2, max_prompt_tokens=60)
    prompts = [ask("word " * 400), ask("word " * 60), ask("Name a colour.")]
    results = sorted(generator.generate(prompts, GenerationParams(max_new_tokens=4)), key=lambda r: r.index)
    generator.close()
    assert [result.error is None for result in results] == [False, False, True]
    for result in results[:2]:
        assert result.text == ""
        assert str(result.n_prompt_tokens) in str(result.error)
        assert "max_prompt_tokens" in str(result.error)


def test_texts_do_not_depend_on_the_number_of_slots_and_threads() -> None:
    prompts = [ask(f"Write about {topic}. " * n) for n, topic in enumerate(("tea", "cats", "rain"), 1)]
    texts = []
    for n_parallel, threads in ((1, 2), (3, 1)):
        generator = _engine(n_parallel=n_parallel, threads=threads)
        results = generator.generate(prompts, GenerationParams(max_new_tokens=10))
        texts.append({result.index: result.text for result in results})
        generator.close()
    assert texts[0] == texts[1]


def test_a_larger_cap_than_before_starts_larger_slots() -> None:
    generator = _engine(n_parallel=1)
    list(generator.generate([ask("Hello")], GenerationParams(max_new_tokens=1)))
    counting = ask("Count to one thousand.", prefill="1, 2, 3, 4, 5, 6,")
    (long,) = generator.generate([counting], GenerationParams(max_new_tokens=230))
    generator.close()
    assert long.n_generated_tokens > 192  # the first server's slots ended there


def test_the_chat_format_ends_with_the_prefill() -> None:
    server = open_server(models.gguf_file(models.EMBEDDED_MODEL), n_parallel=1, slot_tokens=256, threads=1)
    text = LlamaCppTokenizer(server, "x").render_chat(ask("Name a colour.", prefill="The colour is"))
    assert text.endswith("Name a colour.<|im_end|>\n<|im_start|>assistant\nThe colour is")


@pytest.mark.parametrize(("named", "threads"), [("3", 3), ("0", None), ("many", None), (None, None)])
def test_a_share_of_the_machine_is_kept_to(
    named: str | None, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if named is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", named)
    assert default_threads() == threads if threads else 1 <= default_threads() <= (os.cpu_count() or 1)


def test_a_broken_file_is_one_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really")
    generator = _engine(model=str(broken))
    with pytest.raises(ModelError, match="could not load"):
        list(generator.generate([ask("Hello")], GenerationParams()))


def test_an_unknown_model_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ModelError, match="smollm2-135m"):
        _engine(model="smollm3")


def test_a_process_that_forgets_to_close_still_ends() -> None:
    code = (
        "from trsr.llm.llamacpp import LlamaCppGenerator as G\n"
        "from trsr.llm.base import GenerationParams as P\n"
        "from trsr.testing.contracts import ask\n"
        "from trsr.llm.engines import LlamaCppEngine as E\n"
        "g = G(E(n_parallel=2, max_prompt_tokens=64, threads=1))\n"
        "results = g.generate([ask('Hello')] * 4, P(max_new_tokens=4))\n"
        "print(next(results).error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "None"


def test_a_server_that_was_never_asked_stops() -> None:
    gguf = models.gguf_file(models.EMBEDDED_MODEL)
    code = (
        "import sys; from pathlib import Path; from trsr.llm.llamacpp import open_server\n"
        "for _ in range(8): open_server(Path(sys.argv[1]), n_parallel=1, slot_tokens=64, threads=1)"
    )
    subprocess.run([sys.executable, "-c", code, str(gguf)], check=True, timeout=500)
