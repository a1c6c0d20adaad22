"""Write docs/results.md, and the table of runs in README.md, from the recorded runs in benchmarks/results.

python benchmarks/results_page.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import claims
from claims import CLAIMS, Verdict, verdicts

from trsr.evaluation.report import sweeps
from trsr.evaluation.statistics import NOTE, flipped, format_p, leaderboards
from trsr.experiment.config import FUSIONS

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGE, README = ROOT / "docs" / "results.md", ROOT / "README.md"
BEGIN = "<!-- made by benchmarks/results_page.py: recorded runs -->"
END = "<!-- end of recorded runs -->"
OPEN_ONES = "A difference without a verdict is not significant; p is corrected within its run."
SHOWN = ("recall@3", "recall@5", "mrr@10", "ndcg@5", "ndcg@10", "mrr", "auc", "logloss", "ece")
MAIN = ("recall@3", "mrr@10")
OWN = ("llm", "llm_zero_shot")

Record = Mapping[str, Any]


def read_runs(folder: Path = RESULTS) -> list[Record]:
    """Return the recorded runs in order of their names; timings of `trsr bench` are not among them."""
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    return [record for record in records if "metrics" in record]


def page(runs: Sequence[Record]) -> str:
    """Return docs/results.md."""
    parts = [
        "# Results of recorded runs",
        "Made by `python benchmarks/results_page.py` from the files in `benchmarks/results/`, which\n"
        "`python benchmarks/record.py RUN` writes.",
        "All rankers of a run rank the same candidates of the same examples. In brackets: 95 %\n"
        "interval over users. Values of runs that differ in protocol or users cannot be compared.",
        NOTE,
        "## Which claims hold",
        claims.NOTE,
        claims_table(runs),
        *(run_section(record) for record in runs),
    ]
    return "\n\n".join(parts) + "\n"


def claims_table(runs: Sequence[Record]) -> str:
    """Return the verdict of each run on each claim."""
    found = [(one, record["name"]) for record in runs for one in verdicts(record["metrics"])]
    order = {claim: place for place, (claim, *_) in enumerate(CLAIMS)}
    rows = [
        [one.claim, name, f"{one.ranker} - {one.other}", one.metric, one.amount, format_p(one.p), one.words]
        for one, name in sorted(found, key=lambda row: (order[row[0].claim], row[1]))
    ]
    return table(["claim", "run", "rankers", "metric", "difference", "corrected p", "verdict"], rows)


def run_section(record: Record) -> str:
    """Return the section of one run: rankers, protocol, comparisons, command."""
    metrics = record["metrics"]
    parts = [
        f"## {record['name']}",
        record["note"],
        ranker_table(metrics),
        facts_table(record),
        *comparison_tables(metrics),
        *slice_sentences(metrics),
        *(f"*{sweep['setting']}*: {sweep['sentence']}" for sweep in sweeps(metrics)),
        f"```sh\n{command(record)}\n```",
    ]
    return "\n\n".join(part for part in parts if part)


def ranker_table(metrics: Mapping[str, Any]) -> str:
    """Return the rankers, best first on `mrr@10`, and chance."""
    rankers, chance = metrics["rankers"], metrics["protocol"]["chance"]
    names = [name for name in SHOWN if any(name in values for values in rankers.values())]
    rows = [[name, *(cell(rankers[name].get(metric)) for metric in names)] for name in by_value(rankers)]
    rows.append(["*chance*", *(number(chance.get(metric)) for metric in names)])
    return table(["ranker", *names], rows, len(names))


def facts_table(record: Record) -> str:
    """Return protocol, counts, commit and machine of the run."""
    metrics = record["metrics"]
    protocol, counts = metrics["protocol"], metrics["counts"]
    leakage = metrics.get("leakage")
    minutes = ", ".join(f"{name} {value:g}" for name, value in record["minutes"].items() if value)
    facts = {
        "protocol": "; ".join(str(protocol[k]) for k in ("protocol", "split", "target") if k in protocol),
        "negatives": protocol.get("negatives", "–"),
        "n": f"{counts['users']:,} test users, {counts['examples']:,} examples,"
        f" {counts['candidates']:,} candidates; {protocol.get('n_train', '–')} training and"
        f" {protocol.get('n_valid', '–')} validation examples",
        "tie rate": percent(counts["tie_rate"]),
        "cut rate": percent(counts["cut_prompts"] / counts["candidates"]),
        "missing-text rate": missing_text(protocol.get("counts", {})),
        "leakage check": "none recorded" if leakage is None else f"{leakage['found']} found",
        "seed": protocol.get("seeds", record["seed"]),
        "commit": f"`{record['commit']}`",
        "machine": record["machine"],
        "minutes": minutes,
    }
    return table(["", ""], [[name, str(value)] for name, value in facts.items()])


def comparison_tables(metrics: Mapping[str, Any]) -> list[str]:
    """Return, for each compared metric, the best ranker and the run's own model against all others."""
    own = next((name for name in OWN if name in metrics["rankers"]), None)
    parts = []
    for board in leaderboards(metrics):
        focus = list(dict.fromkeys([board.best, *([own] if own else [])]))
        pairs = [pair for pair in metrics["comparisons"] if pair["metric"] == board.metric]
        rows = []
        for name in focus:
            against = [against_other(pair, name) for pair in pairs if name in (pair["a"], pair["b"])]
            rows += sorted(against, key=lambda row: row[1])
        head = ["ranker", "against", board.metric, "corrected p", "effect size"]
        parts += [board.sentence, table(head, rows, 3)]
    return parts


def against_other(pair: Mapping[str, Any], name: str) -> list[str]:
    """Return a pair as a row, from the side of `name`."""
    seen = pair if pair["a"] == name else flipped(pair)
    low, high = seen["ci95"]
    ends = "" if low is None or high is None else f" [{low:+.3f}, {high:+.3f}]"
    difference = "–" if seen["difference"] is None else f"{seen['difference']:+.3f}{ends}"
    effect = "–" if seen["effect_size"] is None else f"{seen['effect_size']:+.2f}"
    return [name, pair["b"] if seen is pair else pair["a"], difference, format_p(seen["p_holm"]), effect]


def slice_sentences(metrics: Mapping[str, Any]) -> list[str]:
    """Return the gain by the profile on each slice, on the second main metric."""
    found = []
    for way, parts in metrics.get("slices", {}).items():
        shown = [
            f"{part['name']} ({part['examples']}) {against_other(pair, pair['a'])[2]},"
            f" p {format_p(pair['p_holm'])}"
            for part in parts
            for pair in part.get("comparisons", ())
            if pair["metric"] == MAIN[1]
        ]
        if shown:
            pair = parts[0]["comparisons"][0]
            found.append(
                f"{pair['a']} - {pair['b']} on {MAIN[1]} by {way.replace('_', ' ')}: {'; '.join(shown)}."
            )
    return found


def readme_rows(runs: Sequence[Record]) -> str:
    """Return the table of runs in the README: the run's own model, the best of the others, zero-shot."""
    rows = []
    for record in runs:
        metrics = record["metrics"]
        protocol, rankers = metrics["protocol"], metrics["rankers"]
        chance = ", ".join(f"{metric} {number(protocol['chance'][metric])}" for metric in MAIN)
        own = next((name for name in OWN if name in rankers), None)
        # Only language models give probabilities.
        others = [n for n in by_value(rankers) if "logloss" not in rankers[n] and n not in FUSIONS]
        named = [name for name in (own, *FUSIONS, *others[:2], "llm_zero_shot") if name in rankers]
        values = [
            f"{name} " + ", ".join(cell(rankers[name].get(metric)) for metric in MAIN)
            for name in dict.fromkeys(named)
            if name is not None
        ]
        what = f"{record['name']}: {metrics['counts']['users']} test users, {protocol.get('negatives', '')}"
        rows.append([f"{what} (chance {chance})", "; ".join(values), f"`{command(record)}`"])
    return table(["run", f"{' and '.join(MAIN)}", "command"], rows)


def readme_claims(runs: Sequence[Record]) -> str:
    """Return the verdicts: a row per claim, a column per run."""
    found = [{one.claim: one for one in verdicts(record["metrics"])} for record in runs]
    rows = [
        [claim, *(claim_cell(run.get(claim)) for run in found)]
        for claim, *_ in CLAIMS
        if any(claim in run for run in found)
    ]
    return table([f"claim, on {MAIN[1]}", *(record["name"] for record in runs)], rows)


def claim_cell(one: Verdict | None) -> str:
    """Write the difference and its corrected p, with a verdict if it is significant."""
    if one is None:
        return "–"
    verdict = "" if one.is_open else f"**{one.words}**: "
    return f"{verdict}{one.amount}, p {format_p(one.p)}"


def readme(text: str, runs: Sequence[Record]) -> str:
    """Return the README with its tables of runs replaced; only runs of unchanged recipes are shown."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    recipes = [record for record in runs if "--set" not in command(record)]
    parts = [BEGIN, readme_rows(recipes), readme_claims(recipes), OPEN_ONES, END]
    return before + "\n\n".join(parts) + after


def command(record: Record) -> str:
    """Return the command that ran all stages, without `--set` if possible; the first may be a trial."""
    sittings = [record["command"], *(one["command"] for one in record.get("later_sittings", ()))]
    runs = [one for one in sittings if one.startswith("trsr run ")]
    return next((one for one in runs if "--set" not in one), [*runs, sittings[0]][0])


def by_value(rankers: Mapping[str, Any]) -> list[str]:
    """Return the names of the rankers, best first."""
    return sorted(rankers, key=lambda name: (-(rankers[name][MAIN[1]]["value"] or 0.0), name))


def missing_text(counts: Mapping[str, Any]) -> str:
    """Return the rates of missing texts, by kind."""
    prefix = "missing_text_rate_"
    rates = [
        f"{name.removeprefix(prefix)} {percent(rate)}"
        for name, rate in counts.items()
        if name.startswith(prefix)
    ]
    return ", ".join(rates) or "–"


def cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "–"
    low, high = entry["ci95"]
    return number(entry["value"]) + ("" if low is None else f" [{number(low, 2)}, {number(high, 2)}]")


def number(value: float | None, digits: int = 3) -> str:
    """Write a number without the leading zero, as is usual for metrics."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return text.removeprefix("0") if text.startswith("0.") else text


def percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.2f} %"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], n_numbers: int = 0) -> str:
    """Return a Markdown table whose last columns are numbers."""
    marks = ["---"] * (len(head) - n_numbers) + ["---:"] * n_numbers
    lines = [head, marks, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    runs = read_runs()
    PAGE.write_text(page(runs), encoding="utf-8")
    README.write_text(readme(README.read_text(encoding="utf-8"), runs), encoding="utf-8")


if __name__ == "__main__":
    main()
