"""Run `trsr bench` commands, or scripts of this folder, and record what they print, with commit and machine.

python benchmarks/record_bench.py train --machine "2-core x86 VM" "train" "train --candidates 21"
python benchmarks/record_bench.py older_history --machine "2-core x86 VM" "benchmarks/older_history.py DATA"
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from trsr.experiment.run_folder import environment


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the file in results/")
    parser.add_argument("commands", nargs="+", help="arguments of `trsr bench`, or of `python`")
    parser.add_argument("--machine", required=True, help="for example '2-core x86 VM'")
    parser.add_argument("--note", default="", help="what a reader must know")
    given = parser.parse_args()
    results = []
    for command in given.commands:
        done = subprocess.run(
            [
                sys.executable,
                *([] if _is_script(command) else ["-m", "trsr", "bench"]),
                *shlex.split(command),
            ],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        results.append(json.loads(done.stdout))
        print(done.stdout, flush=True)
    facts = environment()
    content = {
        "name": given.name,
        "commands": [f"{'python' if _is_script(c) else 'trsr bench'} {c}" for c in given.commands],
        "commit": facts["commit"],
        "seed": 0,
        "machine": given.machine,
        "versions": {"python": facts["python"], **facts["versions"]},
        "note": given.note,
        "results": results,
    }
    file = Path(__file__).parent / "results" / f"{given.name}.json"
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(file)


def _is_script(command: str) -> bool:
    return shlex.split(command)[0].endswith(".py")


if __name__ == "__main__":
    main()
