"""Write docs/profiles.md: how much a profile could add, and how well the words of profiles predict.

python benchmarks/profile_page.py
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from results_page import cell, table

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "profiles.md"
MEASURES = ("grounding", "name_grounding", "copied", "coverage", "words", "change", "auc", "auc_gain")
GAINS = ("recall@3", "mrr@10", "auc")

Record = Mapping[str, Any]


def read(name: str) -> Record:
    """Return a recorded file."""
    found: Record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def page() -> str:
    """Return docs/profiles.md."""
    older, measured = read("older_history"), read("profiles")
    parts = [
        "# Profiles, measured",
        "Made by `python benchmarks/profile_page.py` from `benchmarks/results/older_history.json` and\n"
        "`profiles.json`. In brackets: 95 % interval over users.",
        "## How much a profile could add",
        "A profile replaces the older items, which do not fit the prompt. Boosted trees read the items\n"
        "themselves, as words, topics and categories: first the last three items alone, then also the\n"
        "older ones. The difference is the gain of a lossless profile for such a ranker, without and with\n"
        "the popularity of the candidate.",
        gains(older["results"]),
        commands(older["commands"]),
        f"{older['machine']}, commit `{older['commit']}`, seed {older['seed']}.",
        "## Measures of profiles",
        "Measures without a judge, defined in `docs/profile_quality.md`: `auc` ranks the candidates by the\n"
        "profile's words alone; `auc_gain` is that minus the auc of other users' profiles.",
        profile_table(measured["results"]),
        "Each command used the recipe at its commit; the recipes have changed since. Free texts were\n"
        "written with the templates of their commit and at most 40 new tokens, grounded ones with later\n"
        "templates and at most 64, so part of a difference can be due to length.",
        commands([one["command"] for one in measured["results"]]),
        made_at(measured["results"]),
    ]
    return "\n\n".join(parts) + "\n"


def gains(results: Sequence[Record]) -> str:
    """Return the gain by the older items, a row per dataset and kind of negatives."""
    rows = []
    for one in results:
        protocol = one["protocol"]
        what = [one["dataset"], protocol["negatives"]["kind"], f"{one['n_test']}", f"{one['mean_history']:g}"]
        for beside, added in one["older_items_add_to"].items():
            rows.append([*what, beside, *(signed(added[metric]) for metric in GAINS)])
    head = ["data", "negatives", "test users", "items before the target", "added to", *GAINS]
    return table(head, rows, len(GAINS))


def profile_table(results: Sequence[Record]) -> str:
    """Return the measures, a row per run."""
    rows = []
    for one in results:
        kind = f"{one['method']}{', grounded' * one['grounded']}{', counts behind' * one['counts']}"
        fields = ", ".join(one["fields"] or ["all"])
        rows.append([one["dataset"], kind, fields, *(cell(one["measures"].get(m)) for m in MEASURES)])
    return table(["data", "profile", "fields read", *MEASURES], rows, len(MEASURES))


def signed(entry: Mapping[str, Any]) -> str:
    """Write a difference with its interval."""
    low, high = entry["ci95"]
    return f"{entry['value']:+.3f} [{low:+.3f}, {high:+.3f}]"


def commands(lines: Sequence[str]) -> str:
    """Return commands as a block, one per line."""
    return "```sh\n" + "\n".join(shlex.join(shlex.split(line)) for line in lines) + "\n```"


def made_at(results: Sequence[Record]) -> str:
    """Return machine, commit and seed of the runs."""
    places = dict.fromkeys(f"{r['machine']}, commit `{r['commit']}`, seed {r['seed']}" for r in results)
    return "; ".join(places) + "."


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
