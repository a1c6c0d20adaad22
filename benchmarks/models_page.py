"""Write the table of architectures in docs/models.md from benchmarks/results/architectures.json.

python benchmarks/models_page.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from results_page import table

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "models.md"
BEGIN = "<!-- made by benchmarks/models_page.py: architectures -->"
END = "<!-- end of architectures -->"
# Differences of margins, and of gradients as a share of the largest, that are those of rounding in float32.
EXACT_MARGIN, EXACT_GRADIENT = 1e-3, 1e-3

Record = Mapping[str, Any]


def section(record: Record) -> str:
    """Return totals, the table, and the architectures that could not be built."""
    tried = [row for row in record["results"] if "built" not in row]
    missing = [row for row in record["results"] if "built" in row]
    wrong = [row["name"] for row in tried if not is_exact(row)]
    n_shared = sum(bool(row["shared"].get("shares")) for row in tried)
    margins = max(value for row in tried for value in numbers(row["shared"], row["padded"], row["separate"]))
    gradients = max((value for row in tried for value in numbers(row["gradient"])), default=0.0)
    parts = [
        f"{len(tried)} architectures and variants were built; {n_shared} share prefixes. The largest\n"
        f"difference of a margin is {margins:.1g}, of a gradient {gradients:.1g} of the largest one."
        + (f" Not exact, or not possible in part: {', '.join(wrong)}." if wrong else " All are exact."),
        table(
            ["architecture", "prefixes", "margins, shared", "margins, one by one", "gradients", "texts"],
            [cells(row) for row in tried],
        ),
        "Not built at this size, or not readable by plain transformers: "
        + ", ".join(row["name"] for row in missing)
        + ".",
        f"```sh\n{record['command']}\n```",
        f"{record['machine']}, commit `{record['commit']}`, seed {record['seed']}, "
        + ", ".join(f"{name} {record['versions'][name]}" for name in ("torch", "transformers", "peft"))
        + f". {record.get('note', '')}".rstrip(),
    ]
    return "\n\n".join(parts)


def cells(row: Record) -> list[str]:
    """Return the row of an architecture: shared or the reason against it, and the largest differences."""
    shared = row["shared"]
    name = row["name"] + (" (1)" if row["library"] > EXACT_MARGIN else "")
    how = "shared" if shared.get("shares") else f"one by one: {shared.get('why') or shared.get('error')}"
    written = row["written"]
    texts = written.get("error") or (
        f"{'together' if written['together'] else 'one at a time'}, {written['same']} of {written['of']}"
    )
    return [
        name,
        how.replace("|", "/"),
        largest(shared, row["padded"]) if shared.get("shares") else "–",
        largest(*([row["separate"]] if shared.get("shares") else [shared, row["padded"], row["separate"]])),
        largest(row["gradient"]),
        texts.replace("|", "/"),
    ]


def largest(*parts: Record) -> str:
    """Return the largest difference of some parts, or their error."""
    errors = [part["error"] for part in parts if "error" in part]
    return errors[0].replace("|", "/") if errors else f"{max(numbers(*parts)):.1g}"


def numbers(*parts: Record) -> Iterator[float]:
    """Yield the differences of some parts."""
    for part in parts:
        yield from (value for value in part.values() if isinstance(value, float))


def is_exact(row: Record) -> bool:
    """Whether margins, gradients and texts are those of plain transformers."""
    parts = [row[name] for name in ("shared", "padded", "separate", "gradient", "written")]
    if any("error" in part for part in parts):
        return False
    return (
        all(value <= EXACT_MARGIN for value in numbers(*parts[:3]))
        and all(value <= EXACT_GRADIENT for value in numbers(row["gradient"]))
        and row["written"]["same"] == row["written"]["of"]
    )


def page(text: str, record: Record) -> str:
    """Return docs/models.md with the section replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{section(record)}\n\n{END}{after}"


def read() -> Record:
    """Return the recorded comparison."""
    found: Record = json.loads((RESULTS / "architectures.json").read_text(encoding="utf-8"))
    return found


def main() -> None:
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), read()), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
