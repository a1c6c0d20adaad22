"""A Ray cluster of one machine for tests, which goes when the tests have ended."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Workers start when needed, as fast as other processes; the cluster ends at once; nothing is told to anyone.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}
N_CPUS = 3


@contextmanager
def running_cluster() -> Iterator[dict[str, str]]:
    """Start a cluster; give the environment in which drivers join it."""
    # Not pytest's folder: the paths of its sockets would be too long.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = os.environ | SETTINGS | token | {"RAY_ADDRESS": f"127.0.0.1:{port}"}
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", f"--num-cpus={N_CPUS}", "--num-gpus=0"),
        *("--include-dashboard=false", "--object-store-memory=100000000", f"--temp-dir={folder}"),
    ]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    own = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    cluster = subprocess.Popen(command, env=own, start_new_session=True, **pipes)
    output = cluster.stdout
    assert output is not None
    try:
        said = []
        for line in output:
            said.append(line)
            if "Ray runtime started" in line:
                break
        else:
            raise AssertionError("".join(said))
        yield environment
    finally:
        cluster.terminate()
        try:
            cluster.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(cluster.pid, signal.SIGKILL)
            cluster.wait()
        output.close()
        shutil.rmtree(folder, ignore_errors=True)
