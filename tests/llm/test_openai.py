"""The HTTP engine against llama.cpp's real server, and against a server that misbehaves by script."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from scripted_server import (
    Answer,
    ScriptedServer,
    cut,
    garbage,
    late,
    refuse,
    say,
    scripted,
    web_page,
)

from trsr.errors import EngineError
from trsr.llm.base import Generation, GenerationParams, PhrasePart, Prompt, TextGenerator
from trsr.llm.engines import OpenAIEngine
from trsr.llm.openai import OpenAIGenerator
from trsr.testing.contracts import TextGeneratorContract, ask

PREFILLED = ask("Name a colour.", prefill="The colour is")
HELD = replace(ask("What?"), parts=(PhrasePart(("tea",), 1),))


def open_engine(url: str, **options: Any) -> OpenAIGenerator:
    return OpenAIGenerator(
        OpenAIEngine(**{"base_url": url, "model": "m", "timeout": 60.0, "retries": 2, **options})
    )


def answers(engine: OpenAIGenerator | ScriptedServer, *prompts: Prompt, **options: Any) -> list[Generation]:
    """Return the results in the order of the prompts; options are passed to the engine."""
    if isinstance(engine, ScriptedServer):
        engine = open_engine(engine.url, **options)
    params = GenerationParams(max_new_tokens=4, stop=("\n",))
    return sorted(engine.generate(prompts or [ask("Hello")], params), key=lambda result: result.index)


@pytest.mark.model
@pytest.mark.slow
class TestOpenAI(TextGeneratorContract):
    url: ClassVar[str]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _server(cls, llama_url: str) -> None:
        cls.url = llama_url

    @classmethod
    def make_generator(cls) -> TextGenerator:
        return open_engine(cls.url, concurrency=3, grammar="llama.cpp")


@pytest.mark.model
@pytest.mark.slow
def test_a_prompt_too_long_for_a_real_server_fails_alone(llama_url: str) -> None:
    results = answers(open_engine(llama_url), ask("word " * 700), ask("Name a colour."))
    assert [result.error is None for result in results] == [False, True]
    assert "context" in str(results[0].error)


@pytest.mark.parametrize(
    ("trouble", "timeout"),
    [
        pytest.param(refuse(429), 60, id="429"),
        pytest.param(refuse(500), 60, id="500"),
        pytest.param(refuse(503), 60, id="503"),
        pytest.param(cut, 60, id="cut"),
        # Slow, since the second answer may take as long.
        pytest.param(late(600, say("too late")), 10, id="late", marks=pytest.mark.slow),
    ],
)
def test_passing_trouble_is_tried_again(trouble: Answer, timeout: float) -> None:
    with scripted(trouble, say("a text ")) as server:
        (result,) = answers(server, timeout=timeout)
        assert result == Generation(0, "a text", 3, 2, result.seconds)
        assert len(server.requests) == 2


def test_the_wait_the_server_asks_for_is_kept() -> None:
    with scripted(refuse(429, Retry_After="1.2"), say("ok")) as server:
        assert answers(server)[0].text == "ok"
        assert server.times[1] - server.times[0] >= 1.2


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (refuse(429, "slow down"), "429, after 2 tries: slow down"),
        (refuse(500, "out of memory"), "500, after 2 tries: out of memory"),
        (cut, "broke before the answer was whole, after 2 tries"),
        (late(600, say("too late")), "within 1 s, after 2 tries"),
        (refuse(400, "too many tokens"), "400, at once: too many tokens"),
        (garbage, "not JSON"),
        (web_page, "not a chat completion"),
    ],
    ids=["429", "500", "cut", "late", "400", "garbage", "web page"],
)
def test_lasting_trouble_is_a_failed_result_that_says_why(trouble: Answer, words: str) -> None:
    with scripted(trouble) as server:
        (result,) = answers(server, timeout=1 if "within 1 s" in words else 60, retries=1)
        assert result.text == ""
        assert words in str(result.error)
        assert len(server.requests) == (2 if "2 tries" in words else 1)


def test_one_bad_prompt_does_not_touch_the_others() -> None:
    with scripted(say("a"), refuse(400), say("b")) as server:
        prompts = [ask(topic) for topic in "123"]
        assert [result.text for result in answers(server, *prompts, concurrency=1)] == ["a", "", "b"]
        # In the order given, so that the server's prefix cache hits.
        assert [request["messages"][-1]["content"] for request in server.requests] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("status", "words"), [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "'m'")]
)
def test_a_refused_key_and_an_unknown_model_stop_the_engine_at_once(status: int, words: str) -> None:
    with scripted(refuse(status)) as server:
        with pytest.raises(EngineError, match=words) as caught:
            answers(server, *[ask(str(i)) for i in range(50)], concurrency=2)
        assert not caught.value.retryable
        assert len(server.requests) <= 2


def test_a_server_that_is_not_there_is_one_retryable_error() -> None:
    with scripted(say("")) as server:
        url = server.url
    with pytest.raises(EngineError, match="cannot be reached") as caught:
        answers(open_engine(url, retries=0))
    assert caught.value.retryable


def test_no_more_calls_are_in_flight_than_allowed() -> None:
    with scripted(late(0.05, say("ok"))) as server:
        results = answers(server, *[ask(str(i)) for i in range(12)], concurrency=3)
        assert [result.index for result in results] == list(range(12))
        assert server.most_in_flight == 3


def test_results_come_as_soon_as_they_are_ready() -> None:
    go_on = threading.Event()

    def by_question(handler: Any, request: dict[str, Any]) -> None:
        question = request["messages"][1]["content"]
        assert question != "slow" or go_on.wait(60)
        say(question)(handler, request)

    with scripted(by_question) as server:
        results = open_engine(server.url).generate([ask("slow"), ask("fast")], GenerationParams())
        assert next(results).text == "fast"
        go_on.set()
        assert next(results).text == "slow"


def test_losing_interest_cancels_what_is_left() -> None:
    with scripted(say("first"), late(600, say("never"))) as server:
        engine = open_engine(server.url, concurrency=2, timeout=600)
        results = engine.generate([ask(str(i)) for i in range(9)], GenerationParams())
        assert next(results).text == "first"
        del results  # without a cancel, this would wait for the late ones
        assert len(server.requests) < 9
        assert not [thread for thread in threading.enumerate() if thread.name == "trsr-openai"]


@pytest.mark.parametrize("written", ["The colour is blue.", "blue."])
def test_a_prefill_is_continued_and_not_repeated(written: str) -> None:
    with scripted(say(written)) as server:
        assert answers(server, PREFILLED)[0].text == "blue."
        (request,) = server.requests
        assert request["messages"][-1] == {"role": "assistant", "content": "The colour is"}
        assert request["continue_final_message"] is True
        assert request["add_generation_prompt"] is False


@pytest.mark.parametrize(
    ("refusals", "left"),
    [
        ([(400, "Unrecognized request argument: continue_final_message")], {"thinking", "effort"}),
        ([(400, "Unrecognized request argument supplied: chat_template_kwargs")], {"continue", "effort"}),
        ([(400, "unknown field chat_template_kwargs"), (422, "reasoning_effort: extra")], {"continue"}),
    ],
)
def test_a_field_that_the_server_refuses_is_left_out_from_then_on(
    refusals: list[tuple[int, str]], left: set[str]
) -> None:
    fields = {
        "continue": {"continue_final_message", "add_generation_prompt"},
        "thinking": {"chat_template_kwargs"},
        "effort": {"reasoning_effort"},
    }
    with scripted(*[refuse(*refusal) for refusal in refusals], say("blue")) as server:
        results = answers(server, *[PREFILLED] * 3, concurrency=1)
        assert [result.text for result in results] == ["blue"] * 3
        assert len(server.requests) == 3 + len(refusals)
        sent = set().union(*fields.values()) & set(server.requests[-1])
        assert sent == set().union(*(fields[name] for name in left))


@pytest.mark.parametrize(
    "reason", ["System role not supported", "Conversation roles must alternate user/assistant/user/..."]
)
def test_a_server_that_refuses_the_system_role_gets_its_text_in_front_of_the_users(reason: str) -> None:
    def strict(handler: Any, request: dict[str, Any]) -> None:
        first = request["messages"][0]["role"]
        (refuse(400, reason) if first == "system" else say("blue"))(handler, request)

    with scripted(strict) as server:
        results = answers(server, *[ask("Name a colour.")] * 3, concurrency=1)
        assert [result.text for result in results] == ["blue"] * 3
        assert len(server.requests) == 4
        assert server.requests[-1]["messages"] == [
            {"role": "user", "content": "You answer in one sentence.\n\nName a colour."}
        ]


def test_a_prompt_that_is_refused_in_any_role_fails_with_the_reason() -> None:
    with scripted(refuse(400, "This system takes no roles")) as server:
        (result,) = answers(server)
        assert "takes no roles" in str(result.error)
        assert len(server.requests) == 2


def test_the_request_holds_the_parameters() -> None:
    with scripted(say("ok")) as server:
        engine = open_engine(server.url)
        sampling = GenerationParams(7, temperature=0.5, frequency_penalty=0.25, seed=3, stop=("END",))
        for params in (sampling, GenerationParams(7)):
            list(engine.generate([ask("Hello")], params))
        sampled, greedy = ({**request, "messages": []} for request in server.requests)
        assert greedy == {
            "model": "m",
            "messages": [],
            "max_tokens": 7,
            "temperature": 0.0,
            "chat_template_kwargs": {"enable_thinking": False, "thinking": False},
            "reasoning_effort": "none",
        }
        assert sampled == greedy | {"temperature": 0.5, "frequency_penalty": 0.25, "seed": 3, "stop": ["END"]}


def test_the_key_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "very-secret")
    with scripted(say("ok")) as server:
        answers(server, api_key_env="MY_KEY")
        assert server.headers[0]["authorization"] == "Bearer very-secret"


@pytest.mark.parametrize(
    ("field", "path"),
    [("llama.cpp", ["grammar"]), ("vllm", ["structured_outputs", "grammar"]), ("sglang", ["ebnf"])],
)
def test_a_grammar_is_sent_as_the_server_takes_it(field: str, path: list[str]) -> None:
    with scripted(say("tea")) as server:
        answers(server, HELD, grammar=field)
    (found,) = server.requests
    for name in path:
        found = found[name]
    assert str(found).startswith("root ::= ")
    assert '"tea"' in str(found)


def test_a_prompt_with_phrases_needs_a_server_that_takes_grammars() -> None:
    with scripted(say("tea")) as server, pytest.raises(EngineError, match=r"set engine\.grammar to"):
        answers(server, HELD)


@pytest.mark.parametrize("thinking", ["off", "strip"])
@pytest.mark.parametrize(
    "answer",
    [
        say("<think>\nPens, then.\n</think>\n\nLikes pens.\nAnd ink."),
        say("Likes pens.", reasoning_content="Pens, then."),
        say("Likes pens.", reasoning="Pens, then."),
        say("Sure! Here is the summary:\n\nLikes pens."),
    ],
)
def test_a_server_that_thinks_or_introduces_gives_its_answer_only(answer: Answer, thinking: str) -> None:
    with scripted(answer) as server:
        (result,) = answers(server, thinking=thinking)
        assert (result.text, result.error) == ("Likes pens.", None)


@pytest.mark.parametrize("thinking", ["off", "strip"])
def test_an_answer_has_a_limit_whatever_the_server_sends(thinking: str) -> None:
    with scripted(say("<think>\nPens.</think>" + "buys lamps " * 200_000)) as server:
        engine = open_engine(server.url, thinking=thinking)
        (result,) = engine.generate([ask("What?")], GenerationParams(max_new_tokens=24))
    assert 200 < len(result.text) <= 240
    assert set(result.text.split()) == {"buys", "lamps"}


@pytest.mark.parametrize(
    "answer",
    [
        say("<think>\nPens", finish="length"),
        say(None, reasoning_content="Pens", finish="length"),
        say("", reasoning="Pens"),
    ],
)
def test_thoughts_without_an_answer_are_a_failed_call(answer: Answer) -> None:
    with scripted(answer) as server:
        (result,) = answers(server, thinking="strip")
        assert result.text == ""
        assert "still thinking aloud" in str(result.error)


def test_an_answer_that_a_stop_text_cut_off_before_it_began_is_requested_once_more() -> None:
    whole = say("Here is the summary:\n\nLikes pens.\n\nAnything else?")
    with scripted(say("Here is the summary:"), whole) as server:
        engine = open_engine(server.url)
        assert answers(engine)[0].text == "Likes pens."
        assert [request.get("stop") for request in server.requests] == [["\n"], None]
        assert answers(engine)[0].text == "Likes pens."
        assert len(server.requests) == 3


def test_a_model_that_may_think_gets_room_for_it_and_no_prefill() -> None:
    with scripted(say("<think>Hm.</think>The colour is blue.")) as server:
        engine = open_engine(server.url, thinking="strip", thinking_tokens=100)
        assert answers(engine, PREFILLED)[0].text == "blue."
        (request,) = server.requests
        assert request["max_tokens"] == 104
        assert request["messages"][-1]["role"] == "user"
        assert "chat_template_kwargs" not in request
        assert engine.model_id.endswith("+thinking")
