"""Killed again and again under load, every acknowledged event is there once, and the profiles are as ever."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from stores import follow, summarizer_of_many
from updater_process import Message, acknowledged, keep, start

from trsr.seeding import derive_seed
from trsr.serve.store import ServeStore, StoredProfile

N_EVENTS = 200
USERS = ("ann", "bob", "cat", "dan", "eve")


def messages() -> list[Message]:
    """Return events of all users, mixed, with notes of two users in their midst."""
    rng = random.Random(derive_seed(7, "messages"))
    sent: list[Message] = []
    n_items: Counter[str] = Counter()
    while len(sent) < N_EVENTS:
        user = rng.choice(USERS)
        sent.append(Message(len(sent), "event", user, f"i{rng.randrange(600)}"))
        n_items[user] += 1
        if user in {"ann", "eve"} and n_items[user] in {20, 40}:
            sent.append(Message(len(sent), "notes", user, f"Accordions since {n_items[user]}."))
    return sent


def kill_under_load(file: Path, method: str, outbox: list[Message], rng: random.Random) -> list[int]:
    """Send the outbox, kill the process at a moment of chance, and return what it acknowledged.

    The process writes fewer texts than the outbox needs, so that the kill comes while there is work, however
    late it comes.
    """
    process, pipe = start(file, method, n_texts=rng.randrange(len(outbox) // 6 + 1))
    for message in outbox:
        pipe.send(message)
    numbers = acknowledged(pipe, at_least=rng.randrange(len(outbox) // 2, len(outbox) + 1))
    time.sleep(rng.uniform(0, 0.03))
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    numbers += acknowledged(pipe, at_least=0)
    pipe.close()
    return numbers


def check(store: ServeStore, sent: list[Message], known: set[int]) -> None:
    """Hold the store against what was sent and what was acknowledged."""
    for user in USERS:
        ids = [event.event_id for event in store.events(user)]
        theirs = [m for m in sent if m.kind == "event" and m.user_id == user]
        assert ids == [f"event-{m.number}" for m in theirs][: len(ids)], "each once and in order"
        assert {f"event-{m.number}" for m in theirs if m.number in known} <= set(ids), (
            "acknowledged, but lost"
        )
        written = [m for m in sent if m.kind == "notes" and m.user_id == user]
        kept = [m for m in written if m.number in known]
        notes = store.notes(user)
        assert (notes.text if notes else "") in {m.text for m in written[len(kept) - 1 :]} or not kept
        latest = store.latest_profile(user)
        behind = len(ids) - (latest.n_items if latest else 0)
        pending = store._db.execute("SELECT 1 FROM pending JOIN users USING (uid) WHERE user_id = ?", (user,))
        assert behind == 0 or pending.fetchone(), "events that no update would ever see"
        assert [p.version for p in store.profiles(user)] == list(range(1, len(store.profiles(user)) + 1))


def facts(profile: StoredProfile | None) -> tuple[str, int, str | None]:
    assert profile is not None
    return profile.text, profile.n_items, profile.key


@pytest.mark.parametrize("method", ["recurrent", "hierarchical"])
@pytest.mark.parametrize("n_kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_lose_nothing_and_change_no_profile(tmp_path: Path, method: str, n_kills: int) -> None:
    sent = messages()
    undisturbed = ServeStore(tmp_path / "undisturbed.sqlite")
    for message in sent:
        keep(undisturbed, message)
    follow(undisturbed, summarizer_of_many(method, block_size=3, fan_in=2))

    file = tmp_path / "killed.sqlite"
    rng = random.Random(derive_seed(7, "kills", method))
    known: set[int] = set()
    n_interrupted = 0
    for life in range(1, n_kills + 1):
        so_far = sent[: len(sent) * life // (n_kills + 1)]  # every life has something to do
        outbox = [message for message in so_far if message.number not in known]
        known |= set(kill_under_load(file, method, outbox, rng))
        store = ServeStore(file)
        check(store, sent, known)
        n_interrupted += store.facts()["pending"] > 0
        store.close()
    assert n_interrupted == n_kills, "kills have to come while there is work"

    process, pipe = start(file, method)
    rest = [message for message in sent if message.number not in known]
    for message in [*rest, Message(-1, "idle")]:
        pipe.send(message)
    assert acknowledged(pipe, at_least=len(rest) + 1) == [*(m.number for m in rest), -1]
    pipe.close()
    process.join()
    assert process.exitcode == 0
    store = ServeStore(file)
    check(store, sent, {message.number for message in sent})
    for user in USERS:
        assert store.history(user) == undisturbed.history(user)
        assert facts(store.latest_profile(user)) == facts(undisturbed.latest_profile(user))
        assert store.user_summaries(user) == undisturbed.user_summaries(user)
    assert store.facts()["pending"] == 0
    store.close()
    undisturbed.close()
