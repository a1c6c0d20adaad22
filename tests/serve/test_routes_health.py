"""Those who run the server see whether it lives, whether it is ready, and what it does."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from shop import Shop, make_service, make_settings, open_shop
from starlette.testclient import TestClient

from trsr.serve.app import create_app
from trsr.serve.metrics import Metrics


def test_a_server_that_was_not_started_lives_but_is_not_ready(shop: Shop) -> None:
    assert shop.client.get("/healthz").json() == {"status": "ok"}
    answer = shop.client.get("/readyz")
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:trsr:problem:not-ready")
    assert "retry-after" in answer.headers


def test_a_started_server_is_ready_and_follows_by_itself(tmp_path: Path) -> None:
    settings = make_settings(api_keys=())
    service = make_service(tmp_path / "serve.sqlite", settings)
    with TestClient(create_app(service, settings), base_url="http://localhost") as client:
        assert client.get("/readyz").json() == {"status": "ok"}
        client.post("/v1/users/ann/events", json={"events": [{"event_id": "1", "item_id": "i1"}]})
        waited = threading.Event()
        for _ in range(600):
            if not client.get("/v1/users/ann").json()["pending"]:
                break
            waited.wait(0.05)
        assert client.get("/v1/users/ann").json()["profile"]["version"] == 1
    assert not [thread for thread in threading.enumerate() if thread.name in ("trsr-follower", "trsr-model")]


def numbers(shop: Shop) -> dict[str, float]:
    """Return the metrics, by name and labels."""
    answer = shop.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.text)
    return {
        " ".join(
            [sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items()) if k != "le")]
        ): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_count_requests_by_route_and_what_happens_inside(shop: Shop) -> None:
    shop.buy("ann", "i1", "i2", "i3", "i4")
    waiting = numbers(shop)
    assert waiting["trsr_store_pending"] == 1
    assert waiting["trsr_store_items_behind"] == 4
    assert waiting["trsr_store_oldest_pending_seconds"] >= 0
    shop.follow()
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
    assert found["trsr_model_waiting"] == 0
    assert found["trsr_model_cache_hits_total"] + found["trsr_model_cache_misses_total"] == 1
    assert found["trsr_llm_calls_total"] == 2
    assert found["trsr_profile_updates_total"] == 1
    assert found["trsr_store_pending"] == 0


def test_strange_methods_and_addresses_make_no_new_series() -> None:
    metrics = Metrics(dict)
    for number in range(50):
        metrics.observe(f"M{number}", "unmatched", 405, 0.1)
    assert metrics.text().decode().count('trsr_requests_total{method="other"') == 1


@pytest.mark.parametrize("times", [1, 2])
def test_a_service_can_be_closed_twice(tmp_path: Path, times: int) -> None:
    with open_shop(tmp_path / "serve.sqlite") as shop:
        for _ in range(times):
            shop.service.close()
