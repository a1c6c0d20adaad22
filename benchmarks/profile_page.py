"""Write docs/profiles.md: what there is to win with a profile, and what the words of profiles predict.

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
        "## What there is to win",
        "A profile stands for the items that no longer fit the prompt. Boosted trees that see the items\n"
        "themselves, as words, topics and categories, are asked with the last three items alone and with\n"
        "the older ones beside them: the difference is what a profile that loses nothing could add for a\n"
        "ranker like them, without and beside the popularity of the candidate.",
        gains(older["results"]),
        commands(older["commands"]),
        f"{older['machine']}, commit `{older['commit']}`, seed {older['seed']}.",
        "## What profiles say",
        "Measures without a judge (`docs/profile_quality.md` says what each is): `auc` ranks the\n"
        "candidates by the profile's words alone, `auc_gain` takes off what other users' profiles give.",
        profile_table(measured["results"]),
        "Each command is that of the recipe at its commit; the recipes have changed since. Free texts were\n"
        "written with the templates of their commit and at most 40 new tokens, grounded ones with later\n"
        "templates and at most 64: part of a difference can be length.",
        commands([one["command"] for one in measured["results"]]),
        made_at(measured["results"]),
    ]
    return "\n\n".join(parts) + "\n"


def gains(results: Sequence[Record]) -> str:
    """Return what the older items add, a row for each dataset and kind of negatives."""
    rows = []
    for one in results:
        protocol = one["protocol"]
        what = [one["dataset"], protocol["negatives"]["kind"], f"{one['n_test']}", f"{one['mean_history']:g}"]
        for beside, added in one["older_items_add_to"].items():
            rows.append([*what, beside, *(signed(added[metric]) for metric in GAINS)])
    head = ["data", "negatives", "test users", "items before the target", "added to", *GAINS]
    return table(head, rows, len(GAINS))


def profile_table(results: Sequence[Record]) -> str:
    """Return the measures, a row for each run."""
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
    """Return commands as a block; long ones are not broken."""
    return "```sh\n" + "\n".join(shlex.join(shlex.split(line)) for line in lines) + "\n```"


def made_at(results: Sequence[Record]) -> str:
    """Say where the runs were made."""
    places = dict.fromkeys(f"{r['machine']}, commit `{r['commit']}`, seed {r['seed']}" for r in results)
    return "; ".join(places) + "."


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
