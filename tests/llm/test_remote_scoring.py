"""Label scoring over HTTP: llama.cpp's real server, and recorded shapes of vLLM and SGLang.

The shapes of vLLM are those of its page "Generative Scoring" and of its completions with
`return_tokens_as_token_ids`; those of SGLang are its models `ScoringRequest` and `ScoringResponse`. Neither
server runs on every machine, so what they compute is not tested here.
"""

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar

import numpy as np
import pytest
from scripted_server import Answer, ScriptedServer, garbage, late, refuse, scripted, send

from trsr.errors import EngineError, MissingLabelsError
from trsr.llm import models
from trsr.llm.base import LabelScorer, LabelTokens, ScoringGroup
from trsr.llm.engines import OpenAIEngine
from trsr.llm.remote_scoring import RemoteScorer
from trsr.testing.contracts import LabelScorerContract

LABELS = LabelTokens(9454, 2753)
GROUPS = [ScoringGroup((1, 2, 3), ((4,), (5, 6))), ScoringGroup((7,), ((8, 9),))]


@pytest.fixture(scope="module")
def llama_url() -> Iterator[str]:
    """The base URL of a real llama.cpp server with the embedded model."""
    from trsr.llm.llamacpp import open_server

    server = open_server(models.gguf_file(models.EMBEDDED_MODEL), n_parallel=2, slot_tokens=128, threads=1)
    yield f"{server.listening_address}/v1"
    del server


@pytest.mark.model
@pytest.mark.slow
class TestTopLogprobsOfLlamaCpp(LabelScorerContract):
    url: ClassVar[str]
    labels = LabelTokens(34, 79)  # among the first hundred after every one of the contexts
    tolerance = 0.02  # the logits of a quantised model depend a little on what else is in the batch

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _server(cls, llama_url: str) -> None:
        cls.url = llama_url

    @classmethod
    def make_scorer(cls) -> LabelScorer:
        return RemoteScorer(_config(cls.url, concurrency=2, top_logprobs=500))


@pytest.mark.model
@pytest.mark.slow
def test_labels_that_a_real_server_does_not_tell_are_counted_not_made_up(llama_url: str) -> None:
    scorer = RemoteScorer(_config(llama_url, top_logprobs=2))
    with pytest.raises(MissingLabelsError) as found:
        list(scorer.score([ScoringGroup((1, 9690, 198), ((2683,), (359,), (253,)))], LabelTokens(5, 9)))
    assert (found.value.n_missing, found.value.n_candidates, found.value.top_k) == (3, 3, 2)


def _scorer(server: ScriptedServer, **options: Any) -> RemoteScorer:
    return RemoteScorer(_config(server.url, **options))


def _config(url: str, **options: Any) -> OpenAIEngine:
    defaults = {"base_url": url, "model": "m", "timeout": 60.0, "retries": 1, "concurrency": 4}
    return OpenAIEngine(**{**defaults, **options})


def _vllm(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
    """Answer as vLLM's page says; the label asked for first has the chance that the item's first id says."""
    assert handler.path == "/generative_scoring"
    flipped = request["label_token_ids"][0] == LABELS.negative
    data = [
        {"index": i, "object": "score", "score": _chance(item[0], flipped)}
        for i, item in enumerate(request["items"])
    ]
    n_read = sum(len(request["query"]) + len(item) for item in request["items"])
    usage = {
        "prompt_tokens": n_read,
        "total_tokens": n_read + len(data),
        "completion_tokens": len(data),
    }
    answer = {"id": "generative-scoring-1", "object": "list", "created": 1, "model": "m"}
    send(handler, 200, json.dumps({**answer, "data": data, "usage": usage}))


def _chance(token: int, flipped: bool) -> float:
    margin = -token if flipped else token
    return 1 / (1 + math.exp(-margin))


def _sglang(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
    """Answer as SGLang's `ScoringResponse`, which need not hold the usage."""
    assert handler.path == "/v1/score"
    assert request["apply_softmax"] is False
    scores = [[1e-5 * math.exp(item[0]), 1e-5] for item in request["items"]]
    send(handler, 200, json.dumps({"scores": scores, "model": "m", "usage": None, "object": "scoring"}))


def _top(told: dict[int, float], n_more: int = 0) -> Answer:
    """Return vLLM's answer to a completion with `return_tokens_as_token_ids`."""
    named = {f"token_id:{token}": value for token, value in told.items()}

    def answer(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        logprobs = {"tokens": ["token_id:1"], "token_logprobs": [-0.1], "top_logprobs": [named]}
        usage = {"prompt_tokens": len(request["prompt"]) + n_more, "completion_tokens": 1}
        choice = {"index": 0, "text": "x", "logprobs": logprobs, "finish_reason": "length"}
        send(handler, 200, json.dumps({"object": "text_completion", "choices": [choice], "usage": usage}))

    return answer


def _models(owner: str) -> Answer:
    listed = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": owner}]}
    return lambda handler, _request: send(handler, 200, json.dumps(listed))


def test_vllm_gets_token_ids_and_its_chances_become_margins() -> None:
    with scripted(_vllm) as server:
        found = dict(_scorer(server, scoring="vllm").score(GROUPS, LABELS))
    np.testing.assert_allclose(found[0], [4.0, 5.0], rtol=1e-6)
    np.testing.assert_allclose(found[1], [8.0], rtol=1e-6)
    asked = next(r for r in server.requests if r["query"] == [1, 2, 3])
    assert asked["items"] == [[4], [5, 6]]
    assert asked["label_token_ids"] == [LABELS.positive, LABELS.negative]
    assert asked["apply_softmax"] is True
    assert asked["model"] == "m"


def test_a_chance_too_near_one_is_read_from_its_complement() -> None:
    with scripted(_vllm) as server:
        found = dict(_scorer(server, scoring="vllm").score([ScoringGroup((1,), ((60,), (2,)))], LABELS))
    assert _chance(60, False) == 1.0
    np.testing.assert_allclose(found[0], [60.0, 2.0], rtol=1e-6)
    assert [r["items"] for r in server.requests] == [[[60], [2]], [[60]]]


def test_sglang_gets_token_ids_and_its_probabilities_become_margins() -> None:
    with scripted(_sglang) as server:
        found = dict(_scorer(server, scoring="sglang").score(GROUPS, LABELS))
    np.testing.assert_allclose(found[0], [4.0, 5.0], rtol=1e-6)
    np.testing.assert_allclose(found[1], [8.0], rtol=1e-6)


def test_a_label_of_probability_zero_is_refused() -> None:
    body = json.dumps({"scores": [[0.2, 0.0]], "model": "m", "object": "scoring"})
    with (
        scripted(lambda handler, _: send(handler, 200, body)) as server,
        pytest.raises(EngineError, match="the probability 0"),
    ):
        list(_scorer(server, scoring="sglang").score(GROUPS[1:], LABELS))


def test_vllms_top_logprobs_are_read_by_token_id() -> None:
    with scripted(_top({LABELS.positive: -1.5, LABELS.negative: -4.0})) as server:
        found = dict(_scorer(server, scoring="top_logprobs", top_logprobs=7).score(GROUPS, LABELS))
    assert {index: margins.tolist() for index, margins in found.items()} == {0: [2.5, 2.5], 1: [2.5]}
    assert sorted(r["prompt"] for r in server.requests) == [[1, 2, 3, 4], [1, 2, 3, 5, 6], [7, 8, 9]]
    assert {(r["logprobs"], r["max_tokens"], r["temperature"]) for r in server.requests} == {(7, 1, 0)}


@pytest.mark.parametrize("negative", [{}, {LABELS.negative: -9999.0}])
def test_missing_labels_are_counted_after_the_groups_that_are_whole(negative: dict[int, float]) -> None:
    good = _top({LABELS.positive: -1.5, LABELS.negative: -4.0})
    poor = _top({LABELS.positive: -1.0, **negative})
    seen: list[int] = []
    with scripted(good, poor, good) as server:
        answers = _scorer(server, scoring="top_logprobs", concurrency=1).score(GROUPS, LABELS)
        with pytest.raises(MissingLabelsError, match="For 1 of 3 candidates") as found:
            seen.extend(index for index, _ in answers)
    assert seen == [1]
    assert (found.value.n_missing, found.value.n_candidates) == (1, 3)


def test_logprobs_by_text_are_refused_since_texts_do_not_name_tokens() -> None:
    body = {"choices": [{"logprobs": {"top_logprobs": [{" yes": -1.0, " no": -2.0}]}}]}
    with (
        scripted(lambda handler, _: send(handler, 200, json.dumps(body))) as server,
        pytest.raises(EngineError, match="gives no logprobs by token id"),
    ):
        list(_scorer(server, scoring="top_logprobs").score(GROUPS, LABELS))


def test_a_server_that_reads_other_tokens_than_were_sent_is_refused() -> None:
    told = {LABELS.positive: -1.5, LABELS.negative: -4.0}
    with (
        scripted(_top(told, n_more=1)) as server,
        pytest.raises(EngineError, match="read 4 prompt tokens where 3 were sent"),
    ):
        list(_scorer(server, scoring="top_logprobs").score(GROUPS[1:], LABELS))


@pytest.mark.parametrize(("owner", "answer"), [("vllm", _vllm), ("sglang", _sglang)])
def test_a_server_is_asked_once_what_it_is(owner: str, answer: Answer) -> None:
    with scripted(_models(owner), answer) as server:
        scorer = _scorer(server)
        list(scorer.score(GROUPS[1:], LABELS))
        (found,) = scorer.score(GROUPS[1:], LABELS)
    np.testing.assert_allclose(found[1], [8.0], rtol=1e-6)
    assert server.requests.count({}) == 1


def test_an_unknown_server_must_be_named() -> None:
    with (
        scripted(_models("someone")) as server,
        pytest.raises(EngineError, match=r"owned by someone\): set scoring to vllm"),
    ):
        list(_scorer(server).score(GROUPS, LABELS))


def test_an_old_server_without_label_scoring_says_what_to_set() -> None:
    with (
        scripted(refuse(404)) as server,
        pytest.raises(EngineError, match="set scoring to top_logprobs"),
    ):
        list(_scorer(server, scoring="vllm").score(GROUPS, LABELS))


@pytest.mark.parametrize(
    ("bad", "timeout"),
    [
        (refuse(503), 60),
        (refuse(429), 60),
        pytest.param(late(600, _sglang), 10, marks=pytest.mark.slow),  # the second answer may take as long
    ],
)
def test_passing_trouble_is_tried_again(bad: Answer, timeout: float) -> None:
    with scripted(bad, _sglang) as server:
        found = dict(_scorer(server, scoring="sglang", timeout=timeout).score(GROUPS[1:], LABELS))
    np.testing.assert_allclose(found[0], [8.0], rtol=1e-6)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (refuse(401), "refused the key"),
        (refuse(500), "answered 500, after 2 tries"),
        (garbage, "check base_url"),
    ],
)
def test_lasting_trouble_ends_the_ranking(bad: Answer, said: str) -> None:
    with scripted(bad) as server, pytest.raises(EngineError, match=said):
        list(_scorer(server, scoring="sglang").score(GROUPS, LABELS))


def test_no_more_calls_are_in_flight_than_allowed() -> None:
    groups = [ScoringGroup((n,), ((1,),)) for n in range(12)]
    three = threading.Barrier(3, timeout=60)

    def together(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        three.wait()
        _sglang(handler, request)

    with scripted(together) as server:
        found = dict(_scorer(server, scoring="sglang", concurrency=3).score(groups, LABELS))
    assert sorted(found) == list(range(12))
    assert server.most_in_flight == 3
