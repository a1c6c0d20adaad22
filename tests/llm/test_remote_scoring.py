"""Label scoring over HTTP: llama.cpp's real server, and recorded shapes of vLLM and SGLang.

The shapes of vLLM come from its page "Generative Scoring" and its completions with
`return_tokens_as_token_ids`; the shapes of SGLang from its models `ScoringRequest` and `ScoringResponse`.
"""

from __future__ import annotations

import json
import math
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar

import numpy as np
import pytest
from scripted_server import Answer, garbage, refuse, scripted, send, send_json

from trsr.errors import EngineError, MissingLabelsError
from trsr.llm.base import LabelScorer, LabelTokens, ScoringGroup
from trsr.llm.engines import OpenAIEngine
from trsr.llm.remote_scoring import RemoteScorer
from trsr.testing.contracts import LabelScorerContract

LABELS = LabelTokens(9454, 2753)
GROUPS = [ScoringGroup((1, 2, 3), ((4,), (5, 6))), ScoringGroup((7,), ((8, 9),))]


def open_scorer(url: str, **options: Any) -> RemoteScorer:
    defaults = {"base_url": url, "model": "m", "timeout": 60.0, "retries": 1, "concurrency": 4}
    return RemoteScorer(OpenAIEngine(**{**defaults, **options}))


def margins(url: str, groups: list[ScoringGroup] = GROUPS, **options: Any) -> dict[int, list[float]]:
    found = dict(open_scorer(url, **options).score(groups, LABELS))
    return {index: found[index].tolist() for index in sorted(found)}


@pytest.mark.model
@pytest.mark.slow
class TestTopLogprobsOfLlamaCpp(LabelScorerContract):
    url: ClassVar[str]
    labels = LabelTokens(34, 79)  # among the first hundred after every one of the contexts
    tolerance = 0.02  # the logits of a quantized model depend slightly on the batch

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _server(cls, llama_url: str) -> None:
        cls.url = llama_url

    @classmethod
    def make_scorer(cls) -> LabelScorer:
        return open_scorer(cls.url, concurrency=2, top_logprobs=500)


@pytest.mark.model
@pytest.mark.slow
def test_labels_that_a_real_server_does_not_give_are_counted_not_made_up(llama_url: str) -> None:
    scorer = open_scorer(llama_url, top_logprobs=2)
    with pytest.raises(MissingLabelsError) as found:
        list(scorer.score([ScoringGroup((1, 9690, 198), ((2683,), (359,), (253,)))], LabelTokens(5, 9)))
    assert (found.value.n_missing, found.value.n_candidates, found.value.top_k) == (3, 3, 2)


def vllm(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
    """Answer as vLLM's page says; the first id of an item is its margin."""
    assert handler.path == "/generative_scoring"
    sign = -1 if request["label_token_ids"][0] == LABELS.positive else 1
    data = [
        {"index": i, "object": "score", "score": 1 / (1 + math.exp(sign * item[0]))}
        for i, item in enumerate(request["items"])
    ]
    n_read = sum(len(request["query"]) + len(item) for item in request["items"])
    usage = {"prompt_tokens": n_read, "total_tokens": n_read + len(data), "completion_tokens": len(data)}
    answer = {"id": "generative-scoring-1", "object": "list", "created": 1, "model": "m"}
    send(handler, 200, json.dumps({**answer, "data": data, "usage": usage}))


def sglang(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
    """Answer as SGLang's `ScoringResponse`, which need not hold the usage."""
    assert handler.path == "/v1/score"
    assert request["apply_softmax"] is False
    scores = [[1e-5 * math.exp(item[0]), 1e-5] for item in request["items"]]
    send(handler, 200, json.dumps({"scores": scores, "model": "m", "usage": None, "object": "scoring"}))


def top(by_id: dict[int, float], n_more: int = 0) -> Answer:
    """Return vLLM's answer to a completion with `return_tokens_as_token_ids`."""
    named = {f"token_id:{token}": value for token, value in by_id.items()}

    def answer(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        logprobs = {"tokens": ["token_id:1"], "token_logprobs": [-0.1], "top_logprobs": [named]}
        usage = {"prompt_tokens": len(request["prompt"]) + n_more, "completion_tokens": 1}
        choice = {"index": 0, "text": "x", "logprobs": logprobs, "finish_reason": "length"}
        send(handler, 200, json.dumps({"object": "text_completion", "choices": [choice], "usage": usage}))

    return answer


BOTH = top({LABELS.positive: -1.5, LABELS.negative: -4.0})


def list_of_models(owner: str) -> Answer:
    return send_json({"object": "list", "data": [{"id": "m", "object": "model", "owned_by": owner}]})


@pytest.mark.parametrize(("scoring", "answer"), [("vllm", vllm), ("sglang", sglang)])
def test_token_ids_are_sent_and_chances_become_margins(scoring: str, answer: Answer) -> None:
    with scripted(answer) as server:
        found = margins(server.url, scoring=scoring)
    assert found == {0: pytest.approx([4.0, 5.0]), 1: pytest.approx([8.0])}
    request = next(request for request in server.requests if request["query"] == [1, 2, 3])
    assert request | {"apply_softmax": None} == {
        "model": "m",
        "query": [1, 2, 3],
        "items": [[4], [5, 6]],
        "item_first": False,
        "label_token_ids": [LABELS.positive, LABELS.negative],
        "apply_softmax": None,
    }


def test_a_chance_too_near_one_is_read_from_its_complement() -> None:
    with scripted(vllm) as server:
        found = margins(server.url, [ScoringGroup((1,), ((60,), (2,)))], scoring="vllm")
    assert found == {0: pytest.approx([60.0, 2.0])}
    assert [request["items"] for request in server.requests] == [[[60], [2]], [[60]]]


def test_top_logprobs_are_read_by_token_id() -> None:
    with scripted(BOTH) as server:
        found = margins(server.url, scoring="top_logprobs", top_logprobs=7)
    assert found == {0: [2.5, 2.5], 1: [2.5]}
    assert sorted(r["prompt"] for r in server.requests) == [[1, 2, 3, 4], [1, 2, 3, 5, 6], [7, 8, 9]]
    assert {(r["logprobs"], r["max_tokens"], r["temperature"]) for r in server.requests} == {(7, 1, 0)}


@pytest.mark.parametrize("negative", [{}, {LABELS.negative: -9999.0}])
def test_missing_labels_are_counted_after_the_groups_that_are_whole(negative: dict[int, float]) -> None:
    seen: list[int] = []
    with scripted(BOTH, top({LABELS.positive: -1.0, **negative}), BOTH) as server:
        scorer = open_scorer(server.url, scoring="top_logprobs", concurrency=1)
        with pytest.raises(MissingLabelsError, match="For 1 of 3 candidates"):
            seen.extend(index for index, _ in scorer.score(GROUPS, LABELS))
    assert seen == [1]


@pytest.mark.parametrize(
    ("scoring", "answer", "words"),
    [
        ("sglang", send_json({"scores": [[0.2, 0.0]], "object": "scoring"}), "the probability 0"),
        ("sglang", send_json({"scores": []}), "did not answer with scores of 1 candidates"),
        (
            "top_logprobs",  # two tokens can have the same text
            send_json({"choices": [{"logprobs": {"top_logprobs": [{" yes": -1.0, " no": -2.0}]}}]}),
            "gives no logprobs by token id",
        ),
        ("top_logprobs", top({}, n_more=1), "read 4 prompt tokens where 3 were sent"),
        ("auto", list_of_models("someone"), r"owned by someone\): set scoring to vllm"),
        ("vllm", refuse(404), "set scoring to top_logprobs"),  # an old server
        ("sglang", refuse(401), "refused the key"),
        ("sglang", refuse(500), "answered 500, after 2 tries"),  # the generator's own calls
        ("sglang", garbage, "check base_url"),
    ],
)
def test_an_answer_without_margins_is_one_error(scoring: str, answer: Answer, words: str) -> None:
    with scripted(answer) as server, pytest.raises(EngineError, match=words):
        margins(server.url, GROUPS[1:], scoring=scoring)


@pytest.mark.parametrize(("owner", "answer"), [("vllm", vllm), ("sglang", sglang)])
def test_the_kind_of_server_is_detected_once(owner: str, answer: Answer) -> None:
    with scripted(list_of_models(owner), answer) as server:
        scorer = open_scorer(server.url)
        for _ in range(2):
            (found,) = scorer.score(GROUPS[1:], LABELS)
            np.testing.assert_allclose(found[1], [8.0], rtol=1e-6)
    assert server.requests.count({}) == 1
