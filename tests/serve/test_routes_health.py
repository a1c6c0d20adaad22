"""Operators see whether the server lives, whether it is ready, and what it does."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator

import pytest
from helpers import ROOT
from prometheus_client.parser import text_string_to_metric_families
from shop import Shop

from trsr.errors import ModelError
from trsr.llm.fake import FakeGenerator, FakeScorer
from trsr.serve import database, routes
from trsr.serve.middleware import Metrics


def missing(shop: Shop) -> tuple[str, str]:
    """Return the part that does not work, and what is said of it."""
    answer = shop.client.get("/readyz")
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:trsr:problem:not-ready")
    assert "retry-after" in answer.headers
    return answer.json()["part"], answer.json()["detail"]


def test_a_server_that_was_not_started_lives_but_is_not_ready(shop: Shop) -> None:
    assert shop.client.get("/healthz").json() == {"status": "ok"}
    assert missing(shop)[0] == "profiles"


@pytest.fixture
def started(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """A shop that runs, and whose readiness is checked again each time."""
    monkeypatch.setattr(routes, "KEEP_SECONDS", -1.0)
    with shop.client:
        yield shop


def test_a_started_server_is_ready_updates_profiles_and_ends_its_threads(shop: Shop) -> None:
    with shop.client as client:
        ready = client.get("/readyz").json()
        assert (ready["status"], ready["engine_failure"]) == ("ok", None)
        assert ready["model_answered_seconds"] < 60
        assert client.head("/readyz").status_code == client.head("/healthz").status_code == 200
        shop.buy("ann", "i1")
        ends = time.monotonic() + 30
        while client.get("/v1/users/ann").json()["pending"] and time.monotonic() < ends:
            time.sleep(0.05)
        assert client.get("/v1/users/ann").json()["profile"]["version"] == 1
    assert not [thread for thread in threading.enumerate() if thread.name in ("trsr-profiles", "trsr-model")]
    shop.service.close()  # once more


def test_a_database_that_is_full_or_was_found_damaged_is_not_ready(
    started: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert started.client.get("/readyz").status_code == 200
    with monkeypatch.context() as full:
        full.setattr(database, "LEAST_ROOM", 2**60)
        part, message = missing(started)
        assert (part, "KiB free" in message) == ("database", True)
    assert started.client.get("/readyz").status_code == 200
    db = started.service.store._db
    db.execute("PRAGMA query_only = ON")
    assert missing(started) == ("database", "Not working: database. attempt to write a readonly database")
    db.execute("PRAGMA query_only = OFF")
    db.execute("PRAGMA writable_schema = ON")
    db.execute("UPDATE sqlite_master SET rootpage = 100000 WHERE name = 'events'")
    db.execute("PRAGMA schema_version = 1000")  # lets the other connection read the tables again
    assert started.client.get("/v1/users/ann").status_code >= 500
    part, message = missing(started)
    assert (part, "malformed" in message) == ("database", True)


def test_a_model_that_fails_or_hangs_is_not_ready_unless_it_has_answered_recently(
    started: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()

    def fail(*_: object) -> None:
        raise ModelError("no finite margin")

    def hang(*_: object) -> None:
        may_end.wait(60)
        raise ModelError("too late")

    monkeypatch.setattr(routes, "PROBE_SECONDS", 0.05)
    scorer = started.service.ranker.recommender.scorer
    for answer, why in ((fail, "no finite margin"), (hang, "did not answer a probe within 0.05 seconds")):
        monkeypatch.setattr(scorer, "score", answer)
        part, message = missing(started)
        assert (part, why in message) == ("model", True)
    may_end.set()
    monkeypatch.setattr(scorer, "score", FakeScorer().score)
    assert started.client.post("/v1/rerank", json={"query": "q", "documents": ["d"]}).status_code == 200
    monkeypatch.setattr(scorer, "score", fail)
    assert started.client.get("/readyz").json()["model_answered_seconds"] < 60
    monkeypatch.setattr(routes, "RECENT_SECONDS", -1.0)
    assert missing(started)[0] == "model"


def test_readiness_shows_what_profiles_wait_for_and_why_but_not_where_the_engine_is(shop: Shop) -> None:
    shop.service.updater.engine = FakeGenerator(fail_on=1)
    shop.buy("ann", "i1")
    shop.follow()
    failure = str(shop.service.updater.last_failure)
    assert "set to fail" in failure
    shop.service.updater.last_failure = f"{failure} at http://inside:8080/v1"
    with shop.client:
        ready = shop.client.get("/readyz").json()
        assert numbers(shop)["trsr_profile_failed_updates_total"] >= 1
    assert ready["oldest_pending_seconds"] >= 0
    assert ready["engine_failure"] == f"{failure} at ..."


def numbers(shop: Shop) -> dict[str, float]:
    """Return the metrics, by name and labels."""
    answer = shop.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = [f"{k}={v}" for k, v in sorted(sample.labels.items()) if k != "le"]
            found[" ".join([sample.name, *labels])] = sample.value
    return found


def test_the_metrics_that_alerts_are_advised_for_exist(shop: Shop) -> None:
    shop.client.get("/healthz")
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    alerts = set(re.findall(r"`(trsr_\w+)", page.partition("### Alerts")[2].partition("\n### ")[0]))
    assert len(alerts) > 8
    assert alerts <= {name.partition(" ")[0] for name in numbers(shop)}


def test_metrics_count_requests_by_route_and_what_happens_inside(shop: Shop) -> None:
    shop.buy("ann", "i1", "i2", "i3", "i4")
    waiting = numbers(shop)
    assert waiting["trsr_store_pending"] == 1
    assert waiting["trsr_store_items_behind"] == 4
    assert waiting["trsr_store_oldest_pending_seconds"] >= 0
    shop.follow()
    shop.client.put("/v1/users/ann/notes", json={"text": "Mine."})
    shop.client.put("/v1/items", json={"items": [{"item_id": "new", "fields": {}}]})
    shop.client.post("/v1/recommend", json={"user_id": "ann", "candidates": ["i5", "i6"]})
    shop.client.get("/v1/users/bob")
    shop.client.get("/somewhere/else")
    found = numbers(shop)
    events = "trsr_requests_total method=POST route=/v1/users/{user_id}/events status=202"
    assert found[events] == 1
    assert found["trsr_requests_total method=GET route=/v1/users/{user_id} status=404"] == 1
    assert found["trsr_requests_total method=GET route=unmatched status=404"] == 1
    assert found["trsr_request_seconds_count route=/v1/recommend"] == 1
    assert found["trsr_model_candidates_total"] == 2
    assert found["trsr_model_prompt_tokens_total"] > found["trsr_model_read_tokens_total"] > 0
    assert found["trsr_model_waiting"] == found["trsr_model_oldest_waiting_seconds"] == 0
    assert found["trsr_model_dropped_expired_total"] == found["trsr_model_dropped_gone_total"] == 0
    assert found["trsr_profile_failed_updates_total"] == 0
    assert found["trsr_model_cache_hits_total"] + found["trsr_model_cache_misses_total"] == 1
    assert found["trsr_llm_calls_total"] == 2
    assert found["trsr_profile_updates_total"] == 1
    assert found["trsr_store_pending"] == found["trsr_store_failing"] == found["trsr_store_items_behind"] == 0
    assert [found[f"trsr_store_{name}"] for name in ("users", "events", "profiles")] == [1, 4, 1]
    assert found["trsr_store_notes"] == found["trsr_store_items"] == 1


def test_strange_methods_and_addresses_make_no_new_series() -> None:
    metrics = Metrics(dict)
    for number in range(50):
        metrics.observe(f"M{number}", "unmatched", 405, 0.1)
    assert metrics.text().decode().count('trsr_requests_total{method="other"') == 1
