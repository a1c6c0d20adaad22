"""Where long stages run: in this process, or on the machines of a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass

from trsr.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RayRunner:
    """Asks for a Ray cluster.

    Attributes:
        concurrency: Workers, each with an engine of its own; at least 1.
        gpus_per_worker: GPUs that each needs; a part of one is shared.
    """

    concurrency: int = 1
    gpus_per_worker: float = 0.0


def choose_runner(kind: str, concurrency: int | None, gpus_per_worker: float | None) -> RayRunner | None:
    """Return the runner that a command's options name; None is the local one.

    Raises:
        ConfigError: there is no such runner, a number is out of range, or one is given for the local runner.
    """
    if kind not in {"local", "ray"}:
        raise ConfigError(f"runner: found {kind!r}, expected local or ray.")
    if kind == "local":
        if concurrency is not None or gpus_per_worker is not None:
            raise ConfigError(
                "--concurrency and --gpus-per-worker are for --runner ray; add it, or leave them out."
            )
        return None
    if concurrency is not None and concurrency < 1:
        raise ConfigError(f"concurrency: found {concurrency}, expected a whole number of at least 1.")
    if gpus_per_worker is not None and gpus_per_worker < 0:
        raise ConfigError(f"gpus_per_worker: found {gpus_per_worker}, expected a number of at least 0.")
    return RayRunner(concurrency or 1, gpus_per_worker or 0.0)
