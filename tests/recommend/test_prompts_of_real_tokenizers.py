"""With tokenizers that people bring, a prompt is what their own library makes of the same turns."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import Any

import pytest
from real_tokenizers import save_real_tokenizer

from trsr.llm.base import LabelTokens
from trsr.llm.transformers import HfTokenizer
from trsr.recommend.prompt import PromptBuilder, PromptConfig, load_ranking_template

pytestmark = pytest.mark.slow
ITEMS = {"a": "Title: Pens & ink, 3 of them", "b": "Title: Crème brûlée", "c": "Title: lamp"}
PROFILE = "Likes pens; before that lamps."
REFUSES_SYSTEM = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{{ '<start_of_turn>' + message.role + '\n' }}"
    "{{ message.content | trim + '<end_of_turn>\n' }}{% endfor %}{{ '<start_of_turn>model\n' }}"
)


Open = Callable[..., HfTokenizer]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Open:
    """Opens tokenizers, each once; what is fetched is shared by all processes of this session."""
    base, folders = tmp_path_factory.getbasetemp(), tmp_path_factory.mktemp("tokenizers")
    packages = (base.parent if base.name.startswith("popen-") else base) / "npm"

    @cache
    def get(name: str, *, chat: bool = True) -> HfTokenizer:
        return HfTokenizer(save_real_tokenizer(name, folders / f"{name}{chat}", packages, chat=chat))

    return get


def prompt_of(tokenizer: HfTokenizer, template: str) -> tuple[PromptBuilder, list[int]]:
    loaded = load_ranking_template(template, "any")
    builder = PromptBuilder(loaded, PromptConfig(), tokenizer, ITEMS.__getitem__)
    group = builder.build(["a", "b"], PROFILE, ["c"]).group
    return builder, [*group.prefix, *group.suffixes[0]]


def turns_of(builder: PromptBuilder) -> list[dict[str, str]]:
    values: dict[str, Any] = {
        "recent": [ITEMS["a"], ITEMS["b"]],
        "notes": "",
        "profile": PROFILE,
        "candidate": ITEMS["c"],
    }
    system, prefix, candidate = (
        builder.template.render(section, **values) for section in ("system", "prefix", "candidate")
    )
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": f"{prefix}\n{candidate}"},
    ]


@pytest.mark.parametrize("template", ["generic", "paper"])
@pytest.mark.parametrize("name", ["llama3", "gemma3", "qwen3"])
def test_a_chat_prompt_is_that_of_the_tokenizers_own_chat_template(
    name: str, template: str, opened: Open
) -> None:
    tokenizer = opened(name)
    builder, ids = prompt_of(tokenizer, template)
    options = {"add_generation_prompt": True, "enable_thinking": False}
    assert ids == tokenizer.hf.apply_chat_template(turns_of(builder), **options)["input_ids"]
    labels = builder.labels()
    words = [tokenizer.decode([i]) for i in (labels.positive, labels.negative)]
    assert words == (["Yes", "No"] if template == "paper" else ["yes", "no"])


@pytest.mark.parametrize("template", ["generic", "news", "products", "movies", "paper"])
@pytest.mark.parametrize("name", ["llama2", "gemma3", "gpt2"])
def test_a_base_models_prompt_is_the_whole_text_as_its_tokenizer_reads_it(
    name: str, template: str, opened: Open
) -> None:
    tokenizer = opened(name, chat=False)
    builder, ids = prompt_of(tokenizer, template)
    text = "\n\n".join(turn["content"] for turn in turns_of(builder)) + "\n\nAnswer:"
    assert ids == tokenizer.hf(text)["input_ids"]
    labels = builder.labels()
    words = [tokenizer.hf.convert_ids_to_tokens(i) for i in (labels.positive, labels.negative)]
    blank, answers = "Ġ" if name == "gpt2" else "▁", ["Yes", "No"] if template == "paper" else ["yes", "no"]
    assert words == [f"{blank}{answer}" for answer in answers]


def test_a_gemma_that_refuses_the_system_role_reads_its_text_from_the_user(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = HfTokenizer(opened("gemma3").hf.name_or_path)
    monkeypatch.setattr(tokenizer.hf, "chat_template", REFUSES_SYSTEM)
    builder, ids = prompt_of(tokenizer, "generic")
    system, user = (turn["content"] for turn in turns_of(builder))
    turns = [{"role": "user", "content": f"{system}\n\n{user}"}]
    assert ids == tokenizer.hf.apply_chat_template(turns)["input_ids"]


def test_the_qwen3_rerankers_prompt_is_that_of_its_page(opened: Open) -> None:
    tokenizer = opened("qwen3")
    builder, ids = prompt_of(tokenizer, "qwen3_reranker")
    system, user = (turn["content"] for turn in turns_of(builder))
    before = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n"
    after = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    parts = [tokenizer.hf(part, add_special_tokens=False)["input_ids"] for part in (before, user, after)]
    assert ids == [*chain.from_iterable(parts)]
    options = {"add_generation_prompt": True, "enable_thinking": False}
    assert ids == tokenizer.hf.apply_chat_template(turns_of(builder), **options)["input_ids"]
    vocabulary = tokenizer.hf.get_vocab()
    assert builder.labels() == LabelTokens(vocabulary["yes"], vocabulary["no"])
