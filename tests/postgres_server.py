"""A real PostgreSQL server for tests: on a free loopback port, with a folder of its own, gone at the end."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

USER = "trsr"
PASSWORD = "s3cr:t/p@ss%word"
# Fast, as nothing here needs to survive a crash.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "60",
    "autovacuum": "off",
}


class Server:
    """A running server; `stop` and `start` keep its data and its port."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.folder = folder
        self.binaries = binaries
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None
        self._identity: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            names = {entry.pw_name: entry for entry in pwd.getpwall()}
            entry = names.get("postgres") or names["nobody"]
            self._identity = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        if user := self._identity.get("user"):
            shutil.chown(folder, user, self._identity["group"])
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        options = ("-U", USER, "-A", "md5", f"--pwfile={password}", "-E", "UTF8", "--locale=C")
        command: list[str | Path] = [binaries / "initdb", "-D", folder / "data", "--no-sync", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **self._identity)
        assert done.returncode == 0, done.stderr or done.stdout

    def url(self, database: str, password: str = PASSWORD) -> str:
        """Return the URL of a database."""
        return f"postgresql://{USER}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start, and wait until connections are taken."""
        settings = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
        program, data = str(self.binaries / "postgres"), str(self.folder / "data")
        command = [program, "-D", data, "-p", str(self.port), *settings]
        if shutil.which("setpriv"):  # the server ends with this process, even if that is killed
            command = ["setpriv", "--pdeathsig=INT", *command]
        with (self.folder / "log").open("ab") as log:
            process: subprocess.Popen[bytes] = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/", **self._identity
            )
        self._process = process
        ready = [str(self.binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        end = time.monotonic() + 120
        while time.monotonic() < end:
            if process.poll() is not None:
                raise RuntimeError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()}")
            if subprocess.run(ready, check=False).returncode == 0:
                return
            time.sleep(0.1)
        raise RuntimeError("PostgreSQL took no connections within two minutes.")

    def stop(self) -> None:
        """Cut all connections and stop."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(120)
            self._process = None


@contextmanager
def running_server(binaries: Path) -> Iterator[Server]:
    """Run a server for the length of a block."""
    # Not pytest's own folder, which only its owner may enter.
    with tempfile.TemporaryDirectory(prefix="trsr-postgres-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = Server(binaries, Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()
