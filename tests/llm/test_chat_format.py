"""Whatever a chat template does, a prompt holds every turn's text, one BOS, and the answer comes next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Never

import jinja2
import pytest

from trsr.errors import ModelError
from trsr.llm.base import Message, Prompt
from trsr.llm.chat_format import ChatTokenizer, with_system_in_front
from trsr.llm.llamacpp import LlamaCppTokenizer
from trsr.testing.contracts import ask


def written(text: str, only: str = "true") -> str:
    """Return a chat template that writes `text` for each turn for which `only` is true."""
    turn = f"<|{{{{ message.role }}}}|>{{{{ {text} }}}}<|end|>\n"
    return f"{{% for message in messages if {only} %}}{turn}{{% endfor %}}<|assistant|>"


def refused(test: str, words: str) -> str:
    return f"{{% if {test} %}}{{{{ raise_exception('{words}') }}}}{{% endif %}}"


KEEPS = written("message.content")
TRIMS = written("message.content | trim")
REFUSES_SYSTEM = refused("messages[0].role == 'system'", "System role not supported") + KEEPS
DROPS_SYSTEM = written("message.content", only="message.role != 'system'")
ALTERNATES = refused("messages[0].role != 'user'", "Conversation roles must alternate") + TRIMS
LOWERS = written("message.content | lower")
SHORTENS = written("message.content | truncate(9)")
FAILS = "{{ messages[7].content.nothing }}"
THINKS = KEEPS + "{% if enable_thinking == false %}<think>\n\n</think>\n\n{% endif %}"
ALWAYS_THINKS = KEEPS + "{{ '<think>\\n' }}"
BOS = "{{ bos_token }}"


def _raise(words: str) -> Never:
    raise jinja2.TemplateError(words)


class TemplateTokenizer(ChatTokenizer):
    """Bytes, with a chat template and a BOS (token 256, `<s>`) of which either may be missing."""

    special_texts = ("<s>",)

    def __init__(self, template: str | None = KEEPS, *, adds_bos: bool = False, blank: str = "") -> None:
        environment = jinja2.Environment()
        environment.globals.update(raise_exception=_raise, bos_token="<s>")
        self._template = None if template is None else environment.from_string(template)
        self.has_chat_template = template is not None
        self.name = "tiny"
        self._adds_bos, self._blank = adds_bos, blank

    def apply_template(self, turns: list[dict[str, str]], variables: dict[str, Any]) -> str:
        assert self._template is not None
        return self._template.render(messages=turns, **variables)

    def token_ids(self, text: str, *, adds_special: bool) -> list[int]:
        first, *rest = text.split("<s>")
        ids = list((self._blank * bool(first) + first).encode())
        for part in rest:
            ids += [256, *(self._blank * bool(part) + part).encode()]
        return [256, *ids] if adds_special and self._adds_bos else ids

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join("<s>" if i == 256 else chr(i) for i in token_ids)


@pytest.mark.parametrize("template", [KEEPS, TRIMS])
def test_a_template_with_a_system_role_is_used_as_it_is(template: str) -> None:
    tokenizer = TemplateTokenizer(template)
    assert tokenizer.render_chat(ask("Seeds?", prefill="Yes,")) == (
        "<|system|>You answer in one sentence.<|end|>\n<|user|>Seeds?<|end|>\n<|assistant|>Yes,"
    )
    assert tokenizer.prompt_version == 1


@pytest.mark.parametrize("template", [REFUSES_SYSTEM, DROPS_SYSTEM, ALTERNATES])
def test_a_system_text_that_has_no_role_stands_before_the_users(template: str) -> None:
    tokenizer = TemplateTokenizer(template)
    assert tokenizer.render_chat(ask("Seeds?")) == (
        "<|user|>You answer in one sentence.\n\nSeeds?<|end|>\n<|assistant|>"
    )
    assert tokenizer.prompt_version == 2


def test_later_turns_stay_as_they_are_when_the_system_text_moves() -> None:
    turns = tuple(Message(role, role[0]) for role in ("system", "user", "assistant", "user"))
    moved = with_system_in_front(turns)
    assert [turn.content for turn in moved] == ["s\n\nu", "a", "u"]
    assert with_system_in_front(moved) == moved
    assert with_system_in_front(turns[:1]) == (Message("user", "s"),)


@pytest.mark.parametrize(
    "template",
    [LOWERS, SHORTENS, written("message.content | e"), "hello", KEEPS.replace("messages", "messages[1:]")],
)
def test_a_template_that_does_not_keep_the_text_is_one_error(template: str) -> None:
    with pytest.raises(ModelError, match=r"chat template of tiny does not keep the text of the \w+ turn"):
        TemplateTokenizer(template).render_chat(ask("Seeds & Soil? Many Of Them"))


@pytest.mark.parametrize("template", [FAILS, "{{ 1 / 0 }}", "{{ raise_exception('a\nb') }}"])
def test_a_template_that_fails_is_one_sentence(template: str) -> None:
    with pytest.raises(ModelError, match="chat template of tiny failed") as caught:
        TemplateTokenizer(template).render_chat(ask("Seeds?"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("template", "end"), [(THINKS, ""), (ALWAYS_THINKS, "<think>\n")])
def test_a_think_block_is_closed_only_where_the_answer_is_to_come_next(template: str, end: str) -> None:
    tokenizer = TemplateTokenizer(template)
    assert tokenizer.render_chat(ask("Seeds?")).endswith(f"<|assistant|>{end}")
    answered = tokenizer.render_chat(ask("Seeds?", prefill="Answer:"), think=False)
    assert answered.endswith("<|assistant|><think>\n\n</think>\n\nAnswer:")
    assert tokenizer.prompt_version == 2


def test_an_answer_that_is_to_come_next_is_in_the_final_channel() -> None:
    tokenizer = TemplateTokenizer(KEEPS.replace("<|assistant|>", "<|start|>assistant"))
    assert tokenizer.render_chat(ask("Seeds?")).endswith("<|start|>assistant")
    answered = tokenizer.render_chat(ask("Seeds?", prefill="Answer:"), think=False)
    assert answered.endswith("<|start|>assistant<|channel|>final<|message|>Answer:")
    assert tokenizer.prompt_version == 2


def test_the_blank_that_a_template_writes_before_an_answer_is_known() -> None:
    instructs = (
        "{% for message in messages %}{% if message.role == 'assistant' %}{{ ' ' + message.content }}"
        "{% else %}{{ '[INST] ' + message.content + '[/INST]' }}{% endif %}{% endfor %}"
    )
    assert (TemplateTokenizer(instructs).answer_blank, TemplateTokenizer(instructs).prompt_version) == (
        " ",
        2,
    )
    for template in (KEEPS, TRIMS, ALTERNATES, ALWAYS_THINKS, None):
        assert TemplateTokenizer(template).answer_blank == ""


def test_a_prompt_of_tomorrow_is_that_of_today() -> None:
    dated = KEEPS.replace("<|assistant|>", "{{ date_string or now() }}")
    assert TemplateTokenizer(dated).render_chat(ask("Seeds?")).endswith("26 Jul 2024")


def test_a_model_without_a_chat_template_gets_paragraphs() -> None:
    assert TemplateTokenizer(None).render_chat(ask("Seeds?", prefill="Yes,")) == (
        "You answer in one sentence.\n\nSeeds?\n\nYes,"
    )
    assert TemplateTokenizer(None).prompt_version == 2


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("template", [None, KEEPS, BOS + KEEPS, BOS + REFUSES_SYSTEM])
def test_one_bos_begins_a_prompt_if_the_tokenizer_or_the_template_writes_it(
    template: str | None, adds_bos: bool
) -> None:
    tokenizer = TemplateTokenizer(template, adds_bos=adds_bos)
    ids = tokenizer.encode_prompt(tokenizer.render_chat(ask("Seeds?")))
    writes = template is not None and template.startswith(BOS)
    assert ids.count(256) == (adds_bos or writes)
    assert (ids[0] == 256) == (adds_bos or writes)
    assert 256 not in tokenizer.encode("Seeds?")


def test_prompts_are_of_the_first_version_unless_a_bos_is_added() -> None:
    assert TemplateTokenizer(BOS + KEEPS, adds_bos=True).prompt_version == 1
    assert TemplateTokenizer(KEEPS, adds_bos=True).prompt_version == 2
    assert TemplateTokenizer(KEEPS, blank=" ").prompt_version == 2


@pytest.mark.parametrize("template", [None, KEEPS, TRIMS, BOS + KEEPS])
def test_prompts_for_texts_changed_only_where_a_bos_is_added(template: str | None) -> None:
    assert TemplateTokenizer(template, blank=" ").text_prompt_version == 1
    written = template is not None and template.startswith(BOS)
    assert TemplateTokenizer(template, adds_bos=True).text_prompt_version == 2 - written


@pytest.mark.parametrize("template", [REFUSES_SYSTEM, DROPS_SYSTEM, THINKS, ALWAYS_THINKS, FAILS])
def test_prompts_for_texts_changed_with_the_system_text_and_the_think_block(template: str) -> None:
    assert TemplateTokenizer(template).text_prompt_version == 2


def test_a_text_that_goes_on_another_gets_no_blank_of_the_tokenizers_own() -> None:
    tokenizer = TemplateTokenizer(None, adds_bos=True, blank=" ")
    assert tokenizer.decode(tokenizer.encode("lamp")) == "lamp"
    assert tokenizer.decode(tokenizer.encode_prompt("A lamp")) == "<s> A lamp"
    assert tokenizer.encode("") == []


def test_any_failure_of_a_tokenizer_without_turns_is_no_traceback() -> None:
    with pytest.raises(ModelError, match="failed"):
        TemplateTokenizer(FAILS).render_chat(Prompt(()))


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_prompt_begins_with_the_bos_that_llama_cpp_puts_there(
    adds_bos: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(_server: Any, path: str, request: dict[str, Any]) -> dict[str, Any]:
        if path == "/tokenize":
            ids = list(request["content"].encode())
            return {"tokens": [256, *ids] if request["add_special"] and adds_bos else ids}
        if any(turn["role"] == "system" for turn in request["messages"]):
            return {"error": {"code": 500, "message": "System role not supported"}}
        return {"prompt": "".join(turn["content"] for turn in request["messages"])}

    monkeypatch.setattr("trsr.llm.llamacpp.ask_server", answer)
    tokenizer = LlamaCppTokenizer(None, "x")
    text = tokenizer.render_chat(ask("Seeds?"))
    assert text == "You answer in one sentence.\n\nSeeds?"
    assert tokenizer.encode_prompt(text) == [*([256] if adds_bos else []), *text.encode()]
    assert tokenizer.encode("lamp") == list(b"lamp")
