"""Render the calls of a plan into prompts, and read the answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from trsr.llm.base import Generation, GenerationParams, Message, PhrasePart, Prompt
from trsr.llm.chat_format import answer_in, answer_or_error
from trsr.llm.constrained import phrases_outside_grammar, trim_incomplete
from trsr.summarize.plan import Call
from trsr.templating import Template, load_template, sanitize_line

TEMPLATES = Path(__file__).parent / "templates"
SECTIONS = ("system", "first", "update", "merge", "prefill")
VARIABLES = ("items", "previous", "summaries")
_NOTHING = {"items": [], "previous": "", "summaries": []}
STOP = "stop"
"""An optional section: the text that ends a summary instead of the line's end; if empty, no text does."""

_FIELD_NAME = re.compile(r"(?:^|(?<=; ))[^;:]{1,40}: ")
MAX_WORDS = 4
_PIECE = re.compile(r"[^\W_]+(?:(?:['’./-]|_+)[^\W_]+)*|[^\w\s]+|_+")  # `football_nfl` is one word
_FUNCTION = """
    a about after again against all also am an and another any anyone are aren't around as at away
    be because been before behind being below between both but by can can't could did didn't do does
    doesn't doing don't done down during each either else ever every everyone everything few for
    from get gets getting go goes going got had has have having he he's her here here's hers him his
    how i i'm if in including inside into is isn't it it's its itself just know let like made make
    makes making many may me might more most much must my near need never new no nor not now of off
    on once one only onto or other our out outside over own per plus say says she should since so
    some someone something still such take takes than that that's the their them then there there's
    these they this those though through to together too toward under until up upon us use used
    using very via was wasn't we were what what's when where which while who who's whose why will
    with within without won't would you your
"""
_FUNCTION_WORDS = frozenset(_FUNCTION.split())


def phrases_of(text: str) -> tuple[str, ...]:
    """Return the phrases of a text in order, each once (letter case aside), of at most `MAX_WORDS` words.

    Function words and punctuation separate phrases; longer runs are cut into pieces of about equal length.
    Pieces of a single letter or of digits alone are left out.
    """
    runs: list[list[str]] = [[]]
    for piece in _PIECE.findall(text):
        if piece[0].isalnum() and piece.lower() not in _FUNCTION_WORDS:
            runs[-1].append(piece)
        elif runs[-1]:
            runs.append([])
    found: dict[str, str] = {}
    for run in runs:
        n_pieces = -(-len(run) // MAX_WORDS)
        for number in range(n_pieces):
            words = run[number * len(run) // n_pieces : (number + 1) * len(run) // n_pieces]
            phrase = " ".join(words)
            if len(phrase) > 1 and not phrase.replace(" ", "").isdigit():
                found.setdefault(phrase.casefold(), phrase)
    return tuple(found.values())


def load_summary_template(name: str, domain: str) -> Template:
    """Load the template called `name`; `auto` is the domain's own, or `generic`.

    Raises:
        TemplateError: it does not exist or is wrong.
    """
    return load_template(name, domain, TEMPLATES, sections=SECTIONS, variables=VARIABLES)


def render_call(
    template: Template,
    call: Call,
    item_texts: Sequence[str],
    inputs: Sequence[str],
    *,
    n_phrases: int | None = None,
) -> Prompt:
    """Render one call.

    Args:
        template: The summary template. A kind's worked example (`first_example` with `first_answer`, ...)
            becomes an earlier turn of the chat where the template has one.
        call: The call.
        item_texts: The texts of the block's items, oldest first; unused by a merge.
        inputs: The texts of the calls it reads, oldest first.
        n_phrases: Given, the answer consists of phrases of the items and texts it reads, in parts, the newest
            first; see `SummaryConfig.n_phrases`. The template's section `before` separates the parts.

    Raises:
        TemplateError: `n_phrases` is given, and the template has no such section.
    """
    prefill = template.render("prefill", **_NOTHING)
    # Without the words every summary begins with: a small model that sees them again copies what follows.
    summaries = [sanitize_line(text).removeprefix(prefill).strip() for text in inputs]
    items = [_plain_item(text) for text in item_texts]
    previous = summaries[0] if call.kind == "update" else ""
    values = {"items": items, "previous": previous, "summaries": summaries}
    messages = [Message("system", template.render("system", **values))]
    if f"{call.kind}_example" in template.sections:
        answer = template.render(f"{call.kind}_answer", **values)
        messages += [
            Message("user", template.render(f"{call.kind}_example", **values)),
            Message("assistant", f"{prefill} {answer}".strip()),
        ]
    messages.append(Message("user", template.render(call.kind, **values)))
    parts = None
    if n_phrases is not None:
        lead = template.render("before", **values)
        known = [text.replace(f"; {lead} ", "; ") for text in summaries]
        parts = _parts(call, items, known, n_phrases, lead) or None
    return Prompt(tuple(messages), prefill, parts)


_plain_item = lru_cache(maxsize=32_768)(sanitize_line)  # popular items are in very many prompts


def _parts(
    call: Call, items: Sequence[str], known: Sequence[str], n_phrases: int, lead: str
) -> tuple[PhrasePart, ...]:
    """Return the parts of a grounded answer: phrases of the block, then of the earlier summaries."""
    share = n_phrases // 3
    if call.kind == "merge":
        sources = [(text, -(-n_phrases // len(known))) for text in reversed(known)]
    else:
        block = "; ".join(_FIELD_NAME.sub("; ", item) for item in items)
        sources = [(block, share), *((text, n_phrases - share) for text in known)]
    found = [(phrases, n) for text, n in sources if (phrases := phrases_of(text))]
    return tuple(PhrasePart(phrases, n, lead if number else "") for number, (phrases, n) in enumerate(found))


def summary_text(template: Template, generated: str) -> str:
    """Return the summary: the prefill and the generated text, on one line."""
    return sanitize_line(f"{template.render('prefill', **_NOTHING)} {generated}")


def stop_texts(template: Template) -> tuple[str, ...]:
    """Return the texts that end a summary: the line's end, unless the template has a section `stop`."""
    stop = template.render(STOP) if STOP in template.sections else "\n"
    return (stop,) if stop else ()


def summary_or_error(
    template: Template, prompt: Prompt, result: Generation, params: GenerationParams
) -> tuple[str | None, str | None]:
    """Return (summary, None), or (None, the reason why the engine's text is not one)."""
    written, error, parts = result.text, result.error, prompt.parts
    if error is None and parts is None:
        whole = result.n_generated_tokens < params.max_new_tokens
        written, error = answer_or_error(written, params.stop, prompt.prefill, whole=whole)
    elif error is None and parts is not None:
        written = trim_incomplete(written, parts)
        if strange := phrases_outside_grammar(written, parts):
            error = f"the model wrote {strange[0]!r}, which is not among the phrases it was given"
    if error is None and not sanitize_line(written):
        error = "the model wrote nothing"
    return (summary_text(template, written), None) if error is None else (None, error)


def stored_error(text: str, prompt: Prompt) -> str | None:
    """Return why a stored text is not a summary: earlier versions kept thoughts and introductions."""
    if prompt.parts is not None or answer_in(text.removeprefix(prompt.prefill), whole=False):
        return None
    return (
        f"the store holds {text[:60]!r} as the text of a call, which is no summary but the beginning of a "
        "model's thoughts or an introduction; remove that model's texts with `trsr store gc --model`"
    )


def frame_text(template: Template) -> str:
    """Return the template's own text in every call, without its worked examples."""
    return "\n".join(template.own_text(section) for section in SECTIONS)


def example_text(template: Template) -> str:
    """Return the template's worked examples: the sections that are not `SECTIONS`."""
    return "\n".join(template.own_text(s) for s in template.sections if s not in (*SECTIONS, STOP))
