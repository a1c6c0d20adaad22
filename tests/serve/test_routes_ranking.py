"""Rankings over HTTP: documents for a profile, items for a user, with reasons; refused when too much."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from shop import Shop, open_shop

from trsr.errors import EngineError
from trsr.llm.base import LabelTokens, ScoringGroup
from trsr.llm.fake import FakeScorer
from trsr.recommend.calibration import Calibration
from trsr.recommend.ranker import RankRequest, RerankRequest

DOCUMENTS = ["Clay pot", "Graphics card", "Garden hose", "Saw"]
JSON = {"Content-Type": "application/json"}


class SlowScorer(FakeScorer):
    """Answers only while `go` is set; `asked` is set as soon as a question has come."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.asked = threading.Event(), threading.Event()

    def score(
        self, groups: Sequence[ScoringGroup], labels: LabelTokens
    ) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        self.asked.set()
        assert self.go.wait(30)
        yield from super().score(groups, labels)


def ask(shop: Shop, path: str, **body: Any) -> dict[str, Any]:
    """Ask for a ranking, and expect to get one."""
    answer = shop.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def rerank(shop: Shop, **body: Any) -> dict[str, Any]:
    return ask(shop, "/v2/rerank", **{"query": "q", **body})


def recommend(shop: Shop, **body: Any) -> dict[str, Any]:
    return ask(shop, "/v1/recommend", **body)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_documents_come_back_best_first_with_the_models_scores(shop: Shop, path: str) -> None:
    found = ask(shop, path, model="tiny-trsr", query="Likes gardens.", documents=DOCUMENTS)
    (scored,) = shop.service.ranker.recommender.score([RerankRequest("Likes gardens.", DOCUMENTS)])
    order = np.argsort(-scored.margins).tolist()
    assert [result["index"] for result in found["results"]] == order
    assert [result["relevance_score"] for result in found["results"]] == scored.scores[order].tolist()
    assert all(result["document"] is None for result in found["results"])
    assert found["model"] == "tiny-trsr"
    n_tokens = int(scored.n_prompt_tokens.sum())
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] == n_tokens
    assert 0 < found["usage"]["read_tokens"] < n_tokens


def test_the_best_documents_can_be_returned_with_their_texts(shop: Shop) -> None:
    documents = [*DOCUMENTS[:2], {"text": DOCUMENTS[2]}]
    results = rerank(shop, documents=documents, top_n=2, return_documents=True)["results"]
    assert len(results) == 2
    assert all(result["document"] == {"text": DOCUMENTS[result["index"]]} for result in results)
    odd = {"text": "Saw", "id": [7, None], "price": float("nan")}
    content = json.dumps({"query": "q", "documents": [odd], "return_documents": True})
    answer = shop.client.post("/v1/rerank", content=content, headers=JSON).json()
    assert answer["results"][0]["document"] == {**odd, "price": None}


def test_documents_that_are_cut_are_marked_and_read_to_the_bound(shop: Shop) -> None:
    long = "lamp " * 400
    cases = (("Saw", None), (long, None), (long, 3), ("x <b>" * 5000 + "end", None), ("&amp;", 9))
    for document, bound in cases:
        (result,) = rerank(shop, documents=[document], max_tokens_per_doc=bound)["results"]
        assert result["truncated"] == (len(document) > 5)
    few, more = (rerank(shop, documents=[long], max_tokens_per_doc=n)["usage"] for n in (10, None))
    assert few["prompt_tokens"] < more["prompt_tokens"] - 200


def test_a_profile_that_does_not_fit_is_counted(shop: Shop) -> None:
    short, long = (rerank(shop, query="Likes gardens. " * n, documents=["Saw"])["usage"] for n in (1, 1000))
    assert short["cut_tokens"] == 0
    assert long["cut_tokens"] > 5000


@pytest.mark.parametrize("calibration", [None, Calibration("platt", 1.0)])
def test_answers_say_whether_scores_are_calibrated(shop: Shop, calibration: Calibration | None) -> None:
    shop.service.ranker.recommender.calibration = calibration
    assert rerank(shop, documents=["d"])["calibrated"] == (calibration is not None)
    assert recommend(shop, history=["i1"])["calibrated"] == (calibration is not None)


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens_per_doc": 4096, "priority": 0, "relevant_spans": {"mode": "enabled"}},  # Cohere v2
        {"max_chunks_per_doc": 10, "return_documents": None},  # Cohere v1
        {"truncation": True},  # Jina
        {"max_tokens_per_doc": None, "top_n": None},
        {"top_n": 5},
    ],
)
def test_options_of_cohere_and_jina_are_taken(shop: Shop, options: dict[str, Any]) -> None:
    plain = rerank(shop, documents=DOCUMENTS)["results"]
    assert rerank(shop, documents=DOCUMENTS, **options)["results"] == plain


def test_rank_fields_choose_what_is_read_of_a_document(shop: Shop) -> None:
    documents = [{"title": text, "category": "Pots", "price": 3} for text in DOCUMENTS]
    texts = [f"Title: {text}; Category: Pots" for text in DOCUMENTS]
    expected = rerank(shop, documents=texts)["results"]
    assert rerank(shop, documents=documents, rank_fields=["title", "category"])["results"] == expected


@pytest.mark.parametrize(
    ("change", "status", "kind"),
    [
        ({"model": "rerank-9"}, 422, "unknown-model"),
        ({"documents": []}, 422, "invalid-request"),
        ({"documents": [{"url": "x"}]}, 422, "invalid-request"),
        ({"query": ""}, 422, "invalid-request"),
        ({"top_n": 0}, 422, "invalid-request"),
        ({"documents": [{"title": "x"}], "rank_fields": ["title", "text"]}, 422, "invalid-request"),
        ({"documents": [{"text": 3}]}, 422, "invalid-request"),
        ({"documents": [{"text": "x" * 200_001}]}, 422, "invalid-request"),
        ({"max_tokens_per_document": 3}, 422, "invalid-request"),
        ({"documents": ["x"] * 201}, 413, "too-large"),
        ({"documents": ["x"] * 10_001}, 413, "too-large"),
    ],
)
def test_what_cannot_be_reranked_is_refused(
    shop: Shop, change: dict[str, Any], status: int, kind: str
) -> None:
    shop.refused(status, kind, "POST", "/v1/rerank", json={"query": "q", "documents": ["d"], **change})


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({}, 422, "invalid-request"),
        ({"user_id": "ann", "history": ["i1"]}, 422, "invalid-request"),
        ({"history": ["i1"], "candidates": ["i2"], "filter": {}}, 422, "invalid-request"),
        ({"history": ["i1"], "candidates": ["i2", "i2"]}, 422, "invalid-request"),
        ({"history": ["i1"], "top_n": 0}, 422, "invalid-request"),
        ({"history": ["i1"], "filter": {"title": "x"}}, 422, "unknown-fields"),
        ({"history": ["i1"], "filter": {"colour": "red"}}, 422, "unknown-fields"),
        ({"history": ["x7"]}, 422, "unknown-items"),
        ({"history": ["i1"], "candidates": ["i2", "x8"]}, 422, "unknown-items"),
        ({"user_id": "nobody"}, 404, "unknown-user"),
        ({"history": ["i1"], "candidates": [f"i{n}" for n in range(201)]}, 413, "too-large"),
    ],
)
def test_what_cannot_be_recommended_is_refused(
    shop: Shop, body: dict[str, Any], status: int, kind: str
) -> None:
    shop.refused(status, kind, "POST", "/v1/recommend", json=body)


def test_bodies_that_are_not_json_are_bad_requests(shop: Shop) -> None:
    problem = shop.refused(
        400, "bad-request", "POST", "/v1/rerank", content='{"query": "q", "documents": ["d"]}'
    )
    assert "application/json" in problem["detail"]
    assert shop.client.post("/v1/rerank", json=[]).status_code == 422
    for content in ('{"query":', "hello", "[1,", '{"a": tru}'):
        shop.refused(400, "bad-request", "POST", "/v1/rerank", content=content, headers=JSON)


def test_given_candidates_are_ranked_by_notes_profile_and_history(shop: Shop) -> None:
    shop.buy("ann", "i1", "i2", "i3", "i4")
    shop.follow()
    shop.client.put("/v1/users/ann/notes", json={"text": "Only presents."})
    candidates = ["i10", "i11", "i12", "i4"]
    found = recommend(shop, user_id="ann", candidates=candidates, top_n=3)
    text = shop.service.store.profiles("ann")[0].text
    question = RankRequest(("i1", "i2", "i3", "i4"), text, candidates, "Only presents.")
    (scored,) = shop.service.ranker.recommender.score([question])
    order = np.argsort(-scored.margins)[:3].tolist()
    assert [result["item_id"] for result in found["results"]] == [candidates[i] for i in order]
    assert [result["rank"] for result in found["results"]] == [1, 2, 3]
    assert [result["score"] for result in found["results"]] == scored.scores[order].tolist()
    assert [result["margin"] for result in found["results"]] == scored.margins[order].tolist()
    assert found["profile"] == {"source": "model", "version": 1, "n_items": 4, "notes": True}
    assert all(result["explanation"] is None for result in found["results"])


def test_the_old_profile_serves_with_the_new_items_until_it_has_followed(shop: Shop) -> None:
    shop.buy("ann", "i1", "i2", "i3")
    counted = {"source": "counted", "version": None, "n_items": 3, "notes": False}
    assert recommend(shop, user_id="ann")["profile"] == counted
    shop.follow()
    written = {"source": "model", "version": 1, "n_items": 3, "notes": False}
    assert recommend(shop, user_id="ann")["profile"] == written
    shop.buy("ann", "i4")
    stale = recommend(shop, user_id="ann", candidates=["i10", "i11"])
    assert stale["profile"]["n_items"] == 3
    text = shop.service.store.profiles("ann")[0].text
    (scored,) = shop.service.ranker.recommender.score([RankRequest(("i2", "i3", "i4"), text, ["i10", "i11"])])
    margins = {result["item_id"]: result["margin"] for result in stale["results"]}
    assert margins == dict(zip(["i10", "i11"], scored.margins.tolist(), strict=True))


def test_a_history_needs_no_user(shop: Shop) -> None:
    found = recommend(shop, history=["i1", "i2"], candidates=["i3", "i4"])
    assert found["user_id"] is None
    assert found["profile"] == {"source": "counted", "version": None, "n_items": 2, "notes": False}
    assert recommend(shop, history=[], candidates=["i3"])["profile"]["source"] == "none"


def test_without_candidates_the_catalogue_is_searched_for_what_is_unseen(shop: Shop) -> None:
    shop.buy("ann", "i1", "i2", "i3")
    found = recommend(shop, user_id="ann", top_n=1000)
    ids = {result["item_id"] for result in found["results"]}
    assert ids == {f"i{n}" for n in range(40)} - {"i1", "i2", "i3"}
    scores = [result["score"] for result in found["results"]]
    assert scores == sorted(scores, reverse=True)
    found = recommend(shop, history=["i1"], filter={"category": "kind2"}, top_n=100)
    assert {result["item_id"] for result in found["results"]} == {f"i{n}" for n in range(2, 40, 3)}
    nothing = recommend(shop, history=["i1"], filter={"category": "none of them"})
    assert nothing["results"] == []
    assert nothing["usage"]["total_tokens"] == 0


def test_the_words_of_the_notes_find_items(tmp_path: Path) -> None:
    with open_shop(tmp_path / "serve.sqlite", n_ranked=1) as shop:
        shop.buy("ann", "i1")
        title = shop.service.catalogue.item("i33").fields["title"]
        assert [r["item_id"] for r in recommend(shop, user_id="ann", top_n=1)["results"]] != ["i33"]
        shop.client.put("/v1/users/ann/notes", json={"text": f"{title}, always {title}!"})
        assert [r["item_id"] for r in recommend(shop, user_id="ann", top_n=1)["results"]] == ["i33"]


def test_retrieved_candidates_are_bounded(tmp_path: Path) -> None:
    with open_shop(tmp_path / "serve.sqlite", n_ranked=5, max_candidates=20) as shop:
        assert len(recommend(shop, history=["i1"], top_n=3)["results"]) == 3
        assert shop.service.ranker.queue.facts()["candidates"] == 5
        assert len(recommend(shop, history=["i1"], top_n=30)["results"]) == 20


def test_an_explanation_leaves_out_each_recent_item_and_sentence(shop: Shop) -> None:
    shop.buy("ann", "i1", "i2", "i3", "i4")
    shop.follow()
    shop.client.put("/v1/users/ann/notes", json={"text": "Likes pots. Hates noise."})
    (profile,) = shop.service.store.profiles("ann")
    found = recommend(shop, user_id="ann", candidates=["i10", "i11", "i12"], top_n=2, explain=True)
    assert len(found["results"]) == 2
    question = RankRequest(("i1", "i2", "i3", "i4"), profile.text, (), "Likes pots. Hates noise.")
    for result in found["results"]:
        wanted = shop.service.ranker.recommender.explain(question, result["item_id"])
        moved = {
            name: [tuple(part.values()) for part in parts] for name, parts in result["explanation"].items()
        }
        assert moved == {
            "without_item": list(wanted.without_item),
            "without_note": list(wanted.without_note),
            "without_sentence": list(wanted.without_sentence),
        }
        assert [name for name, _ in moved["without_item"]] == ["i2", "i3", "i4"]
        assert [text for text, _ in moved["without_note"]] == ["Likes pots.", "Hates noise."]
        assert " ".join(text for text, _ in moved["without_sentence"]) == profile.text


def test_an_explanation_counts_as_what_the_model_reads(shop: Shop) -> None:
    body = {"history": ["i1", "i2"], "candidates": ["i10", "i11", "i12"], "top_n": 2}
    plain = recommend(shop, **body)["usage"]
    before = shop.service.ranker.queue.facts()
    explained = recommend(shop, **body, explain=True)["usage"]
    after = shop.service.ranker.queue.facts()
    assert explained["read_tokens"] == after["read_tokens"] - before["read_tokens"] > plain["read_tokens"]
    assert explained["prompt_tokens"] == after["prompt_tokens"] - before["prompt_tokens"]


def test_more_tokens_than_are_read_for_one_request_are_refused_with_their_number(tmp_path: Path) -> None:
    body: dict[str, Any] = {"history": ["i1", "i2"], "candidates": ["i10", "i11"]}
    with open_shop(tmp_path / "serve.sqlite") as shop:
        read = recommend(shop, **body)["usage"]["read_tokens"]
        explained = recommend(shop, **body, explain=True)["usage"]["read_tokens"]
    large: dict[str, dict[str, Any]] = {
        "/v1/recommend": {**body, "explain": True},
        "/v1/rerank": {"query": "q", "documents": ["word " * 99] * 50},
    }
    with open_shop(tmp_path / "small.sqlite", max_tokens=read) as shop:
        recommend(shop, **body)
        for path, more in large.items():
            problem = shop.refused(413, "too-large", "POST", path, json=more)
            assert f"at most {read} are allowed" in problem["detail"]
        assert shop.service.ranker.queue.facts()["questions"] == 1
    with open_shop(tmp_path / "large.sqlite", max_tokens=2 * explained) as shop:
        recommend(shop, **body, explain=True)


def test_a_model_that_gives_no_number_is_a_problem_and_never_a_score_of_null(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_number(*_: object) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        raise EngineError("no finite margin")

    monkeypatch.setattr(shop.service.ranker.recommender.scorer, "score", no_number)
    body = {"query": "q", "documents": ["d"]}
    assert shop.refused(500, "model-failed", "POST", "/v1/rerank", json=body)["detail"] == "no finite margin"
    assert "no finite margin" in caplog.text


def test_what_comes_too_late_is_503(tmp_path: Path) -> None:
    scorer = SlowScorer()
    with open_shop(tmp_path / "serve.sqlite", scorer, request_seconds=0.1) as shop:
        answer = shop.client.post("/v1/rerank", json={"query": "q", "documents": ["d"]})
        scorer.go.set()  # only now may the model answer
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:trsr:problem:overloaded")
        assert int(answer.headers["retry-after"]) >= 1


def test_what_finds_no_room_in_the_queue_is_503_at_once_and_the_rest_is_read_together(tmp_path: Path) -> None:
    scorer = SlowScorer()
    with (
        open_shop(tmp_path / "serve.sqlite", scorer, max_waiting=9) as shop,
        shop.client,
        ThreadPoolExecutor(9) as pool,
    ):

        def status_of(number: int) -> tuple[int, int]:
            body = {"query": f"q{number}", "documents": ["d"]}
            answer = shop.client.post("/v1/rerank", json=body)
            return answer.status_code, int(answer.headers.get("retry-after", 0))

        first = pool.submit(status_of, 0)
        assert scorer.asked.wait(30)
        others = [pool.submit(status_of, number) for number in range(1, 9)]
        while shop.service.ranker.queue.facts()["waiting"] < 9:
            time.sleep(0.01)
        status, retry_after = status_of(9)
        assert status == 503
        assert retry_after >= 1
        # neither the store nor the event loop waits for the model
        assert shop.client.get("/v1/users/nobody").status_code == 404
        scorer.go.set()
        assert {future.result() for future in [first, *others]} == {(200, 0)}
        assert shop.service.ranker.queue.facts()["passes"] == 2
