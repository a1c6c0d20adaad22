"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Runner = Annotated[str, typer.Option(help="local, or ray: on the workers of a Ray cluster (extra `ray`).")]
Concurrency = Annotated[
    int | None,
    typer.Option(help="Workers of --runner ray, each with an engine; 1 by default.", show_default=False),
]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(help="GPUs of each worker of --runner ray; 0 by default.", show_default=False),
]
