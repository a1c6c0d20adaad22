"""Renders a ranking question into token ids: shared prefix + one suffix a candidate.

Prefix and suffix are tokenised apart and joined, so training, local scoring and remote scoring see the same
token sequence. What is cut to fit the budget is decided in `budget`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from trsr.errors import BudgetError, ModelError
from trsr.llm.base import LabelTokens, Message, Prompt, ScoringGroup
from trsr.llm.chat_format import Tokenizer
from trsr.templating import Template, load_template, plain_line


@dataclass(frozen=True, slots=True)
class Fitted:
    """A prefix within its budget.

    Attributes:
        prefix: Token ids.
        n_recent_cut: Recent items left out, the oldest ones.
        n_tokens_cut: Tokens of notes, recent items and profile that were left out.
    """

    prefix: tuple[int, ...]
    n_recent_cut: int = 0
    n_tokens_cut: int = 0


def fit(
    recent: Sequence[str],
    profile: str,
    notes: str = "",
    *,
    budget: int,
    tokenizer: Tokenizer,
    prefix_tokens: Callable[[Sequence[str], str, str], tuple[int, ...]],
) -> Fitted:
    """Choose how much of the notes, how many recent items and how much of the profile fit.

    Args:
        recent: Texts of the recent items, oldest first.
        profile: The profile; may be empty.
        notes: The user's notes; may be empty.
        budget: Tokens for the whole prefix.
        tokenizer: Counts and cuts notes and profile.
        prefix_tokens: Renders and tokenises a prefix.

    Raises:
        BudgetError: not even the empty frame fits.
    """
    whole = prefix_tokens(recent, profile, notes)
    if len(whole) <= budget:
        return Fitted(whole)
    frame = prefix_tokens((), "", "")
    if len(frame) > budget:
        raise BudgetError(
            f"The prompt's frame needs {len(frame)} tokens, {max(0, budget)} are left beside the longest "
            "candidate; raise prompt.max_tokens or lower prompt.max_field_tokens."
        )
    kept = list(recent)
    while kept and len(prefix_tokens(kept, "", notes)) > budget:
        kept.pop(0)
    prefix = prefix_tokens(kept, "", notes)
    if len(prefix) > budget:
        prefix = _longest(notes, budget, tokenizer, lambda part: prefix_tokens((), "", part)) or frame
    else:
        prefix = _longest(profile, budget, tokenizer, lambda part: prefix_tokens(kept, part, notes)) or prefix
    return Fitted(prefix, len(recent) - len(kept), len(whole) - len(prefix))


def _longest(
    text: str, budget: int, tokenizer: Tokenizer, prefix_of: Callable[[str], tuple[int, ...]]
) -> tuple[int, ...] | None:
    """Return the prefix with as much of the text's beginning as fits; None if nothing of it does."""
    ids = tokenizer.encode(text)
    best = None
    low, high = 1, len(ids)  # the longest beginning that fits, by bisection
    while low <= high:
        middle = (low + high) // 2
        prefix = prefix_of(tokenizer.decode(ids[:middle]).rstrip("�"))
        if len(prefix) <= budget:
            best, low = prefix, middle + 1
        else:
            high = middle - 1
    return best


TEMPLATES = Path(__file__).parent / "templates"
SECTIONS = ("system", "prefix", "candidate", "answer", "positive", "negative")
VARIABLES = ("notes", "profile", "recent", "candidate", "system", "user")
"""The last two are for the section `frame` alone, which stands in place of the model's chat template."""
# Stands where the candidate begins while a chat format is applied. It is no white space, which some formats
# trim, and no plain line can hold it, since `plain_line` folds its hashes.
_MARK = "##CandidateBegins##"
_CUE = "Answer:"
_NOTHING = {"recent": [], "profile": "", "notes": "", "candidate": ""}
_SPECIAL = re.compile(r"<\|[^<>|\s]+\|>")
_MAX_SUFFIXES = 200_000


class PromptConfig(BaseModel):
    """What the ranking prompt shows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str = "auto"
    """A built-in one (`news`, `products`, `movies`, `generic`, `paper`), a file, or `auto`: by domain.
    `qwen3_reranker` is for the models of that name."""
    n_recent: int = Field(default=5, ge=0)
    """The newest items shown in full."""
    use_profile: bool = True
    """Whether the profile is shown."""
    fields: tuple[str, ...] | None = None
    """The text fields of recent items and candidates, in order; None for all."""
    max_field_tokens: int = Field(default=24, ge=1)
    """Tokens kept of each field."""
    max_tokens: int = Field(default=1024, ge=32)
    """Tokens of one whole prompt (prefix + one candidate) at most."""


@dataclass(frozen=True, slots=True)
class RankingPrompt:
    """One example's prompt as token ids, what had to be cut from it, and which candidates were cut."""

    group: ScoringGroup
    fitted: Fitted
    cut: frozenset[int] = frozenset()

    def n_tokens(self) -> list[int]:
        """Return the length of each candidate's whole prompt, in tokens."""
        return [len(self.group.prefix) + len(suffix) for suffix in self.group.suffixes]


def load_ranking_template(name: str, domain: str) -> Template:
    """Load the template called `name`; `auto` is the domain's own, or `generic`.

    Raises:
        TemplateError: it does not exist or is wrong.
    """
    return load_template(name, domain, TEMPLATES, sections=SECTIONS, variables=VARIABLES)


class PromptBuilder:
    """Builds the prompts of one template, one tokenizer and one budget."""

    def __init__(
        self,
        template: Template,
        config: PromptConfig,
        tokenizer: Tokenizer,
        item_text: Callable[[str], str],
    ) -> None:
        self.template = template
        self.config = config
        self.tokenizer = tokenizer
        self.item_text = item_text
        # By text, not by item: a changed item is never answered with what it was.
        self._suffix = lru_cache(_MAX_SUFFIXES)(self.text_suffix)
        self._check_split()

    def build(
        self,
        history: Sequence[str],
        profile: str,
        candidates: Sequence[str],
        *,
        notes: str = "",
        room: int = 0,
    ) -> RankingPrompt:
        """Build the prompt of one example.

        Args:
            history: Item ids, oldest first.
            profile: The preference summary; may be empty.
            candidates: Item ids, at least one.
            notes: What the user wrote, shown whatever `use_profile` says; may be empty.
            room: As for `join`.

        Raises:
            BudgetError: frame, answer cue and the longest candidate alone exceed `max_tokens`.
        """
        suffixes = [self.suffix(candidate) for candidate in candidates]
        n_recent = self.config.n_recent
        newest = history[-n_recent:] if n_recent else []
        shown = profile if self.config.use_profile else ""
        return self.join([self.item_text(item) for item in newest], shown, suffixes, notes=notes, room=room)

    def join(
        self,
        recent: Sequence[str],
        profile: str,
        suffixes: Sequence[tuple[int, ...]],
        *,
        notes: str = "",
        room: int = 0,
    ) -> RankingPrompt:
        """Fit a prefix beside suffixes that are made already.

        Args:
            recent: Texts of the recent items, oldest first.
            profile: The preference summary, shown whatever `use_profile` says; may be empty.
            suffixes: Of the candidates, at least one.
            notes: As for `build`.
            room: Tokens kept for a candidate at least. With a fixed one the prefix does not depend on which
                candidates are asked about together, as long as none is longer.

        Raises:
            BudgetError: as `build`.
        """
        fitted = fit(
            [self._line(text) for text in recent],
            self._line(profile),
            self._line(notes),
            budget=self.config.max_tokens - max([room, *map(len, suffixes)]),
            tokenizer=self.tokenizer,
            prefix_tokens=self.prefix,
        )
        return RankingPrompt(ScoringGroup(fitted.prefix, tuple(suffixes)), fitted)

    def _line(self, text: str) -> str:
        """Return a plain line in which no special token of this very tokenizer is written (`[MASK]`, ...)."""
        line = plain_line(text)
        for special in self.tokenizer.special_texts:
            if len(special) > 1 and special in line:
                line = line.replace(special, f"{special[0]} {special[1:]}")
        return line

    def prefix(self, recent: Sequence[str], profile: str, notes: str = "") -> tuple[int, ...]:
        """Return the shared prefix: everything before the candidate, BOS included."""
        text, _ = self._split(recent, profile, "", notes)
        return tuple(self.tokenizer.encode_prompt(text))

    def suffix(self, candidate: str) -> tuple[int, ...]:
        """Return a candidate's suffix: its text and the answer cue. Known texts are looked up."""
        return self._suffix(self.item_text(candidate))

    def text_suffix(self, text: str) -> tuple[int, ...]:
        """Return the suffix of a candidate that is given by its text."""
        return tuple(self.tokenizer.encode(self.suffix_text(self._line(text))))

    def suffix_text(self, candidate_text: str) -> str:
        """Return the text of a candidate's suffix."""
        return self._split([], "", candidate_text)[1]

    def _split(self, recent: Sequence[str], profile: str, candidate: str, notes: str = "") -> tuple[str, str]:
        """Render the whole prompt and cut it where the candidate begins.

        Raises:
            ModelError: the chat template does not keep the text.
        """
        parts = self._render(recent, profile, candidate, _MARK, notes).split(_MARK)
        if len(parts) != 2:
            raise ModelError(
                f"The model's chat template writes the user's text {len(parts) - 1} times, once is needed to "
                "find where the candidate begins; use another model or correct its template."
            )
        return parts[0], parts[1]

    def _check_split(self) -> None:
        """Refuse a chat template that writes the text before or behind the mark otherwise than without it."""
        example = (['Tom & Ann\'s "lamp", <3', "A rope of many words. " * 20], "Likes é.", "A Second Lamp.")
        if "".join(self._split(*example)) != self._render(*example, ""):
            raise ModelError(
                "The model's chat template changes the user's text, so it cannot be divided where the "
                "candidate begins; use another model or correct its template."
            )

    def _render(self, recent: Sequence[str], profile: str, candidate: str, mark: str, notes: str = "") -> str:
        """Render the whole prompt with a mark where the candidate begins.

        A template without a place for notes shows them in the profile's, before it.
        """
        if notes and not self._has_notes:
            profile, notes = f"{notes} {profile}".rstrip(), ""
        values = {"recent": list(recent), "profile": profile, "notes": notes, "candidate": candidate}
        prefix = self.template.render("prefix", **values)
        suffix = self.template.render("candidate", **values)
        system, user = self.template.render("system", **values), f"{prefix}\n{mark}{suffix}"
        if self._has_frame:
            return self.template.render_whole("frame", system=system, user=user) + self.cue
        turns = (Message("system", system), Message("user", user))
        return self.tokenizer.render_chat(Prompt(turns, self.cue), think=False)

    @cached_property
    def _has_notes(self) -> bool:
        """Whether the template has a place for notes."""
        return "notes" in self.template.used("prefix")

    @property
    def _has_frame(self) -> bool:
        """Whether the template brings a chat format of its own."""
        return "frame" in self.template.sections

    @cached_property
    def cue(self) -> str:
        """What stands before the answer; never empty where no chat format says whose turn it is."""
        cue = self.template.render("answer", **_NOTHING)
        return cue or ("" if self._has_frame or self.tokenizer.has_chat_template else _CUE)

    def labels(self) -> LabelTokens:
        """Find the two answer tokens in their exact context.

        Raises:
            ModelError: an answer is not a single token there, or both are the same; or the template's own
                frame is not one of this model.
        """
        for mark in _SPECIAL.findall(self.template.own_text("frame")):
            if len(self.tokenizer.encode(mark)) != 1:
                raise ModelError(
                    f"The template {self.template.name!r} is for models that know {mark}, which is no token "
                    "of this one; use another template or model."
                )
        suffix = self.suffix_text("item")
        words = [self.template.render(name, **_NOTHING) for name in ("positive", "negative")]
        # An answer cue such as `Answer:` is followed by a blank, which joins the label's token.
        before = " " if self.cue else "" if self._has_frame else self.tokenizer.answer_blank
        found = [self._label(suffix, before, word) for word in words]
        if found[0] == found[1]:
            raise ModelError("Both answers are the same token; change [[positive]] or [[negative]].")
        return LabelTokens(*found)

    def _label(self, suffix: str, before: str, word: str) -> int:
        """Return the one token that an answer adds to a suffix.

        Some tokenizers put the blank before it by themselves, so where the cue does not ask for one, the
        answer without it is tried too.
        """
        ids = self.tokenizer.encode(suffix)
        extended = self.tokenizer.encode(f"{suffix}{before}{word}")
        melts = extended[: len(ids)] != ids
        if not melts and len(extended) == len(ids) + 1:
            return extended[-1]
        if before and not self.cue:
            return self._label(suffix, "", word)
        said = "melts into the text before it" if melts else f"is {len(extended) - len(ids)} tokens"
        raise ModelError(
            f"The answer {word!r} {said} for this model, one is needed; change [[positive]] or [[negative]] "
            "in the template, give it an [[answer]] cue such as Answer:, or use another model."
        )
