"""The HTTP engine against llama.cpp's real server, and against a server that misbehaves by script."""

import json
import os
import threading
from collections.abc import Iterator
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
    send,
    web_page,
)

from trsr.errors import EngineError
from trsr.llm import models
from trsr.llm.base import Generation, GenerationParams, PhrasePart, TextGenerator
from trsr.llm.engines import OpenAIEngine
from trsr.llm.openai import OpenAIGenerator
from trsr.testing.contracts import TextGeneratorContract, ask


@pytest.fixture(scope="module")
def llama_url() -> Iterator[str]:
    """The base URL of a real llama.cpp server with the embedded model; four slots of 512 tokens."""
    from trsr.llm.llamacpp import open_server

    server = open_server(models.gguf_file(models.EMBEDDED_MODEL), n_parallel=4, slot_tokens=512, threads=1)
    yield f"{server.listening_address}/v1"
    del server


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
        return OpenAIGenerator(_config(cls.url, model="smollm2-135m", concurrency=3, grammar="llama.cpp"))


@pytest.mark.model
@pytest.mark.slow
def test_a_prompt_too_long_for_a_real_server_fails_alone(llama_url: str) -> None:
    prompts = [ask("word " * 700), ask("Name a colour.")]
    results = _generate(OpenAIGenerator(_config(llama_url, model="smollm2-135m")), prompts)
    assert [result.error is None for result in results] == [False, True]
    assert "context" in str(results[0].error)


def _generate(generator: OpenAIGenerator, prompts: list[Any] | None = None) -> list[Generation]:
    params = GenerationParams(max_new_tokens=4, stop=("\n",))
    return sorted(generator.generate(prompts or [ask("Hello")], params), key=lambda result: result.index)


def _engine(server: ScriptedServer, **options: Any) -> OpenAIGenerator:
    return OpenAIGenerator(_config(server.url, **options))


def _config(url: str, **options: Any) -> OpenAIEngine:
    return OpenAIEngine(**{"base_url": url, "model": "m", "timeout": 60.0, "retries": 2, **options})


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
        (result,) = _generate(_engine(server, timeout=timeout))
        assert result == Generation(0, "a text", 3, 2, result.seconds)
        assert len(server.requests) == 2


def test_the_wait_the_server_asks_for_is_kept() -> None:
    with scripted(refuse(429, retry_after="1.2"), say("ok")) as server:
        assert _generate(_engine(server))[0].text == "ok"
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
        timeout = 1 if "within 1 s" in words else 60
        (result,) = _generate(_engine(server, timeout=timeout, retries=1))
        assert result.text == ""
        assert words in str(result.error)
        assert len(server.requests) == (2 if "2 tries" in words else 1)


def test_one_bad_prompt_does_not_touch_the_others() -> None:
    with scripted(say("a"), refuse(400), say("b")) as server:
        results = _generate(_engine(server, concurrency=1), [ask("1"), ask("2"), ask("3")])
        assert [result.text for result in results] == ["a", "", "b"]


@pytest.mark.parametrize(
    ("status", "words"), [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "'m'")]
)
def test_a_refused_key_and_an_unknown_model_stop_the_engine_at_once(status: int, words: str) -> None:
    with scripted(refuse(status)) as server:
        with pytest.raises(EngineError, match=words) as caught:
            _generate(_engine(server, concurrency=2), [ask(str(i)) for i in range(50)])
        assert not caught.value.retryable
        assert len(server.requests) <= 2


def test_a_server_that_is_not_there_is_one_retryable_error() -> None:
    with scripted(say("")) as server:
        url = server.url
    with pytest.raises(EngineError, match="cannot be reached") as caught:
        _generate(OpenAIGenerator(_config(url, retries=0)))
    assert caught.value.retryable


def test_no_more_calls_are_in_flight_than_allowed() -> None:
    with scripted(late(0.05, say("ok"))) as server:
        results = _generate(_engine(server, concurrency=3), [ask(str(i)) for i in range(12)])
        assert [result.index for result in results] == list(range(12))
        assert server.most_in_flight == 3


def test_results_come_as_soon_as_they_are_ready() -> None:
    go_on = threading.Event()

    def by_question(handler: Any, request: dict[str, Any]) -> None:
        question = request["messages"][1]["content"]
        assert question != "slow" or go_on.wait(60)
        say(question)(handler, request)

    with scripted(by_question) as server:
        results = _engine(server).generate([ask("slow"), ask("fast")], GenerationParams())
        assert next(results).text == "fast"
        go_on.set()
        assert next(results).text == "slow"


def test_losing_interest_cancels_what_is_left() -> None:
    with scripted(say("first"), late(600, say("never"))) as server:
        results = _engine(server, concurrency=2, timeout=600).generate(
            [ask(str(i)) for i in range(9)], GenerationParams()
        )
        assert next(iter(results)).text == "first"
        del results  # without a cancel, this would wait for the late ones
        assert len(server.requests) < 9
        assert not [thread for thread in threading.enumerate() if thread.name == "trsr-openai"]


def test_an_echoed_prefill_is_removed() -> None:
    with scripted(say("The colour is blue.")) as server:
        (result,) = _generate(_engine(server), [ask("Name a colour.", prefill="The colour is")])
        assert result.text == "blue."
        assert server.requests[0]["messages"][-1] == {"role": "assistant", "content": "The colour is"}
        assert server.requests[0]["continue_final_message"] is True
        assert server.requests[0]["add_generation_prompt"] is False


def test_a_server_that_refuses_to_continue_a_message_is_asked_without() -> None:
    def strict(handler: Any, request: dict[str, Any]) -> None:
        if "continue_final_message" in request:
            error = {"error": {"message": "Unrecognized request argument: continue_final_message"}}
            send(handler, 400, json.dumps(error))
        else:
            say("blue")(handler, request)

    with scripted(strict) as server:
        prompts = [ask("Name a colour.", prefill="It is")] * 3
        assert [r.text for r in _generate(_engine(server, concurrency=1), prompts)] == ["blue"] * 3
        assert len(server.requests) == 4


@pytest.mark.parametrize(
    "reason", ["System role not supported", "Conversation roles must alternate user/assistant/user/..."]
)
def test_a_server_that_refuses_the_system_role_gets_its_text_in_front_of_the_users(reason: str) -> None:
    def strict(handler: Any, request: dict[str, Any]) -> None:
        first = request["messages"][0]["role"]
        (refuse(400, reason) if first == "system" else say("blue"))(handler, request)

    with scripted(strict) as server:
        prompts = [ask("Name a colour.")] * 3
        assert [r.text for r in _generate(_engine(server, concurrency=1), prompts)] == ["blue"] * 3
        assert len(server.requests) == 4
        assert server.requests[-1]["messages"] == [
            {"role": "user", "content": "You answer in one sentence.\n\nName a colour."}
        ]


def test_a_prompt_that_is_refused_in_any_role_fails_with_the_reason() -> None:
    with scripted(refuse(400, "This system takes no roles")) as server:
        (result,) = _generate(_engine(server), [ask("Name a colour.")])
        assert result.error is not None
        assert "takes no roles" in result.error
        assert len(server.requests) == 2


def test_the_request_holds_the_parameters() -> None:
    with scripted(say("ok")) as server:
        engine = _engine(server)
        list(engine.generate([ask("Hello")], GenerationParams(7, temperature=0.5, seed=3, stop=("END",))))
        list(engine.generate([ask("Hello")], GenerationParams(7)))
        sampled, greedy = server.requests
        assert sampled | {"messages": []} == {
            "model": "m",
            "messages": [],
            "max_tokens": 7,
            "temperature": 0.5,
            "seed": 3,
            "stop": ["END"],
            "chat_template_kwargs": {"enable_thinking": False, "thinking": False},
            "reasoning_effort": "none",
        }
        assert greedy["temperature"] == 0.0
        assert "seed" not in greedy


def test_the_key_is_sent_but_never_shown(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", "very-secret")
    monkeypatch.setenv("TRSR_SHOW_REQUESTS", "1")
    with scripted(say("ok")) as server:
        _generate(_engine(server, api_key_env="MY_KEY"))
        assert server.headers[0]["authorization"] == "Bearer very-secret"
    shown = capfd.readouterr().err
    assert json.loads(shown)["messages"][1]["content"] == "Hello"
    assert "very-secret" not in shown


def test_requests_are_not_shown_unasked(capfd: pytest.CaptureFixture[str]) -> None:
    assert "TRSR_SHOW_REQUESTS" not in os.environ
    with scripted(say("ok")) as server:
        _generate(_engine(server))
    assert capfd.readouterr().err == ""


def test_the_model_id_says_where_the_model_runs_unless_told_its_revision() -> None:
    here = _config("http://gpu1:8000/v1", model="org/m")
    assert OpenAIGenerator(here).model_id == "org/m@gpu1:8000"
    assert OpenAIGenerator(here.model_copy(update={"revision": "abc"})).model_id == "org/m@abc"


def test_prompts_are_sent_in_the_order_given_so_that_server_prefix_caches_hit() -> None:
    with scripted(say("a text")) as server:
        topics = [f"topic {number}" for number in range(12)]
        _generate(_engine(server, concurrency=1), [ask(topic) for topic in topics])
    assert [request["messages"][-1]["content"] for request in server.requests] == topics


@pytest.mark.parametrize(
    ("field", "path"),
    [("llama.cpp", ["grammar"]), ("vllm", ["structured_outputs", "grammar"]), ("sglang", ["ebnf"])],
)
def test_a_grammar_is_sent_as_the_server_takes_it(field: Any, path: list[str]) -> None:
    with scripted(say("tea")) as server:
        _generate(_engine(server, grammar=field), [replace(ask("What?"), parts=(PhrasePart(("tea",), 1),))])
    (found,) = server.requests
    for name in path:
        found = found[name]
    assert str(found).startswith("root ::= ")
    assert '"tea"' in str(found)


def test_a_prompt_held_to_words_needs_a_server_that_takes_grammars() -> None:
    with scripted(say("tea")) as server, pytest.raises(EngineError, match=r"set engine\.grammar to"):
        _generate(_engine(server), [replace(ask("What?"), parts=(PhrasePart(("tea",), 1),))])


def test_the_frequency_penalty_is_sent() -> None:
    with scripted(say("tea")) as server:
        list(_engine(server).generate([ask("What?")], GenerationParams(frequency_penalty=0.25)))
    assert server.requests[0]["frequency_penalty"] == 0.25


def _completion(finish: str = "stop", **message: Any) -> Answer:
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", **message}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
    return lambda handler, _request: send(handler, 200, json.dumps(body))


@pytest.mark.parametrize(
    "answer",
    [
        _completion(content="<think>\nPens, then.\n</think>\n\nLikes pens.\nAnd ink."),
        _completion(content="Likes pens.", reasoning_content="Pens, then."),
        _completion(content="Likes pens.", reasoning="Pens, then."),
        _completion(content="Sure! Here is the summary:\n\nLikes pens."),
    ],
)
def test_a_server_that_thinks_or_introduces_gives_its_answer_only(answer: Answer) -> None:
    for thinking in ("off", "strip"):
        with scripted(answer) as server:
            (result,) = _generate(_engine(server, thinking=thinking))
            assert (result.text, result.error) == ("Likes pens.", None)


@pytest.mark.parametrize("thinking", ["off", "strip"])
def test_an_answer_has_a_limit_whatever_the_server_sends(thinking: Any) -> None:
    with scripted(_completion(content="<think>\nPens.</think>" + "buys lamps " * 200_000)) as server:
        engine = _engine(server, thinking=thinking)
        (result,) = engine.generate([ask("What?")], GenerationParams(max_new_tokens=24))
    assert 200 < len(result.text) <= 240
    assert set(result.text.split()) == {"buys", "lamps"}


@pytest.mark.parametrize(
    "answer",
    [
        _completion(content="<think>\nPens", finish="length"),
        _completion(content=None, reasoning_content="Pens", finish="length"),
        _completion(content="", reasoning="Pens", finish="stop"),
    ],
)
def test_thoughts_without_an_answer_are_a_failed_call(answer: Answer) -> None:
    with scripted(answer) as server:
        (result,) = _generate(_engine(server, thinking="strip"))
        assert result.text == ""
        assert "still thinking aloud" in str(result.error)


def test_an_answer_that_a_stop_text_cut_off_before_it_began_is_asked_for_once_more() -> None:
    whole = _completion(content="Here is the summary:\n\nLikes pens.\n\nAnything else?")
    with scripted(_completion(content="Here is the summary:"), whole) as server:
        engine = _engine(server)
        assert _generate(engine)[0].text == "Likes pens."
        assert [request.get("stop") for request in server.requests] == [["\n"], None]
        assert _generate(engine)[0].text == "Likes pens."
        assert len(server.requests) == 3


def test_a_server_that_refuses_to_be_told_of_thinking_is_asked_without() -> None:
    no_kwargs = refuse(400, "Unrecognized request argument supplied: chat_template_kwargs")
    no_effort = refuse(422, "body.reasoning_effort: extra fields not permitted")
    with scripted(no_kwargs, no_effort, say("Likes pens.")) as server:
        engine = _engine(server)
        assert _generate(engine)[0].text == "Likes pens."
        assert _generate(engine)[0].text == "Likes pens."
        told = [{"chat_template_kwargs", "reasoning_effort"} & set(request) for request in server.requests]
        assert told == [{"chat_template_kwargs", "reasoning_effort"}, {"reasoning_effort"}, set(), set()]


def test_a_model_that_may_think_gets_room_for_it_and_no_words_to_go_on_from() -> None:
    prompt = replace(ask("Hello"), prefill="This shopper buys")
    with scripted(_completion(content="<think>Hm.</think>This shopper buys pens.")) as server:
        engine = _engine(server, thinking="strip", thinking_tokens=100)
        (result,) = _generate(engine, [prompt])
        assert result.text == "pens."
        (request,) = server.requests
        assert request["max_tokens"] == 104
        assert request["messages"][-1]["role"] == "user"
        assert "chat_template_kwargs" not in request
        assert engine.model_id.endswith("+thinking")
