"""Renders a ranking request into token ids: a shared prefix, and one suffix per candidate.

Prefix and suffix are tokenised apart and joined, so training, local scoring and remote scoring see the same
token sequence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from trsr.errors import BudgetError, ConfigError, ModelError
from trsr.llm.base import LabelTokens, Message, Prompt, ScoringGroup
from trsr.llm.chat_format import Tokenizer
from trsr.llm.models import context_length
from trsr.templating import Template, load_template, sanitize_line

Tokens = tuple[int, ...]
TEMPLATES = Path(__file__).parent / "templates"
SECTIONS = ("system", "prefix", "candidate", "answer", "positive", "negative")
VARIABLES = ("notes", "profile", "recent", "candidate", "system", "user")
"""The last two are for the section `frame` alone, which stands in place of the model's chat template."""
# Stands where the candidate begins while a chat format is applied. It is no white space, which some formats
# trim, and no plain line can hold it, since `sanitize_line` folds its hashes.
_MARK = "##CandidateBegins##"
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

    def check_length(self, context: int | None, model: str) -> None:
        """Refuse prompts longer than a model's context, in tokens; None where it is unknown.

        Raises:
            ConfigError: naming both numbers.
        """
        if context is not None and self.max_tokens > context:
            raise ConfigError(
                f"prompt.max_tokens: found {self.max_tokens}, but the model {model!r} reads at most "
                f"{context} tokens; set it to {context} or less, or use a model with a longer context."
            )


def check_context(model: str, prompt: PromptConfig) -> None:
    """Refuse prompts longer than a model reads; raises what `context_length` and `check_length` raise."""
    prompt.check_length(context_length(model), model)


@dataclass(frozen=True, slots=True)
class RankingPrompt:
    """One user's prompt as token ids, and what had to be cut from it.

    Attributes:
        group: Prefix and suffixes.
        n_recent_cut: Recent items left out, the oldest ones.
        n_tokens_cut: Tokens of notes, recent items and profile that were left out.
        cut: Places of the candidates that were cut.
    """

    group: ScoringGroup
    n_recent_cut: int = 0
    n_tokens_cut: int = 0
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
        self._has_notes = "notes" in template.used("prefix")
        self._has_frame = "frame" in template.sections  # a chat format of the template's own
        self._cue = template.render("answer", **_NOTHING)
        if not (self._cue or self._has_frame or tokenizer.has_chat_template):  # nothing says whose turn it is
            self._cue = "Answer:"
        # By text, not by item: a changed item is never answered with what it was.
        self._suffix = lru_cache(_MAX_SUFFIXES)(self.text_suffix)
        # A chat template may write the text around the mark otherwise than without it.
        example = (['Tom & Ann\'s "lamp", <3', "A rope of many words. " * 20], "Likes é.", "A Second Lamp.")
        if "".join(self._split(*example)) != self._render(*example, ""):
            raise ModelError(
                "The model's chat template changes the user's text, so it cannot be divided where the "
                "candidate begins; use another model or correct its template."
            )

    def build(
        self,
        history: Sequence[str],
        profile: str,
        candidates: Sequence[str],
        *,
        notes: str = "",
        room: int = 0,
    ) -> RankingPrompt:
        """Build the prompt of one user.

        Args:
            history: Item ids, oldest first.
            profile: The preference summary; may be empty.
            candidates: Item ids, at least one.
            notes: What the user wrote, shown whatever `use_profile` says; may be empty.
            room: As for `join`.

        Raises:
            BudgetError: frame, answer cue and the longest candidate alone exceed `max_tokens`.
        """
        n_recent = self.config.n_recent
        recent = [self.item_text(item) for item in (history[-n_recent:] if n_recent else ())]
        shown = profile if self.config.use_profile else ""
        return self.join(recent, shown, [self.suffix(one) for one in candidates], notes=notes, room=room)

    def join(
        self,
        recent: Sequence[str],
        profile: str,
        suffixes: Sequence[Tokens],
        *,
        notes: str = "",
        room: int = 0,
    ) -> RankingPrompt:
        """Fit a prefix to suffixes that are made already.

        Of what does not fit, notes stay first, then the newest items, then the profile's beginning.

        Args:
            recent: Texts of the recent items, oldest first.
            profile: The preference summary, shown whatever `use_profile` says; may be empty.
            suffixes: Of the candidates, at least one.
            notes: As for `build`.
            room: Tokens kept for a candidate at least. With a fixed one the prefix does not depend on the
                candidates, as long as none is longer.

        Raises:
            BudgetError: as `build`.
        """
        recent, profile, notes = [*map(self._line, recent)], self._line(profile), self._line(notes)
        budget = self.config.max_tokens - max([room, *map(len, suffixes)])
        prefix = whole = self.prefix(recent, profile, notes)
        n_recent_cut = 0
        if len(whole) > budget:
            n_recent_cut, prefix = self._fit(recent, profile, notes, budget)
        group = ScoringGroup(prefix, tuple(suffixes))
        return RankingPrompt(group, n_recent_cut, len(whole) - len(prefix))

    def _fit(self, recent: list[str], profile: str, notes: str, budget: int) -> tuple[int, Tokens]:
        """Return how many recent items are left out, and the longest prefix that fits."""
        frame = self.prefix((), "")
        if len(frame) > budget:
            raise BudgetError(
                f"The prompt's frame needs {len(frame)} tokens, {max(0, budget)} are left beside the longest "
                "candidate; raise prompt.max_tokens or lower prompt.max_field_tokens."
            )
        fitting = (n for n in range(len(recent) + 1) if len(self.prefix(recent[n:], "", notes)) <= budget)
        n_cut = next(fitting, None)
        if n_cut is None:
            return len(recent), self._longest(notes, budget, lambda text: self.prefix((), "", text)) or frame
        kept = recent[n_cut:]
        longest = self._longest(profile, budget, lambda text: self.prefix(kept, text, notes))
        return n_cut, longest or self.prefix(kept, "", notes)

    def _longest(self, text: str, budget: int, prefix_of: Callable[[str], Tokens]) -> Tokens | None:
        """Return the prefix with as much of the text's beginning as fits; None if nothing of it does."""
        ids = self.tokenizer.encode(text)
        best = None
        low, high = 1, len(ids)
        while low <= high:
            middle = (low + high) // 2
            prefix = prefix_of(self.tokenizer.decode(ids[:middle]).rstrip("\ufffd"))
            if len(prefix) <= budget:
                best, low = prefix, middle + 1
            else:
                high = middle - 1
        return best

    def _line(self, text: str) -> str:
        """Return a plain line in which no special token of this very tokenizer is written (`[MASK]`, ...)."""
        line = sanitize_line(text)
        for special in self.tokenizer.special_texts:
            if len(special) > 1 and special in line:
                line = line.replace(special, f"{special[0]} {special[1:]}")
        return line

    def prefix(self, recent: Sequence[str], profile: str, notes: str = "") -> Tokens:
        """Return the shared prefix: everything before the candidate, BOS included."""
        text, _ = self._split(recent, profile, "", notes)
        return tuple(self.tokenizer.encode_prompt(text))

    def suffix(self, candidate: str) -> Tokens:
        """Return a candidate's suffix: its text and the answer cue. Known texts are looked up."""
        return self._suffix(self.item_text(candidate))

    def text_suffix(self, text: str) -> Tokens:
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
            return self.template.render_whole("frame", system=system, user=user) + self._cue
        turns = (Message("system", system), Message("user", user))
        return self.tokenizer.render_chat(Prompt(turns, self._cue), think=False)

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
        before = " " if self._cue else "" if self._has_frame else self.tokenizer.answer_blank
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
        if before and not self._cue:
            return self._label(suffix, "", word)
        said = "melts into the text before it" if melts else f"is {len(extended) - len(ids)} tokens"
        raise ModelError(
            f"The answer {word!r} {said} for this model, one is needed; change [[positive]] or [[negative]] "
            "in the template, give it an [[answer]] cue such as Answer:, or use another model."
        )
