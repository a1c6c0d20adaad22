"""What `trsr demo` adds to a run: the other summariser on one user, and what to try next."""

from __future__ import annotations

import os
from pathlib import Path

from trsr.pipeline.dataset_profiles import describe_fold
from trsr.pipeline.profiles import write_profiles
from trsr.pipeline.workbench import Workbench, make_summariser
from trsr.types import History

CONFIG_FILE = Path(__file__).with_name("demo.yaml")


def compare_summarisers(bench: Workbench) -> str:
    """Return one test user's blocks and summaries by both methods; the calls go to the run's store."""
    example = bench.splits.test[0]
    parts = []
    for method in ("recurrent", "hierarchical"):
        config = bench.config.summary.model_copy(update={"method": method})
        summariser = make_summariser(bench.dataset, config)
        written = write_profiles(
            [History(example.user_id, example.history)],
            summariser,
            bench.config.engine,
            bench.store_place,
        )
        text = describe_fold(written.folds[0], summariser, written.profiles[0].text)
        parts.append(f"{method.capitalize()}\n{'-' * len(method)}\n{text}")
    return "\n\n".join(parts)


def next_steps(out: Path) -> str:
    """Return commands to try next; the last opens the page."""
    config = Path(os.path.relpath(CONFIG_FILE))
    return (
        "Try next:\n"
        f"  trsr rank {config} --out {out} --dry-run      # the prompt the model reads\n"
        f"  trsr summarize {out}/data --engine llamacpp --limit 5      # profiles of other users\n"
        f"  trsr run {config} --out {out}-counted --set summary.method=counted  # no model\n"
        f"See what it believes about each user, and add notes, at http://127.0.0.1:8000 in a browser:\n"
        f"  trsr serve {out}\n"
    )
