"""The run folder: its configuration, finished stages, the processes that worked on it, and a log.

Files appear under their final names in one move, so a killed process leaves whole files or none.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from pydantic import ValidationError

from trsr.errors import OutputError, RunInUseError, RunMismatchError
from trsr.experiment.config import RunConfig, differences
from trsr.recommend.model_folder import installed
from trsr.storage import atomic_write, file_sha256, read_json

_PACKAGES = ("trsr", "numpy", "polars", "torch", "transformers", "peft", "xllamacpp", "bm25s")

# Parts of a configuration that may grow, and the stages that then run again, with their earlier results.
_GROWING = frozenset({"name", "rankers", "baselines", "variants", "sweep", "evaluate"})
_LATE_STAGES = ("variants", "rank", "evaluate")


class RunFolder:
    """A folder that holds one experiment.

    A configuration that only adds rankers, variants or metrics to the first one is accepted. So is one that
    names other model servers as long as nothing was ranked: a trained model can be served before it ranks.

    Args:
        path: The folder.
        config: Its configuration.
        command: The command that works on it; empty to read only, which neither checks nor writes.

    Raises:
        RunMismatchError: the folder belongs to another configuration; the message lists the differences.
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path, config: RunConfig, command: str = "") -> None:
        self.path = path
        self.config = config
        self.command = command
        self._noted = False
        if command:
            self._check_config()

    def _check_config(self) -> None:
        """Write `config.yaml` into a new folder; refuse a folder of another configuration."""
        wanted = json.loads(self.config.model_dump_json())
        try:
            names = {entry.name for entry in self.path.iterdir()}
        except FileNotFoundError:
            names = set()
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be used as a folder ({error.strerror}); name another with --out."
            ) from error
        if "config.yaml" in names:
            found = _read_config(self.path / "config.yaml")
            changed = differences(found, wanted)
            if not changed:
                return
            if not (_only_grown(found, wanted) or self._only_other_servers(found, wanted)):
                raise RunMismatchError(
                    f"{self.path} holds a run of another configuration ({'; '.join(changed)}); "
                    "name another folder with --out, or undo the changes."
                )
            if done := self.stages():
                self.write_json("stages.json", {k: v for k, v in done.items() if k not in _LATE_STAGES})
        # A run killed in its first moment leaves only the unfinished configuration.
        elif any(not name.startswith(".config.yaml.partial") for name in names):
            raise RunMismatchError(
                f"{self.path} is not empty and holds no run; name another folder with --out."
            )
        self._write("config.yaml", yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True))

    def _only_other_servers(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
        """Return whether only the servers of models changed, and no test candidate has a score yet."""
        if (self.path / "scores.parquet").exists() or (self.path / "scores.parts").exists():
            return False
        changes = differences({**old, "recommender": {}}, {**new, "recommender": {}})
        before, after = old.get("recommender", {}), new["recommender"]
        return not changes and {**before, "servers": None} == {**after, "servers": None}

    def _write(self, name: str, text: str) -> None:
        atomic_write(self.path / name, lambda file: file.write_text(text, encoding="utf-8"))

    def write_json(self, name: str, content: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Write a JSON file in one move."""
        self._write(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def read_json(self, name: str, default: Any) -> Any:
        """Return the content of a JSON file, `default` where there is none."""
        file = self.path / name
        return read_json(file) if file.exists() else default

    def sessions(self) -> list[dict[str, Any]]:
        """Return one entry per process that worked on the run, the first one first; see `working`."""
        return list(self.read_json("env.json", []))

    @contextmanager
    def working(self) -> Iterator[None]:
        """Keep every other process from working on the run; the lock of a process that dies is released.

        Adds this process to `env.json`, once: its start (UTC), number, command and `environment`.

        Raises:
            RunInUseError: another process works on it; the message says which.
            OutputError: the folder cannot be written.
        """
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            last = (self.sessions() or [{}])[-1]
            who = "process {process} (`{command}`, since {started})" if last else "another process"
            raise RunInUseError(
                f"{self.path} is in use by {who.format(**last)}; "
                "wait until it ends, or name another folder with --out."
            ) from error
        except OSError as error:
            raise OutputError(
                f"{lock.lock_file} cannot be written ({error.strerror}); name another folder with --out."
            ) from error
        try:
            if not self._noted:
                started = datetime.now(UTC).isoformat(timespec="seconds")
                entry = {"started": started, "process": os.getpid(), "command": self.command, **environment()}
                self.write_json("env.json", [*self.sessions(), entry])
                self._noted = True
            yield
        finally:
            lock.release()

    def stages(self) -> dict[str, dict[str, Any]]:
        """Return the finished stages with their facts, in the order they were finished."""
        return dict(self.read_json("stages.json", {}))

    def finish(self, stage: str, facts: Mapping[str, Any], files: Sequence[str] = ()) -> None:
        """Mark a stage as finished; `facts` (seconds, calls, tokens, ...) appear in the report.

        The sha256 of those `files` that exist is recorded; see `check_files`.
        """
        hashes = {name: file_sha256(self.path / name) for name in files if (self.path / name).exists()}
        noted = {"sha256": hashes} if hashes else {}
        self.write_json("stages.json", self.stages() | {stage: {**facts, **noted}})
        self.log(stage, "done", **facts)

    def check_files(self) -> None:
        """Refuse a changed file of a finished stage; a missing one is made again.

        Raises:
            RunMismatchError: naming it.
        """
        for stage, facts in self.stages().items():
            for name, noted in facts.get("sha256", {}).items():
                file = self.path / name
                if file.exists() and file_sha256(file) != noted:
                    raise RunMismatchError(
                        f"{file} is not as the stage {stage!r} left it (its sha256 differs): it is damaged "
                        "or was changed; restore it, or remove it and run the same command again."
                    )

    def log(self, stage: str, event: str, **facts: Any) -> None:
        """Append one line to `log.jsonl`."""
        line = json.dumps({"time": time.time(), "stage": stage, "event": event, **facts}, ensure_ascii=False)
        try:
            with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise OutputError(f"{self.path}/log.jsonl cannot be written ({error.strerror}).") from error


def _read_config(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        raise RunMismatchError(f"{file} is not the configuration of a run; name another folder with --out.")
    try:  # settings that are newer than the folder take their defaults
        return dict(json.loads(RunConfig.model_validate(found).model_dump_json()))
    except ValidationError:
        return found


def _only_grown(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return whether a configuration only adds to an earlier one."""
    changed = {part for part in new if old.get(part) != new[part]}
    return changed <= _GROWING and all(
        settings == old["baselines"].get(name)
        for name, settings in new["baselines"].items()
        if name in old["rankers"]
    )


def environment() -> dict[str, Any]:
    """Return versions, machine and commit, to judge timings and to repeat a run."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": _gpus(),
        "versions": installed(_PACKAGES),
        "commit": _commit(),
        "executable": Path(sys.executable).name,
    }


def _gpus() -> list[str]:
    """Return the names of the machine's NVIDIA GPUs; importing torch takes longer than some runs."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def _commit() -> str | None:
    """Return the commit of the source tree this package runs from, with `+` when it has changes."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")
