"""Record a finished run as one JSON file: metrics, command, commit, seed, machine and minutes by stage.

python benchmarks/record.py out/mind_recurrent --machine "2-core x86 VM"
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml


def record(run: Path, machine: str, note: str) -> dict[str, Any]:
    """Return what stands in `benchmarks/results/NAME.json`.

    Command, commit and versions are those of the first process that worked on the run; `later_sittings`
    stands there only where others went on with it, so that a reader sees all that took part.
    """
    sittings = json.loads((run / "env.json").read_text(encoding="utf-8"))
    if isinstance(sittings, dict):  # the first runs kept one sitting only
        sittings = [sittings]
    first = sittings[0]
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    stages = json.loads((run / "stages.json").read_text(encoding="utf-8"))
    minutes = {name: round(facts["seconds"] / 60, 1) for name, facts in stages.items()}
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    metrics.get("profiles", {}).pop("worst", None)  # users' words stay with their data
    later = [{k: s[k] for k in ("started", "command", "commit", "versions")} for s in sittings[1:]]
    return {
        "name": config["name"],
        "command": first["command"],
        "commit": first["commit"],
        "seed": config["seed"],
        "machine": machine,
        "versions": {"python": first["python"], **first["versions"]},
        "minutes": minutes | {"total": round(sum(minutes.values()), 1)},
        "note": note,
        "metrics": metrics,
        **({"later_sittings": later} if later else {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--machine", required=True, help="for example '2-core x86 VM'")
    parser.add_argument("--note", default="", help="what a reader must know about the run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    content = record(given.run, given.machine, given.note)
    file = given.out / f"{content['name']}.json"
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(file)


if __name__ == "__main__":
    main()
