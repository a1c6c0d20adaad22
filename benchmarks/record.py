"""Record a finished run as one JSON file: metrics, command, commit, seed, machine and minutes by stage.

python benchmarks/record.py out/mind_recurrent --machine "2-core x86 VM"
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml


def record(run: Path, machine: str, note: str) -> dict[str, Any]:
    """Return the content of `benchmarks/results/NAME.json`.

    Command, commit and versions are from the first process that worked on the run; `later_sittings` lists
    the others, if there are any. For the folder
    that `trsr run --seeds` makes, `seed` is a list and the minutes are sums.
    """
    runs = _runs(run)
    sittings = [sitting for folder in runs for sitting in _sittings(folder)]
    first = sittings[0]
    configs = [yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) for folder in runs]
    seeds = [config["seed"] for config in configs]
    minutes = _minutes(runs)
    metrics = _read_json(run / "metrics.json")
    metrics.get("profiles", {}).pop("worst", None)  # users' words stay with their data
    kept = ("started", "command", "commit", "versions", "gpus")
    later = [{k: sitting[k] for k in kept if k in sitting} for sitting in sittings[1:]]
    return {
        "name": configs[0]["name"],
        "command": first["command"],
        "commit": first["commit"],
        "seed": seeds if len(seeds) > 1 else seeds[0],
        "machine": machine,
        "gpus": first.get("gpus", []),
        "versions": {"python": first["python"], **first["versions"]},
        "minutes": minutes | {"total": round(sum(minutes.values()), 1)},
        "note": note,
        "metrics": metrics,
        **({"later_sittings": later} if later else {}),
    }


def _runs(folder: Path) -> list[Path]:
    """Return the run folders of a result: the folder, or the folders of its seeds in order."""
    if (folder / "config.yaml").exists():
        return [folder]
    return sorted(folder.glob("seed*"), key=lambda path: int(path.name.removeprefix("seed")))


def _sittings(run: Path) -> list[dict[str, Any]]:
    found = _read_json(run / "env.json")
    sittings = found if isinstance(found, list) else [found]  # the first runs kept one sitting only
    return [sitting | {"command": _portable(sitting["command"])} for sitting in sittings]


def _portable(command: str) -> str:
    """Return the command as a reader would type it: a run that lies elsewhere here goes to `out/` there."""
    return re.sub(r"--out[ =]/(\S*/)?(?=\S)", "--out out/", command)


def _minutes(runs: list[Path]) -> dict[str, float]:
    """Return the minutes of each stage, summed over all runs."""
    seconds: Counter[str] = Counter()
    for run in runs:
        seconds.update({name: facts["seconds"] for name, facts in _read_json(run / "stages.json").items()})
    return {name: round(total / 60, 1) for name, total in seconds.items()}


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


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
