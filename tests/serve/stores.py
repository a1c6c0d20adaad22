"""Small builders for tests of the service's store and its profile updater."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

from helpers import bind_summarizer, item, word

from trsr.llm.base import Generation, GenerationParams, Prompt
from trsr.llm.fake import FakeGenerator
from trsr.serve.profile_updater import ProfileUpdater
from trsr.serve.schemas import EventIn
from trsr.serve.store import ServeStore
from trsr.summarize.user_plan import BoundSummarizer

CATALOGUE = {f"i{number}": item(number) for number in range(600)}


def event(event_id: str, item_id: str, timestamp: datetime | None = None) -> EventIn:
    return EventIn(event_id=event_id, item_id=item_id, timestamp=timestamp)


def events(start: int, stop: int) -> list[EventIn]:
    """Return events `eSTART` to `eSTOP`, the last one left out, each of the item of its number."""
    return [event(f"e{number}", f"i{number}") for number in range(start, stop)]


def add_profile(store: ServeStore, user_id: str, text: str, n_items: int, calls: Any = ()) -> bool:
    """Add the next version of a profile, as an update of the user does."""
    store.request_update(user_id)
    update, latest = store.update_of(user_id), store.latest_profile(user_id)
    assert update is not None
    return store.add_profile(update, text, n_items, None, calls, latest.version if latest else 0)


def summarizer_of_many(method: str = "recurrent", **settings: Any) -> BoundSummarizer:
    """Return a summarizer of 600 items, five a block unless said otherwise."""
    return dataclasses.replace(
        bind_summarizer(method, **{"block_size": 5, **settings}),
        items=CATALOGUE,
        item_text=lambda item_id: f"Title: {CATALOGUE[item_id].fields['title']}",
    )


class MeddlingEngine(FakeGenerator):
    """Lets something happen while the first text is being written; keeps the last message of every prompt."""

    def __init__(self, meddle: Callable[[], object] | None = None) -> None:
        super().__init__()
        self.meddle = meddle
        self.heard: list[str] = []

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        for result in super().generate(prompts, params):
            self.heard.append(prompts[result.index].messages[-1].content)
            if self.meddle is not None:
                meddle, self.meddle = self.meddle, None
                meddle()
            yield result


class BreakingEngine(FakeGenerator):
    """Fails as a whole, in a way that is not foreseen, when a word comes up."""

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        if any(word(50) in prompt.messages[-1].content for prompt in prompts):
            raise RuntimeError("out of memory")
        yield from super().generate(prompts, params)


def follow(store: ServeStore, summarizer: BoundSummarizer, engine: FakeGenerator | None = None) -> int:
    """Update profiles until no update is due; return how many calls were made."""
    engine = engine or FakeGenerator()
    before = engine.n_calls
    updater = ProfileUpdater(store, summarizer, engine)
    while updater.step() or [update for update in store.pending(99) if not update.n_attempts]:
        pass
    return engine.n_calls - before


def seen(store: ServeStore, user_id: str = "u") -> list[int]:
    """Return how much of the history each version has seen."""
    return [profile.n_items for profile in store.profiles(user_id)]
