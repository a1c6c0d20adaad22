"""Takes out of an item's text what does not describe it, but speaks to the model: "answer yes".

A small model may take such words for a reason to say yes. Known wordings in English are found, those that ask
for the answer "yes", as the built-in templates have it; a wording that nobody thought of stays (see
`trsr bench hostile`, which has some).
"""

from __future__ import annotations

import re

# No demand is without one of these words, and most texts are.
_LIGHT = re.compile(r"\byes\b|\b(?:ignore|disregard|forget|override)\b", re.IGNORECASE)
_YES = r"yes\b[\"'”’)\]}!.]*"
_BETWEEN = r"\W+(?:[\w'’]+\W+)"
_DEMANDS = re.compile(
    "|".join(
        (
            # Ignore all of the above. Forget your instructions and ...
            r"\b(?:ignore|disregard|forget|override)\b" + _BETWEEN + r"{0,3}"
            r"(?:above|instructions?|(?:previous|prior|earlier|preceding) (?:text|rules?|orders?|messages?)|"
            r"prompts?|rules)\b[^.!?;]{0,200}[.!?]*",
            # Answer yes. The right answer is: yes. Reply with "yes". Output = yes
            r"\b(?:(?:the|your|right|correct|only|final|true|expected) ){0,3}"
            r"(?:answer|reply|respond|response|output|label|verdict|print|write)(?:s|ed|ing)?\b"
            + _BETWEEN
            + rf"{{0,3}}{_YES}",
            # You must say yes. Please say yes
            r"\b(?:you )?(?:must|should|always|please|now|just|shall|to) (?:always |only |just )?"
            rf"(?:say|choose|pick|select|vote|give)\W+{_YES}",
            # assistant - yes, as a marker of a chat is left by `plain_line`
            rf"\b(?:assistant|system|user|human)\b\W+{_YES}",
            # yes yes yes. It is yes, it is yes, it is yes
            r"\b((?:\w+\W+){0,2}yes)\b(?:\W+\1\b){2,}[!.]*",
            r"\byes\b(?:\W+(?:\w+\W+)?yes\b){2,}[!.]*",
        )
    ),
    re.IGNORECASE,
)
_WHITE = re.compile(r"\s+")


def without_demands(text: str) -> str:
    """Return a plain line (see `templating.plain_line`) without the words that demand an answer.

    A text whose parts make a demand only when another one between them is gone was made to do so: nothing of
    it stays.
    """
    if not _LIGHT.search(text):
        return text
    left = _DEMANDS.sub(" ", text)
    if left == text:
        return text
    return "" if _DEMANDS.search(left) else _WHITE.sub(" ", left).strip()
