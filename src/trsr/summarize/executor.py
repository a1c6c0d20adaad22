"""Execute the plans of many users as one stream of calls, which keeps the engine busy.

A call is made as soon as the texts it reads are known, independently of other users. Calls in the store are
not repeated, and a call that users share is made once. Every result is committed when it arrives; results
that arrive together share a transaction. Killing the process loses only the calls in flight. Users are
started in windows, so memory does not grow with their number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from trsr.errors import EngineError
from trsr.llm.base import Generation, Prompt, TextGenerator, prompt_key
from trsr.summarize.prompts import stored_error, summary_or_error
from trsr.summarize.store import GroupStore, StoredCall, TextStore
from trsr.summarize.user_plan import BoundSummarizer, SummaryPlan, plan_user
from trsr.types import History

WINDOW = 4096
"""Users whose profiles are being written at once; more are started when half of them are done."""

MOST_TOGETHER = 256
"""Results committed together at most."""


@dataclass(slots=True)
class SummaryProgress:
    """Counts of users, calls and tokens of this process so far."""

    n_users: int = 0
    n_users_done: int = 0
    n_calls: int = 0
    """Calls of all plans; by `summarize_each`, of those started so far."""
    n_calls_known: int = 0
    """Calls answered by the store, or by an equal call of another user."""
    n_calls_made: int = 0
    n_calls_failed: int = 0
    n_prompt_tokens: int = 0
    n_generated_tokens: int = 0


def summarize(
    histories: Sequence[History],
    summarizer: BoundSummarizer,
    engine: TextGenerator | None,
    store: TextStore,
    on_progress: Callable[[SummaryProgress], None] = lambda _: None,
) -> list[SummaryPlan]:
    """Summarize every history into a profile; the result is in the order of `histories`.

    Args:
        histories: One entry per profile; a user may occur with histories of several lengths.
        summarizer: The bound summarizer.
        engine: Writes the texts; None only if no call is planned (`none`, `counted`, empty histories).
        store: Holds known texts and keeps new ones.
        on_progress: Called after every result, and at the end.

    Raises:
        EngineError: calls failed; all others were made and kept, and the next run tries the failed ones
            again.
    """
    plans = [plan_user(history, summarizer) for history in histories]
    run_calls(plans, summarizer, engine, store, on_progress)
    return plans


def summarize_each(
    histories: Iterable[History],
    summarizer: BoundSummarizer,
    engine: TextGenerator | None,
    store: TextStore,
    on_progress: Callable[[SummaryProgress], None] = lambda _: None,
    *,
    n_users: int = 0,
    window: int = WINDOW,
) -> Iterator[SummaryPlan]:
    """Summarize any number of histories into profiles, in constant memory.

    Args:
        histories: One entry per profile; read as they are needed.
        summarizer: The bound summarizer.
        engine: See `summarize`.
        store: See `summarize`.
        on_progress: Called after every result, and at the end.
        n_users: The number of histories, for `on_progress`; 0 if not known.
        window: The number of histories worked on at once.

    Yields:
        The plan of each history, in their order; a plan with a failed call is not `done`.

    Raises:
        EngineError: calls failed; all others were made and kept, and all plans were yielded.
    """
    progress = SummaryProgress(n_users)
    source = (plan_user(history, summarizer) for history in histories)
    yield from _Stream(summarizer, engine, store, progress, on_progress, source, window).run()


def run_calls(
    plans: Sequence[SummaryPlan],
    summarizer: BoundSummarizer,
    engine: TextGenerator | None,
    store: TextStore,
    on_progress: Callable[[SummaryProgress], None] = lambda _: None,
    most: int | None = None,
) -> None:
    """Get the texts of all calls of these plans, as `summarize` does; finished plans are `done`.

    A plan that needs more than `most` new calls `has_more`: the next `run_calls` continues it.

    Raises:
        EngineError: calls failed; the plans that did not need them are done.
    """
    progress = SummaryProgress(len(plans))
    stream = _Stream(summarizer, engine, store, progress, on_progress, iter(plans), most=most)
    progress.n_calls = sum(len(plan.calls) - len(plan.texts) for plan in plans)
    stream.counted = True
    for _ in stream.run():
        pass


class _Prompts(Sequence[Prompt]):
    """The prompts of one call of an engine's `generate`, by index; answered ones are dropped."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[str, Prompt]] = {}
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: Any) -> Any:
        place = range(self._n)[index]
        if isinstance(place, range):
            return [self[i] for i in place]
        return self._open.get(place, ("", _ANSWERED))[1]

    def append(self, key: str, prompt: Prompt) -> None:
        self._open[self._n] = key, prompt
        self._n += 1

    def answered(self, index: int) -> str:
        """Return the key of a prompt that has its answer, and drop it."""
        return self._open.pop(index)[0]


_ANSWERED = Prompt(())


@dataclass(slots=True)
class _Question:
    """One distinct call of a round, and the plans that wait for its text."""

    prompt: Prompt
    item_ids: tuple[str, ...]
    askers: list[tuple[SummaryPlan, int]]

    @property
    def user_ids(self) -> tuple[str, ...]:
        """The users who wait for the text, each once."""
        return tuple(dict.fromkeys(plan.history.user_id for plan, _ in self.askers))


def _ready(plans: Iterable[SummaryPlan]) -> list[tuple[SummaryPlan, int]]:
    return [(plan, place) for plan in plans for place in plan.ready()]


def _reading_order(prompt: Prompt) -> tuple[str, ...]:
    """Return a sort key that puts prompts with equal beginnings together, for engines that cache prefixes."""
    return (*(message.content for message in prompt.messages), prompt.prefill)


def _together(results: Iterator[Generation]) -> Iterator[list[Generation]]:
    """Yield results in groups that arrived together; if the engine fails, the last group comes first."""
    group: list[Generation] = []
    try:
        for result in results:
            group.append(result)
            if not result.more or len(group) == MOST_TOGETHER:
                yield group
                group = []
    except GeneratorExit:
        raise
    except BaseException:
        if group:
            yield group
        raise
    if group:
        yield group


@dataclass(slots=True)
class _Stream:
    """Run the ready calls in a window of the plans from `source`, and yield the plans in its order.

    `errors` holds the keys that failed in this process.
    """

    summarizer: BoundSummarizer
    engine: TextGenerator | None
    store: TextStore
    progress: SummaryProgress
    on_progress: Callable[[SummaryProgress], None]
    source: Iterator[SummaryPlan]
    window: int = WINDOW
    counted: bool = False
    """Whether the progress knows all calls from the beginning."""
    most: int | None = None
    """Maximum number of new calls per plan."""
    errors: dict[str, str] = field(default_factory=dict)
    open: deque[SummaryPlan] = field(default_factory=deque)
    """Plans that are started and not yet yielded."""
    n_started: int = 0
    n_unfinished: int = 0
    n_made_of_pass: int = 0

    def run(self) -> Iterator[SummaryPlan]:
        """Yield every plan when it is done or has failed; then raise an error if calls failed."""
        more = True
        while more:  # once is enough for an engine that takes calls up to its last result
            self.n_made_of_pass = 0
            yield from self._pass()
            more = self.n_made_of_pass > 0 and bool(self.open)
        for plan in self.open:
            self.n_unfinished += not plan.done and (plan.failed or not plan.has_more)
            yield plan
        if self.n_unfinished:
            first_error = next(iter(self.errors.values()), "the engine gave no answer")
            raise EngineError(
                f"{len(self.errors)} summary calls failed and {self.n_unfinished} of {self.n_started} "
                f"profiles are unfinished (first error: {first_error}); run the same command again to retry "
                "only those.",
                retryable=True,
            )
        self.on_progress(self.progress)

    def _pass(self) -> Iterator[SummaryPlan]:
        """Run the engine once on all calls that are or become ready."""
        asked: dict[str, _Question] = {}
        prompts = _Prompts()
        self._add(_ready(self.open), asked, prompts)
        yield from self._advance(asked, prompts)
        if not prompts:
            return
        for group in _together(self._engine().generate(prompts, self.summarizer.params)):
            results = [(key := prompts.answered(one.index), asked.pop(key), one) for one in group]
            for new in self._ask(self._keep(results), asked):
                prompts.append(new, asked[new].prompt)
            yield from self._advance(asked, prompts)
            self.on_progress(self.progress)

    def _advance(self, asked: dict[str, _Question], prompts: _Prompts) -> Iterator[SummaryPlan]:
        """Yield the leading plans that are finished, and start others if the window has room."""
        while True:
            while self.open and (self.open[0].done or self.open[0].failed):
                plan = self.open.popleft()
                self.n_unfinished += not plan.done
                yield plan
            if len(self.open) > self.window // 2:
                return
            new = list(islice(self.source, self.window - len(self.open)))
            if not new:
                return
            self._start(new)
            self._add(_ready(new), asked, prompts)

    def _start(self, plans: Sequence[SummaryPlan]) -> None:
        for plan in plans:
            plan.failed, plan.n_asked, plan.has_more = False, 0, False  # of an earlier attempt
        self.open.extend(plans)
        self.n_started += len(plans)
        self.progress.n_users = max(self.progress.n_users, self.n_started)
        self.progress.n_users_done += sum(plan.done for plan in plans)
        if not self.counted:
            self.progress.n_calls += sum(len(plan.calls) - len(plan.texts) for plan in plans)

    def _add(
        self, ready: list[tuple[SummaryPlan, int]], asked: dict[str, _Question], prompts: _Prompts
    ) -> None:
        """Add the first calls of many plans."""
        keys = self._ask(ready, asked)
        keys.sort(key=lambda key: _reading_order(asked[key].prompt))
        for key in keys:
            prompts.append(key, asked[key].prompt)

    def _engine(self) -> TextGenerator:
        if self.engine is None:
            raise EngineError("Summaries are to be written, but no engine was given; name one with --engine.")
        return self.engine

    def _ask(self, ready: list[tuple[SummaryPlan, int]], asked: dict[str, _Question]) -> list[str]:
        """Answer these calls, and the calls that follow, from the store as far as possible; add the others.

        Args:
            ready: Calls whose inputs are known.
            asked: Unanswered calls by key; new ones are added.

        Returns:
            The keys of the new ones.
        """
        new = []
        while ready:
            questions = self._questions(ready)
            known = self.store.texts([key for key in questions if key not in asked])
            ready = []
            for key, question in questions.items():
                if key in known and (why := stored_error(known[key], question.prompt)):
                    self._fail(question, key, why)
                elif key in known:
                    self.progress.n_calls_known += len(question.askers)
                    ready += self._hand_on(question, known[key], key)
                elif key in asked:
                    asked[key].askers.extend(question.askers)
                elif self.most is not None and all(plan.n_asked >= self.most for plan, _ in question.askers):
                    for plan, _ in question.askers:
                        plan.has_more = True
                else:
                    for plan, _ in question.askers:
                        plan.n_asked += 1
                    asked[key] = question
                    new.append(key)
        return new

    def _questions(self, ready: Sequence[tuple[SummaryPlan, int]]) -> dict[str, _Question]:
        """Return the distinct calls by key, without earlier failures."""
        questions: dict[str, _Question] = {}
        if not ready:
            return questions
        model_id, params = self._engine().model_id, self.summarizer.params
        for plan, place in ready:
            call = plan.calls[place]
            prompt = self.summarizer.prompt(call, [plan.texts[i] for i in call.inputs])
            key = prompt_key(prompt, model_id, params)
            if key in self.errors:
                plan.failed = True
            else:
                questions.setdefault(key, _Question(prompt, call.item_ids, [])).askers.append((plan, place))
        return questions

    def _keep(self, results: Sequence[tuple[str, _Question, Generation]]) -> list[tuple[SummaryPlan, int]]:
        """Commit results that arrived together, and return the calls that are ready now."""
        calls = [self._stored(*result) for result in results]
        if len(calls) > 1 and isinstance(self.store, GroupStore):
            self.store.put_all(calls)
        else:
            for call in calls:
                self.store.put(call)
        ready = []
        for call, (key, question, _) in zip(calls, results, strict=True):
            progress = self.progress
            progress.n_prompt_tokens += call.n_prompt_tokens
            progress.n_generated_tokens += call.n_generated_tokens
            if call.text is None:
                self._fail(question, key, str(call.error))
            else:
                progress.n_calls_made += 1
                self.n_made_of_pass += 1
                progress.n_calls_known += len(question.askers) - 1
                ready += self._hand_on(question, call.text, key)
        return ready

    def _fail(self, question: _Question, key: str, error: str) -> None:
        self.errors[key] = error
        self.progress.n_calls_failed += 1
        for plan, _place in question.askers:
            plan.failed = True

    def _stored(self, key: str, question: _Question, result: Generation) -> StoredCall:
        """Return what is kept of a result."""
        template, params = self.summarizer.template, self.summarizer.params
        text, error = summary_or_error(template, question.prompt, result, params)
        return StoredCall(
            key=key,
            text=text,
            error=error,
            model=self._engine().model_id,
            template_hash=template.hash,
            item_ids=question.item_ids,
            n_prompt_tokens=result.n_prompt_tokens,
            n_generated_tokens=result.n_generated_tokens,
            seconds=result.seconds,
            user_ids=question.user_ids,
        )

    def _hand_on(self, question: _Question, text: str, key: str) -> list[tuple[SummaryPlan, int]]:
        """Give a text to all plans that wait for it; return the calls that are ready now."""
        ready = []
        for plan, place in question.askers:
            ready += [(plan, later) for later in plan.answer(place, text, key)]
            self.progress.n_users_done += plan.done
        return ready
