"""`report.md` and `report.html` of a run: what came out, how it was asked, what it cost, what it leaves open.

The HTML is one file that loads nothing: style and plots stand in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from trsr.evaluate.context import ReportContext
from trsr.evaluate.rendering import templates
from trsr.evaluate.views import report_view
from trsr.storage import write_whole


def write_report(folder: Path, *, metrics: Mapping[str, Any], context: ReportContext) -> tuple[Path, Path]:
    """Write `report.md` and `report.html` into a folder and return their paths.

    Without matplotlib the report has its tables and says how to get the plots.

    Args:
        folder: The run folder; made if missing.
        metrics: The content of `metrics.json`.
        context: The rest.

    Raises:
        OutputError: the folder cannot be written.
    """
    view = report_view(metrics, context)
    paths = folder / "report.md", folder / "report.html"
    texts = [templates().get_template(f"{path.name}.j2").render(view) for path in paths]
    texts[0] = re.sub(r"\n{3,}", "\n\n", texts[0]).strip() + "\n"
    for path, text in zip(paths, texts, strict=True):
        write_whole(path, partial(Path.write_text, data=text, encoding="utf-8", errors="replace"))
    return paths
