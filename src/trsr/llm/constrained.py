"""Constrained decoding: answers made of given phrases only.

A text has one or more parts, each with its own phrases, which the model selects and orders.
`PhraseConstraint` works token by token. `grammar` is the same rule for engines with grammars; it cannot
forbid repetitions, which `trim_incomplete` removes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from trsr.llm.base import PhrasePart

COMMA = ","
BREAK = ";"
"""Separates two parts."""
STOP = "."


def trim_incomplete(text: str, parts: Sequence[PhrasePart]) -> str:
    """Return a text without its incomplete last phrase and without repeated phrases."""
    phrases_by_part = _phrases_by_part(text, parts)
    if phrases_by_part and phrases_by_part[-1]:
        last = phrases_by_part[-1]
        if last[-1] not in parts[len(phrases_by_part) - 1].phrases:
            last.pop()
    kept = ""
    for phrases, part in zip(phrases_by_part, parts, strict=False):
        if not phrases:
            break
        kept += _between(part) if kept else ""
        kept += f"{COMMA} ".join(dict.fromkeys(phrases))
    return kept and f"{kept}{STOP}"


def phrases_outside_grammar(text: str, parts: Sequence[PhrasePart]) -> list[str]:
    """Return the phrases of a text that their part does not allow, in order."""
    by_part = zip(_phrases_by_part(text, parts), parts, strict=False)
    return [phrase for phrases, part in by_part for phrase in phrases if phrase not in part.phrases]


def grammar(parts: Sequence[PhrasePart]) -> str:
    """Return the rule in GBNF, as llama.cpp reads it."""
    whole = "part0"
    for number, part in enumerate(parts[1:], start=1):
        whole += f' "{_escaped(_between(part))}" part{number}'
    rules = [f'root ::= " "? {whole} "{STOP}"?']
    for number, part in enumerate(parts):
        n_more = min(part.n_phrases, len(set(part.phrases))) - 1
        rules.append(f'part{number} ::= phrase{number} ("{COMMA} " phrase{number}){{{n_more},{n_more}}}')
        rules.append(f"phrase{number} ::= " + " | ".join(f'"{_escaped(p)}"' for p in part.phrases))
    return "\n".join(rules) + "\n"


def _between(part: PhrasePart) -> str:
    return f"{BREAK} {part.lead} "


def _escaped(phrase: str) -> str:
    return phrase.replace("\\", "\\\\").replace('"', '\\"')


def _phrases_by_part(text: str, parts: Sequence[PhrasePart]) -> list[list[str]]:
    """Split a text at its breaks and commas; the last part takes the rest."""
    rest = text.strip().rstrip("\N{REPLACEMENT CHARACTER}").removesuffix(STOP)
    found = []
    for part in parts[1:]:
        before, separator, after = rest.partition(_between(part))
        if not separator:
            break
        found.append(before)
        rest = after
    head, _, tail = rest.rpartition(BREAK)
    following = parts[len(found) + 1 :][:1]
    if head and any(part.lead.startswith(tail.strip()) for part in following):
        rest = head  # the token limit cut the lead off
    return [[p for p in (s.strip() for s in one.split(COMMA)) if p] for one in (*found, rest)]


class PhraseConstraint:
    """Knows which tokens may come next in one text; call `advance` with each token written.

    Args:
        parts: At least one; each with at least one phrase.
        encode: Text to token ids, without special tokens.
        ends: Tokens that end a text.
    """

    def __init__(
        self, parts: Sequence[PhrasePart], encode: Callable[[str], list[int]], ends: Iterable[int]
    ) -> None:
        def after_word(text: str) -> list[int]:  # alone, a text may have other tokens
            return encode(f"a{text}")[len(encode("a")) :]

        phrases = [{tuple(encode(f" {phrase}")): None for phrase in part.phrases} for part in parts]
        self._parts = [
            (list(some), min(part.n_phrases, len(some))) for some, part in zip(phrases, parts, strict=True)
        ]
        self._leads = [after_word(_between(part).rstrip()) for part in parts[1:]]
        self._comma, self._stop = after_word(COMMA)[-1], after_word(STOP)[-1]
        self._ends = set(ends)
        self._forced: list[int] = []  # the rest of a lead
        self._ended = False  # after the stop
        self._part = 0
        self._begin_part()

    def _begin_part(self) -> None:
        self._unused, self._n_left = list(self._parts[self._part][0]), self._parts[self._part][1]
        self._begin_phrase()

    def _begin_phrase(self) -> None:
        self._written: tuple[int, ...] = ()
        self._possible = self._unused  # phrases that begin with what is written

    def allowed(self) -> list[int]:
        """Return the tokens that may come next, in ascending order."""
        if self._forced:
            return self._forced[:1]
        if self._ended:
            return sorted(self._ends)
        n = len(self._written)
        found = {phrase[n] for phrase in self._possible if len(phrase) > n}
        if self._written in self._possible:
            found |= self._after_phrase()
        return sorted(found)

    def _after_phrase(self) -> set[int]:
        if self._n_left > 1:
            return {self._comma}
        if self._part < len(self._leads):
            return {self._leads[self._part][0]}
        return {self._stop, *self._ends}

    def advance(self, token: int) -> None:
        """Record a written token, which must be allowed and not end the text.

        Raises:
            ValueError: it is not allowed.
        """
        if token not in self.allowed():
            raise ValueError(f"Token {token} does not follow from the allowed phrases.")
        if self._forced:
            self._forced = self._forced[1:]
            return
        n = len(self._written)
        if longer := [phrase for phrase in self._possible if phrase[n : n + 1] == (token,)]:
            self._written, self._possible = (*self._written, token), longer
            return
        self._unused.remove(self._written)
        self._n_left -= 1
        if self._n_left:
            self._begin_phrase()
        elif self._part < len(self._leads):
            self._forced = self._leads[self._part][1:]
            self._part += 1
            self._begin_part()
        else:
            self._ended = True
