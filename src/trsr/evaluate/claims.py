"""Claims about language models as recommenders, held against what a run measured.

Each claim is one comparison of two rankers on one metric, named here and not chosen by its result, so its
p-value is corrected for the number of claims that the run can answer and not for all pairs of rankers.
Reads `metrics.json` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trsr.evaluate.rendering import NOTHING
from trsr.evaluate.standings import ALPHA, p_value, turned
from trsr.evaluate.statistics import holm

CLAIMS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("A written profile ranks better than no profile", "llm", ("llm_no_profile",)),
    ("A written profile ranks better than a counted one", "llm", ("llm_counted",)),
    ("Fine-tuning ranks better than the model as it came", "llm", ("llm_zero_shot",)),
    (
        "Recurrent summaries rank better than hierarchical ones",
        "llm",
        ("llm_hierarchical", "method=hierarchical"),
    ),
    ("Hierarchical summaries rank better than recurrent ones", "llm", ("llm_recurrent", "method=recurrent")),
    ("Recent items beside the profile rank better than the profile alone", "llm", ("n_recent=0",)),
    (
        "The number of recent items of the run ranks better than other numbers",
        "llm",
        ("n_recent=1", "n_recent=2", "n_recent=3", "n_recent=5", "n_recent=10"),
    ),
    (
        "The language model ranks better than the best sequential one",
        "llm",
        ("sasrec", "gru4rec", "bert4rec"),
    ),
    (
        "The language model ranks better than the candidates' words do, learned from the run's rows",
        "llm",
        ("bag_of_words",),
    ),
    ("The language model knows what all baselines together do not", "fusion_all", ("fusion_no_llm",)),
)
"""What is claimed, of which ranker, and against which: of several the one with the best mean. Those on ways
to summarise and on recent items look for a variant of that name, or a sweep's over that setting."""
NOTE = (
    "What the paper claims or asks (LLM-TRSR, WWW 2024); counted profiles, words alone and all baselines"
    " together are our questions. Each is one comparison that no result has chosen, so p is corrected for"
    " the claims that a run can answer (Holm), not for all pairs of rankers; the best sequential model"
    " and the best other number of recent items are those of the run."
    f" Below {ALPHA} a claim holds, or its opposite. Not told apart: more users may tell."
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run says of a claim.

    Attributes:
        claim: What is claimed, as a sentence.
        ranker: Of which ranker.
        other: The ranker it is held against.
        metric: On which metric.
        difference: Mean of `ranker` minus mean of `other`, None if unknown; `low` and `high` likewise.
        low: Lower end of the difference's 95 % interval.
        high: Upper end.
        p: Corrected for the claims of this run, None if unknown.
    """

    claim: str
    ranker: str
    other: str
    metric: str
    difference: float | None
    low: float | None
    high: float | None
    p: float | None

    @property
    def words(self) -> str:
        """Say whether the claim holds."""
        if self.is_open or self.difference is None:
            return "not told apart"
        return "holds" if self.difference > 0 else "the opposite holds"

    @property
    def is_open(self) -> bool:
        """Whether the run cannot tell."""
        return self.p is None or self.difference is None or self.p >= ALPHA

    @property
    def amount(self) -> str:
        """Write the difference with its interval."""
        if self.difference is None:
            return NOTHING
        ends = "" if self.low is None or self.high is None else f" [{self.low:+.3f}, {self.high:+.3f}]"
        return f"{self.difference:+.3f}{ends}"


def verdicts(metrics: Mapping[str, Any]) -> list[Verdict]:
    """Return what a run says of each claim that it can answer, from the content of `metrics.json`.

    The metric is the first of the compared ones that looks at the order of the best candidates (`mrr@10` by
    default), else the first.
    """
    compared = list(dict.fromkeys(pair["metric"] for pair in metrics["comparisons"]))
    metric = [*(name for name in compared if name.startswith(("mrr", "ndcg"))), *compared, ""][0]
    pairs = {(p["a"], p["b"]): p for p in metrics["comparisons"] if p["metric"] == metric}
    found = []
    for claim, ranker, others in CLAIMS:
        known = [o for o in others if (ranker, o) in pairs or (o, ranker) in pairs]
        if known:
            best = max(known, key=lambda name: metrics["rankers"][name][metric]["value"] or 0.0)
            found.append(_verdict(claim, ranker, best, pairs))
    return _corrected(found)


def claim_views(metrics: Mapping[str, Any]) -> list[dict[str, str | bool]]:
    """Return what the templates show: an entry a claim."""
    return [
        {
            "claim": one.claim,
            "pair": f"{one.ranker} - {one.other}",
            "metric": one.metric,
            "amount": one.amount,
            "p": p_value(one.p),
            "verdict": one.words,
            "open": one.is_open,
        }
        for one in verdicts(metrics)
    ]


def _verdict(
    claim: str, ranker: str, other: str, pairs: Mapping[tuple[str, str], Mapping[str, Any]]
) -> Verdict:
    pair = pairs[ranker, other] if (ranker, other) in pairs else turned(pairs[other, ranker])
    low, high = pair["ci95"]
    return Verdict(claim, ranker, other, pair["metric"], pair["difference"], low, high, pair["p"])


def _corrected(found: list[Verdict]) -> list[Verdict]:
    """Return the same with Holm's correction over all of them that have a p-value."""
    of = [one for one in found if one.p is not None]
    p = dict(zip((one.claim for one in of), holm(np.array([one.p for one in of])).tolist(), strict=True))
    return [replace(one, p=p.get(one.claim)) for one in found]
