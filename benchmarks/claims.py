"""The paper's claims (LLM-TRSR, WWW 2024) and our own, with the verdict of a run's `metrics.json` on each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trsr.evaluation.statistics import ALPHA, holm, pairs_on

CLAIMS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("A written profile ranks better than no profile", "llm", ("llm_no_profile",)),
    ("A written profile ranks better than a counted one", "llm", ("llm_counted",)),
    ("The fine-tuned model ranks better than the zero-shot model", "llm", ("llm_zero_shot",)),
    (
        "Recurrent summaries rank better than hierarchical ones",
        "llm",
        ("llm_hierarchical", "method=hierarchical"),
    ),
    ("Hierarchical summaries rank better than recurrent ones", "llm", ("llm_recurrent", "method=recurrent")),
    ("Recent items with the profile rank better than the profile alone", "llm", ("n_recent=0",)),
    (
        "The number of recent items of the run ranks better than other numbers",
        "llm",
        ("n_recent=1", "n_recent=2", "n_recent=3", "n_recent=5", "n_recent=10"),
    ),
    (
        "The language model ranks better than the best sequential model",
        "llm",
        ("sasrec", "gru4rec", "bert4rec"),
    ),
    (
        "The language model ranks better than a bag of words trained on the same examples",
        "llm",
        ("bag_of_words",),
    ),
    ("The language model adds to all baselines combined", "fusion_all", ("fusion_no_llm",)),
)
"""A claim, its ranker, and the rankers to compare with; of several, the one with the best mean."""
NOTE = (
    "The claims and questions of the paper (LLM-TRSR, WWW 2024); counted profiles, the bag of words and all"
    " baselines combined are our own questions. Each claim is one comparison, chosen before the results. So p"
    " is corrected for the claims that a run can answer (Holm), not for all pairs of rankers. The best"
    " sequential model and the best other number of recent items are chosen per run."
    f" Below {ALPHA} a claim holds, or its opposite. No significant difference: more users may show one."
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict of a run on a claim: `difference` is the mean of `ranker` minus the mean of `other`.

    `p` is corrected for the claims of this run. None where a number is unknown.
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
    def is_open(self) -> bool:
        """Whether the difference is not significant."""
        return self.p is None or self.difference is None or self.p >= ALPHA

    @property
    def words(self) -> str:
        """Whether the claim holds, in words."""
        if self.is_open or self.difference is None:
            return "no significant difference"
        return "holds" if self.difference > 0 else "the opposite holds"

    @property
    def amount(self) -> str:
        """The difference with its interval."""
        if self.difference is None:
            return "–"
        ends = "" if self.low is None or self.high is None else f" [{self.low:+.3f}, {self.high:+.3f}]"
        return f"{self.difference:+.3f}{ends}"


def verdicts(metrics: Mapping[str, Any]) -> list[Verdict]:
    """Return a verdict for each claim that a run can answer.

    The metric is the first compared one of the families mrr and ndcg, else the first compared one.
    """
    compared = list(dict.fromkeys(pair["metric"] for pair in metrics["comparisons"]))
    metric = [*(name for name in compared if name.startswith(("mrr", "ndcg"))), *compared, ""][0]
    pairs, found = pairs_on(metrics, metric), []
    for claim, ranker, others in CLAIMS:
        known = [other for other in others if (ranker, other) in pairs]
        if known:
            best = max(known, key=lambda name: metrics["rankers"][name][metric]["value"] or 0.0)
            pair = pairs[ranker, best]
            found.append(Verdict(claim, ranker, best, metric, pair["difference"], *pair["ci95"], pair["p"]))
    corrected = iter(holm([one.p for one in found if one.p is not None]).tolist())
    return [one if one.p is None else replace(one, p=next(corrected)) for one in found]
