"""One user's plan: the calls for the profile, the texts known so far, and the finished profile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from trsr.data.dataset import Dataset
from trsr.llm.base import GenerationParams, Prompt
from trsr.summarize.counted import counted_profile
from trsr.summarize.plan import Call, SummaryConfig, plan_calls, segment
from trsr.summarize.prompts import load_summary_template, render_call, stop_texts
from trsr.templating import Template
from trsr.types import Block, History, Item, Profile


@dataclass(frozen=True)
class BoundSummarizer:
    """Everything that profiles depend on, except the histories.

    Attributes:
        config: The method and its parameters.
        template: The summary template (see `prompts`).
        items: The catalogue.
        item_text: Item id to its text for the summarizer.
        n_tokens: Item id to the token count of that text; needed for segmentation by tokens only.
        category_fields: The fields counted by `counted`.
        title_field: The field whose words `counted` counts.
    """

    config: SummaryConfig
    template: Template
    items: dict[str, Item]
    item_text: Callable[[str], str]
    category_fields: tuple[str, ...] = ()
    title_field: str | None = None
    n_tokens: Callable[[str], int] | None = None

    @cached_property
    def params(self) -> GenerationParams:
        """The generation parameters of every call."""
        return replace(self.config.params, stop=stop_texts(self.template))

    def blocks(self, item_ids: Sequence[str]) -> list[Block]:
        """Cut a history into the blocks that are summarized."""
        return segment(item_ids, self.config.segmentation, self.n_tokens)

    def prompt(self, call: Call, inputs: Sequence[str]) -> Prompt:
        """Render a call of a plan; `inputs` are the texts of the calls it reads, oldest first."""
        texts = [] if call.kind == "merge" else [self.item_text(i) for i in call.item_ids]
        n_phrases = self.config.n_phrases if self.config.grounded else None
        return render_call(self.template, call, texts, inputs, n_phrases=n_phrases)

    def profile_without_llm(self, history: History) -> Profile:
        """Return the profile by `none` or `counted`."""
        text = self.counted(history) if self.config.method == "counted" else ""
        return Profile(history.user_id, text, self.config.method, len(history))

    def counted(self, history: History) -> str:
        """Return the counted profile of a history."""
        items = [self.items[item_id] for item_id in history.item_ids]
        return counted_profile(items, self.category_fields, self.title_field)


def bind_summarizer(dataset: Dataset, config: SummaryConfig) -> BoundSummarizer:
    """Return the summarizer of a dataset; limits count words, so texts do not depend on the engine."""
    info = dataset.info
    text = dataset.item_texts(config.fields, config.max_field_tokens, None)
    return BoundSummarizer(
        config=config,
        template=load_summary_template(config.template, info.domain),
        items=dict(dataset.catalogue()),
        item_text=text,
        category_fields=tuple(info.category_fields),
        title_field=next((f for f in info.text_fields if f not in info.category_fields), None),
        n_tokens=lambda item_id: len(text(item_id).split()),
    )


@dataclass(slots=True)
class SummaryPlan:
    """The state of one user's plan: the texts and keys known so far, by place in the plan."""

    history: History
    blocks: list[Block]
    calls: list[Call]
    texts: dict[int, str] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)
    failed: bool = False
    """Whether one of its calls failed; this process cannot finish it."""
    n_asked: int = 0
    """Its calls that the current `run_calls` has made."""
    has_more: bool = False
    """Whether it has calls left for the next `run_calls`."""

    @property
    def done(self) -> bool:
        """Whether every call has its text."""
        return len(self.texts) == len(self.calls)

    def ready(self) -> Iterator[int]:
        """Yield the places of calls that are ready."""
        for place, call in enumerate(self.calls):
            if place not in self.texts and all(i in self.texts for i in call.inputs):
                yield place

    def answer(self, place: int, text: str, key: str) -> list[int]:
        """Take the text of a call; return the places of the calls that are ready now."""
        self.texts[place], self.keys[place] = text, key
        return [
            later
            for later, call in enumerate(self.calls)
            if place in call.inputs and all(i in self.texts for i in call.inputs)
        ]


def plan_user(history: History, summarizer: BoundSummarizer) -> SummaryPlan:
    """Plan the profile of a history."""
    blocks = summarizer.blocks(history.item_ids)
    return SummaryPlan(history, blocks, plan_calls(blocks, summarizer.config))


def profile(plan: SummaryPlan, summarizer: BoundSummarizer) -> Profile:
    """Return the profile of a finished plan."""
    if not plan.calls:
        return summarizer.profile_without_llm(plan.history)
    last = len(plan.calls) - 1
    text = with_counts(plan.texts[last], plan.history, summarizer)
    return Profile(
        plan.history.user_id, text, summarizer.config.method, len(plan.history), plan.keys.get(last)
    )


def with_counts(text: str, history: History, summarizer: BoundSummarizer) -> str:
    """Append the counted facts of the history to a written text, if the configuration has `counts`."""
    if summarizer.config.counts and (counted := summarizer.counted(history)):
        return f"{text} {counted}"
    return text
