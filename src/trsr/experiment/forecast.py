"""Foretells what `run.summarize` will ask of an engine and a store, without asking.

Exact: how many calls the plans have, what the store already answers, and the prompt tokens of every call
whose inputs are known. A call that reads a text not yet written is counted with that text at its cap of new
tokens, which bounds it from above. Two calls are taken for one where prompt and inputs are the same; a run
may save a few more, where two different prompts happen to get one and the same text.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trsr.llm.base import Prompt, prompt_key
from trsr.recommend.prompt import PromptBuilder
from trsr.summarize.plan import Call, plan_calls
from trsr.summarize.prompts import summary_text
from trsr.summarize.store import TextStore
from trsr.summarize.user_plan import Fold, Summariser
from trsr.templating import plain_line
from trsr.types import History, RankingExample

TRAINING_WEIGHT = 3
"""A token learnt from costs as much as three read: the backward pass is twice the forward pass
(Kaplan et al. 2020, arXiv 2001.08361, section 2.1)."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage asks of a model.

    Attributes:
        stage: Its name.
        calls: Prompts.
        read: Tokens read.
        written: Tokens written, at most.
        calls_exact: Whether `calls` is exactly what a run will make.
        read_exact: Prompts whose tokens are exact; the others are bounded from above.
        weight: Tokens are charged so many times.
    """

    stage: str
    calls: int
    read: int
    written: int = 0
    calls_exact: bool = True
    read_exact: int = 0
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Rates:
    """What a machine does and costs.

    Attributes:
        tokens_per_second: Tokens that one machine reads and writes in a second, all its prompts together.
        price_per_million: Money for a million of them.
        within: Hours in which all shall be done, which says how many machines it takes.
    """

    tokens_per_second: float | None = None
    price_per_million: float | None = None
    within: float = 24.0


def price(work: Sequence[Work], rates: Rates) -> list[dict[str, Any]]:
    """Return one row a stage with hours (of one machine), machines and money, and one for all of them.

    What cannot be said for want of a rate is None. `machines` are those it takes to be done with that row
    within the hours allowed; stages follow each other, so the last row says how many do for all.
    """
    rows = [_priced(stage, rates) for stage in work]
    total = {"stage": "all", "calls": sum(row["calls"] for row in rows)}
    for name in ("read", "written", "hours", "money"):
        values = [row[name] for row in rows]
        total[name] = None if None in values else sum(values)
    for row in [*rows, total]:
        row["machines"] = None if row["hours"] is None else math.ceil(row["hours"] / rates.within)
    return [*rows, total]


def _priced(work: Work, rates: Rates) -> dict[str, Any]:
    charged = (work.read + work.written) * work.weight
    speed, money = rates.tokens_per_second, rates.price_per_million
    return {
        **asdict(work),
        "hours": None if speed is None else charged / speed / 3600,
        "money": None if money is None else charged / 1e6 * money,
    }


@dataclass(slots=True)
class PromptCounts:
    """Counts over ranking prompts.

    Attributes:
        n_groups: Users' questions, each with one prefix.
        n_prompts: Candidates.
        prompt_tokens: Tokens of all prompts, each whole: what `scores.parquet` says.
        read_tokens: Tokens read when the candidates of a question share the reading of its prefix.
        n_exact: Questions whose profile is known; the others are counted with a bound from above.
    """

    n_groups: int = 0
    n_prompts: int = 0
    prompt_tokens: int = 0
    read_tokens: int = 0
    n_exact: int = 0

    def add(self, other: PromptCounts, times: int = 1) -> None:
        """Add the counts of other prompts, which come several times."""
        self.n_groups += times * other.n_groups
        self.n_prompts += times * other.n_prompts
        self.prompt_tokens += times * other.prompt_tokens
        self.read_tokens += times * other.read_tokens
        self.n_exact += times * other.n_exact


def count_prompts(
    builder: PromptBuilder,
    examples: Sequence[RankingExample],
    profiles: Sequence[str | None],
    *,
    stand_in: str,
    n_more: int,
) -> PromptCounts:
    """Count the prompts of examples.

    Args:
        builder: Builds them.
        examples: The questions.
        profiles: The profile of each; None where it is not written yet.
        stand_in: A profile as short as one can be, which stands for those not written.
        n_more: Tokens by which one of these may be longer.

    Raises:
        BudgetError: a prompt cannot fit its budget.
    """
    counts = PromptCounts()
    for example, profile in zip(examples, profiles, strict=True):
        text = "" if not builder.config.use_profile else profile
        suffixes = [len(builder.suffix(candidate)) for candidate in example.candidates]
        if text is None:
            n_prefix = _longest_prefix(builder, example, stand_in, n_more, max(suffixes))
        else:
            n_prefix = len(builder.build(example.history, text, example.candidates).group.prefix)
        counts.n_groups += 1
        counts.n_prompts += len(suffixes)
        counts.prompt_tokens += len(suffixes) * n_prefix + sum(suffixes)
        counts.read_tokens += n_prefix + sum(suffixes)
        counts.n_exact += text is not None
    return counts


def _longest_prefix(
    builder: PromptBuilder, example: RankingExample, stand_in: str, n_more: int, longest_suffix: int
) -> int:
    """Return how many tokens the prefix has at most: no more than the budget leaves."""
    n_recent = builder.config.n_recent
    newest = example.history[-n_recent:] if n_recent else ()
    recent = [plain_line(builder.item_text(item)) for item in newest]
    whole = len(builder.prefix(recent, plain_line(stand_in))) + n_more
    return min(whole, builder.config.max_tokens - longest_suffix)


PLACEHOLDER = "x"
"""Stands for a text not yet written; its own token pays for where the texts around it meet."""
AT_ONCE = 2000
"""Calls rendered and looked up together."""
_BYTES_A_TOKEN = 5
# Of a row: two hashes, the numbers, what the database adds; and pages that are not full.
_BYTES_A_ROW, _FILL = 200, 1.5


@dataclass(slots=True)
class CallCounts:
    """Counts over calls of one kind.

    Attributes:
        n_calls: Of all plans.
        n_to_make: Distinct ones that the store does not know.
        n_exact: Those to make whose prompt is known now.
        exact_tokens: Prompt tokens of these.
        bounded_tokens: Prompt tokens of the others to make, at most.
    """

    n_calls: int = 0
    n_to_make: int = 0
    n_exact: int = 0
    exact_tokens: int = 0
    bounded_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Tokens read by the calls to make, at most."""
        return self.exact_tokens + self.bounded_tokens


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will do.

    Attributes:
        by_kind: `first`, `update` and `merge`, those that occur.
        profiles: The profile of each history, None where it is not written yet.
        max_new_tokens: Tokens of a text at most.
        n_store_bytes: By how much the store grows, about, at most.
    """

    by_kind: dict[str, CallCounts]
    profiles: list[str | None]
    max_new_tokens: int
    n_store_bytes: int

    def total(self) -> CallCounts:
        """Return the counts over all kinds."""
        total = CallCounts()
        for counts in self.by_kind.values():
            total.n_calls += counts.n_calls
            total.n_to_make += counts.n_to_make
            total.n_exact += counts.n_exact
            total.exact_tokens += counts.exact_tokens
            total.bounded_tokens += counts.bounded_tokens
        return total


def forecast(
    histories: Sequence[History],
    summariser: Summariser,
    *,
    model_id: str,
    n_tokens: Callable[[Prompt], int],
    store: TextStore | None = None,
    asked: set[str] | None = None,
    n_thoughts: int = 0,
) -> Forecast:
    """Foretell the calls of `summarize` for these histories.

    Args:
        histories: One entry a profile.
        summariser: What the texts depend on.
        model_id: That of the engine.
        n_tokens: Counts a prompt's tokens as the engine does.
        store: Known texts; None for a new store.
        n_thoughts: Tokens that a call may write beside its text's cap.
        asked: Names of calls that are made anyway, as an earlier forecast left them; new ones are added.
    """
    folds = []
    for history in histories:
        blocks = summariser.blocks(history.item_ids)
        folds.append(Fold(history, blocks, plan_calls(blocks, summariser.config)))
    cap = summariser.config.max_new_tokens + n_thoughts
    work = _Forecaster(summariser, model_id, n_tokens, store, set() if asked is None else asked, cap)
    for calls in _rounds(folds):
        for start in range(0, len(calls), AT_ONCE):
            work.ask(calls[start : start + AT_ONCE])
    return Forecast(
        dict(work.counts),
        [_profile(fold, summariser) for fold in folds],
        cap,
        round(work.n_bytes * _FILL),
    )


def unwritten_text(summariser: Summariser) -> str:
    """Return what stands for a text not yet written; it may be longer by the cap of new tokens."""
    return summary_text(summariser.template, PLACEHOLDER)


def longest_prompt(
    histories: Iterable[History],
    summariser: Summariser,
    n_tokens: Callable[[Prompt], int],
    n_counted: int = 8,
) -> int:
    """Return the tokens of the longest prompt, texts not yet written taken to be as short as one can be.

    Counted are the `n_counted` that have most characters.
    """
    stand_in = unwritten_text(summariser)
    prompts = (
        summariser.prompt(call, [stand_in] * len(call.inputs))
        for history in histories
        for call in plan_calls(summariser.blocks(history.item_ids), summariser.config)
    )
    longest = heapq.nlargest(n_counted, prompts, key=lambda p: sum(len(m.content) for m in p.messages))
    return max(map(n_tokens, longest), default=0)


def _rounds(folds: Sequence[Fold]) -> list[list[tuple[Fold, int]]]:
    """Return the calls of all folds, ordered so that each reads texts of earlier rounds only."""
    rounds: defaultdict[int, list[tuple[Fold, int]]] = defaultdict(list)
    for fold in folds:
        depths: list[int] = []
        for place, call in enumerate(fold.calls):
            depths.append(1 + max((depths[i] for i in call.inputs), default=-1))
            rounds[depths[place]].append((fold, place))
    return [rounds[depth] for depth in sorted(rounds)]


def _profile(fold: Fold, summariser: Summariser) -> str | None:
    if not fold.calls:
        return summariser.without_calls(fold.history).text
    return fold.texts.get(len(fold.calls) - 1)


@dataclass(slots=True)
class _Question:
    """A call with its prompt, the name it shares with equal calls, and how many inputs are not written."""

    fold: Fold
    place: int
    prompt: Prompt
    name: str
    n_unwritten: int


@dataclass(slots=True)
class _Forecaster:
    """Walks through the plans; texts from the store and names of calls go into the folds."""

    summariser: Summariser
    model_id: str
    n_tokens: Callable[[Prompt], int]
    store: TextStore | None
    asked: set[str]
    cap: int
    counts: defaultdict[str, CallCounts] = field(default_factory=lambda: defaultdict(CallCounts))
    n_bytes: float = 0.0

    def ask(self, calls: Sequence[tuple[Fold, int]]) -> None:
        """Look calls up, and count those that have to be made."""
        questions = [self._question(fold, place) for fold, place in calls]
        keys = list({q.name for q in questions if not q.n_unwritten} - self.asked)
        known = {} if self.store is None else self.store.texts(keys)
        for question in questions:
            call = question.fold.calls[question.place]
            counts = self.counts[call.kind]
            counts.n_calls += 1
            question.fold.keys[question.place] = question.name
            if question.name in known:
                question.fold.texts[question.place] = known[question.name]
            elif question.name not in self.asked:
                self.asked.add(question.name)
                self._count(counts, question, call)

    def _question(self, fold: Fold, place: int) -> _Question:
        call = fold.calls[place]
        unwritten = [fold.keys[i] for i in call.inputs if i not in fold.texts]
        stand_in = unwritten_text(self.summariser)
        inputs = [fold.texts.get(i, stand_in) for i in call.inputs]
        prompt = self.summariser.prompt(call, inputs)
        name = prompt_key(prompt, self.model_id, self.summariser.params)
        if unwritten:  # two such prompts are equal where those of their inputs are
            name = hashlib.sha256("|".join([name, *unwritten]).encode()).hexdigest()
        return _Question(fold, place, prompt, name, len(unwritten))

    def _count(self, counts: CallCounts, question: _Question, call: Call) -> None:
        cap = self.cap
        tokens = self.n_tokens(question.prompt)
        counts.n_to_make += 1
        if question.n_unwritten:
            counts.bounded_tokens += tokens + question.n_unwritten * cap
        else:
            counts.n_exact += 1
            counts.exact_tokens += tokens
        listed = len(json.dumps(call.item_ids))
        self.n_bytes += _BYTES_A_ROW + len(self.model_id) + listed + _BYTES_A_TOKEN * cap
