"""What the report shows of `profiles` in `metrics.json`: a table, and the profiles beyond a limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trsr.evaluate.rendering import count, number

_MEANING = {
    "grounding": "share of a profile's content words that are in the user's items",
    "name_grounding": "the same for its names (capitalised words not at a sentence's start)",
    "copied": "share of its content words that come from the template's worked examples and are in no item",
    "coverage": "share of the user's categories, by how often they occur, that it mentions",
    "words": "length in words",
    "repetition": "share of its word 3-grams that it has said before",
    "change": "share of a summary's content words that the one of the block before did not have",
    "auc": "BM25 of the candidates against the profile alone; chance {chance}",
    "mrr": "BM25 of the candidates against the profile alone; chance {chance}",
    "auc_gain": "that auc minus the one of strangers' profiles on the same candidates; 0 if a profile says"
    " nothing of its user",
}
NOTE = (
    "Counted from words, without a judge: a word that is in the items can still be said wrongly, and one that"
    " is not can be a fair paraphrase."
)


def profile_view(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the table, the sentence about limits and the listed profiles; None without measures."""
    found = metrics.get("profiles")
    if not found:
        return None
    chance = metrics["protocol"]["chance"]
    rows = [
        {
            "name": name,
            "value": number(entry["value"], 1 if name == "words" else 3),
            "interval": _interval(entry["ci95"], 1 if name == "words" else 3),
            "examples": count(entry["examples"]),
            "meaning": _MEANING[name].format(chance=number(chance.get(name))),
        }
        for name, entry in found["measures"].items()
    ]
    return {
        "method": found["method"],
        "rows": rows,
        "limits": _limits(found),
        "note": NOTE,
        "worst": [
            {
                "user_id": one["user_id"],
                "example_id": one["example_id"],
                "measure": one["measure"],
                "value": number(one["value"]),
                "ungrounded": ", ".join(one["ungrounded"]),
                "text": one["text"],
            }
            for one in found["worst"]
        ],
    }


def _interval(ends: list[float | None], digits: int) -> str:
    low, high = ends
    return "" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"


def _limits(found: Mapping[str, Any]) -> str:
    """Say how many profiles lie beyond each limit."""
    sides = {"at_least": "below", "at_most": "above"}
    parts = [
        f"{found['beyond'][name]} with {name} {word} {limit:g}"
        for side, word in sides.items()
        for name, limit in found["limits"][side].items()
    ]
    text = f"Of {found['examples']:,} profiles: {', '.join(parts)}"
    return f"{text}, {found['empty']} without text." if found["empty"] else f"{text}."
