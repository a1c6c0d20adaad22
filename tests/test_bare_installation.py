"""What `pip install trsr` alone can do: import, validate and plan, with no model library installed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

# Hides every distribution that the core does not depend on, as if it were not installed.
HIDE = """
import importlib.machinery, json, sys
hidden = set(json.loads(sys.argv.pop(1)))
finder, find = importlib.machinery.PathFinder, importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find(name, path, target)
finder.find_spec = find_spec
"""
RUN = HIDE + "from trsr.cli import main\nsys.argv[0] = 'trsr'\nmain()\n"
CONFIG = """
name: bare
data: {{kind: folder, path: {data}}}
protocol: {{kind: sampled, min_history: 2, max_history: 9, n_train: 4, n_valid: 1, n_test: 3,
           negatives: {{kind: uniform, n_train: 2, n_test: 3}}}}
"""


def core() -> set[str]:
    """Return the distributions that come with `pip install trsr`, in the form of their normal names."""
    found, waiting = set(), ["trsr"]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another platform or Python
        found.add(name)
        waiting += [re.split(r"[^\w.-]", need)[0] for need in needs if "extra ==" not in need]
    return found


@pytest.fixture(scope="module")
def hidden() -> str:
    installed = core()
    packages = metadata.packages_distributions()
    names = {
        module
        for module, owners in packages.items()
        if not installed & {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners}
    }
    assert names >= {"torch", "transformers", "openai", "ray", "psycopg", "xllamacpp", "peft"}
    assert not names & {"numpy", "polars", "pydantic", "typer", "trsr"}
    return json.dumps(sorted(names))


def bare(hidden: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, hidden, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def data(hidden: str, tmp_path: Path) -> Path:
    """A dataset of 30 items and 12 users with 8 events each, imported without any extra."""
    items = "\n".join(f"i{n},Lamp number {n} for the desk" for n in range(30))
    (tmp_path / "items.csv").write_text(f"item_id,title\n{items}\n")
    rows = "\n".join(
        f"u{user},i{(7 * user + n) % 30},{1_700_000_000 + 1000 * n + user}"
        for user in range(12)
        for n in range(8)
    )
    (tmp_path / "events.csv").write_text(f"user_id,item_id,timestamp\n{rows}\n")
    files = ("--items", tmp_path / "items.csv", "--events", tmp_path / "events.csv")
    made = bare(hidden, "import", "table", *files, "--out", tmp_path / "data")
    assert made.returncode == 0, made.stderr
    return tmp_path / "data"


def test_import_validate_and_plan_need_no_extra(hidden: str, data: Path) -> None:
    checked = bare(hidden, "validate", data)
    assert (checked.returncode, checked.stdout) == (0, f"{data}: no problem found.\n"), checked.stderr
    config = data.with_name("c.yaml")
    config.write_text(CONFIG.format(data=data))
    planned = bare(hidden, "plan", config, "--users", "1000", "--tokens-per-second", "10", "--json")
    assert planned.returncode == 0, planned.stderr
    facts = json.loads(planned.stdout)
    assert facts["stages"][0]["calls"] == 2000  # eight items in blocks of five
    assert facts["stages"][-1]["hours"] > 0
    assert any("4 characters a token, for want of the tokenizer" in note for note in facts["notes"])


def test_what_needs_an_extra_names_it(hidden: str, data: Path) -> None:
    on_ray = ("summarize", data, "--engine", "fake", "--runner", "ray")
    in_postgres = ("store", "stats", "postgresql://me:pw@127.0.0.1:1/db")
    for extra, command in {"ray": on_ray, "postgres": in_postgres}.items():
        answer = bare(hidden, *command)
        assert answer.returncode == 1
        assert answer.stderr.endswith(f"is not installed: run `pip install 'trsr[{extra}]'`.\n")
