"""Record the profile measures of finished runs as results/profiles.json.

python benchmarks/record_profiles.py out/free out/grounded --machine "2-core x86 VM"
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from record import record
from results_page import command


def profiles(run: Path, machine: str) -> dict[str, Any]:
    """Return the entry of a run."""
    whole = record(run, machine, "")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    summary = config["summary"]
    return {
        "run": run.name,
        "dataset": config["data"]["name"],
        "method": summary["method"],
        "grounded": summary.get("grounded", False),
        "counts": summary.get("counts", False),
        "fields": summary.get("fields"),
        "command": command(whole),
        **{name: whole[name] for name in ("commit", "seed", "machine", "versions")},
        "measures": whole["metrics"]["profiles"]["measures"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--machine", required=True, help="for example '2-core x86 VM'")
    given = parser.parse_args()
    found = [profiles(run, given.machine) for run in given.runs]
    file = Path(__file__).parent / "results" / "profiles.json"
    content = {"name": "profiles", "results": found}
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(file)


if __name__ == "__main__":
    main()
