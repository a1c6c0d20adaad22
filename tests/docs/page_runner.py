"""Run the pages of the documentation: their commands in order, in one folder, and compare the outputs.

The info strings of fenced blocks, which readers do not see, give instructions to this program:

    ```csv items.csv       a file, in any language but those below; or the line before ends in `items.csv`:
    ```sh                  commands for bash; later blocks know their exported variables
    ```sh server URL       one command that stays; the page continues once URL answers, and ends it at the end
    ```sh skip: WHY        shown, not run
    ```text                output of the block before; `...` means any text, alone on a line any lines
    ```text numbers        the same with any numbers, and columns of any width
    ```text words          the same with any words: of a line only the part before its first colon counts,
                           of JSON its names and the kinds of its values

`json` works like `text`. To run a page with its real models, and to write the new outputs into it:

    python tests/docs/page_runner.py docs/tutorial.md --folder /tmp/shop --write
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
OUTPUT = ("text", "json")
STOP_SECONDS = 60
_FENCE = re.compile(
    r"^(?P<fence>```+)(?P<language>[\w-]*) *(?P<info>[^\n]*)\n(?P<text>.*?)^(?P=fence)$", re.M | re.S
)
_NAMED_BEFORE = re.compile(r"`([\w./-]+\.\w+)`:?\s*$")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the rest of its info string, its text, and the position of the text."""

    language: str
    info: str
    text: str
    start: int
    line: int
    file: str | None

    @property
    def is_output(self) -> bool:
        return self.language in OUTPUT and self.file is None


@dataclass(frozen=True)
class Done:
    """The output of a block of commands, and its seconds."""

    block: Block
    output: str
    seconds: float
    shown: Block | None


def blocks_of(page: str) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    found = []
    for match in _FENCE.finditer(page):
        language, info = match["language"], match["info"].strip()
        file = _file_of(language, info, page[: match.start()])
        line = page.count("\n", 0, match.start()) + 1
        found.append(Block(language, info, match["text"], match.start("text"), line, file))
    return found


def _file_of(language: str, info: str, before: str) -> str | None:
    """Return the name under which a reader saves a block, None for a block that is no file."""
    if language in ("sh", ""):
        return None
    if re.fullmatch(r"[\w./-]+\.\w+", info):
        return info
    named = _NAMED_BEFORE.search(before[-200:].rstrip())
    return named[1] if named and not info and language not in OUTPUT else None


def difference(shown: str, printed: str, info: str = "") -> str | None:
    """Return what is wrong with the output on a page, None where `printed` is as it says."""
    if info == "words":
        try:
            kinds = _kinds(json.loads(shown)), _kinds(json.loads(printed))
        except ValueError:
            shown, printed = _labels(shown), _labels(printed)
            if not shown:
                return "`words` compares what stands before colons, and there is none"
        else:
            return None if kinds[0] == kinds[1] else f"expected JSON like\n{kinds[0]}\nfound\n{kinds[1]}"
    pattern = "".join(_line_pattern(line, info) for line in shown.rstrip().split("\n"))
    if re.fullmatch(pattern, printed.rstrip() + "\n"):
        return None
    return f"the page shows\n{shown}\nand the command printed\n{printed}"


def _line_pattern(line: str, info: str) -> str:
    if line.strip() == "...":
        return r"(?:[^\n]*\n)*?"
    parts = []
    for part in line.rstrip().split("..."):
        pattern = re.escape(part)
        if info in ("numbers", "words"):
            pattern = re.sub(r"\d+(?:(?:\\\.|,)\d+)*", r"\\d+(?:[.,]\\d+)*", pattern)
            pattern = re.sub(r"(?:\\ )+", " +", pattern)
            pattern = re.sub("([─━])+", r"\1+", pattern)
        parts.append(pattern)
    return "[^\n]*".join(parts) + "[ ]*\n"


def _labels(text: str) -> str:
    """Keep of each line the part before its first colon, with 0 for every number."""
    kept = [line.split(":")[0] for line in text.split("\n") if ":" in line]
    return "\n".join(_NUMBER.sub("0", line) for line in kept)


def _kinds(value: Any) -> Any:
    """Return the shape of JSON: names and kinds of values; of a list, its first entry's."""
    if isinstance(value, dict):
        return {name: _kinds(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_kinds(value[0])] if value else []
    return (
        "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__
    )


class PageError(AssertionError):
    """A page does not hold what it says; names the page and the line."""


class Runner:
    """Runs pages in a folder, one after another.

    Args:
        folder: Where commands run and files are written.
        replace: Texts of a page that are others in this run, such as a port; turned back in what is printed.
        env: More environment variables.
        timeout: Seconds that a block may take.
    """

    def __init__(
        self,
        folder: Path,
        *,
        replace: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 300,
    ) -> None:
        self.folder = folder
        self.replace = dict(replace or {})
        self._timeout = timeout
        self._own = folder / ".page"
        self._own.mkdir(parents=True, exist_ok=True)
        self._servers: list[subprocess.Popen[bytes]] = []
        (self._own / "exported").unlink(missing_ok=True)
        self.env = self._environment() | dict(env or {})

    def _environment(self) -> dict[str, str]:
        """Return an environment in which `trsr` and `python` belong to this process."""
        commands = {"trsr": [sys.executable, "-m", "trsr"], "python": [sys.executable]}
        for name, command in commands.items():
            program = self._own / name
            program.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
            program.chmod(0o755)
        env = {name: value for name, value in os.environ.items() if not name.startswith("TRSR_")}
        path = os.pathsep.join([str(self._own), env.get("PATH", "/usr/bin:/bin")])
        modules = os.pathsep.join([str(ROOT / "src"), *filter(None, [env.get("PYTHONPATH")])])
        return env | {"PATH": path, "PYTHONPATH": modules, "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}

    def _end_servers(self) -> None:
        for server in self._servers:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
        killed = []
        for server in self._servers:
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
                killed.append(str(server.args))
        self._servers.clear()
        if killed:
            raise PageError(f"Not ended {STOP_SECONDS} seconds after SIGTERM: {'; '.join(killed)}")

    def run(self, page: Path, *, check: bool = True) -> list[Done]:
        """Run a page from its first block to its last, and end its servers.

        Raises:
            PageError: a command failed or, with `check`, printed something else than the page shows.
        """
        try:
            return self._run(page, check)
        finally:
            self._end_servers()

    def _run(self, page: Path, check: bool) -> list[Done]:
        blocks = blocks_of(page.read_text(encoding="utf-8"))
        done = []
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            where = f"{page.name}, line {block.line}"
            if block.file is not None:
                file = self.folder / block.file
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(self._there(block.text), encoding="utf-8")
            elif block.language == "sh" and not block.info.startswith("skip: "):
                shown = following if following is not None and following.is_output else None
                began = time.perf_counter()
                output = self._back(self._do(block, where))
                done.append(Done(block, output, time.perf_counter() - began, shown))
                wrong = difference(shown.text, output, shown.info) if check and shown is not None else None
                if wrong is not None:
                    raise PageError(f"{where}: {wrong}")
        return done

    def _do(self, block: Block, where: str) -> str:
        words = block.info.split()
        if not words:
            return self._commands(self._there(block.text), where)
        if len(words) == 2 and words[0] == "server":
            return self._serve(self._there(block.text), self._there(words[1]), where)
        raise PageError(f"{where}: `{block.info}` is unknown; expected `server URL` or `skip: WHY`.")

    def _there(self, text: str) -> str:
        for shown, used in self.replace.items():
            text = text.replace(shown, used)
        return text

    def _back(self, text: str) -> str:
        for shown, used in reversed(self.replace.items()):
            text = text.replace(used, shown)
        return text

    def _commands(self, commands: str, where: str) -> str:
        exported = shlex.quote(str(self._own / "exported"))
        keep = f"{{ export -p; export -fp; }} > {exported}"
        script = f"[ ! -e {exported} ] || . {exported}\nset -euo pipefail\n{commands}\n{keep}\n"
        try:
            done = subprocess.run(
                ["bash", "-c", script],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=self._timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise PageError(f"{where}: not done within {self._timeout} seconds: {error.output!r}") from error
        output = done.stdout.decode().replace("\r\n", "\n")  # as a terminal shows it
        if done.returncode:
            raise PageError(f"{where}: ended with {done.returncode} and printed\n{output}")
        return output

    def _serve(self, command: str, url: str, where: str) -> str:
        file = self._own / f"server{len(self._servers)}"
        exported = shlex.quote(str(self._own / "exported"))
        # The shell becomes the server: a shell would end at once, before the server has closed its files.
        script = f"[ ! -e {exported} ] || . {exported}\nexec {command}"
        with file.open("wb") as output:
            server = subprocess.Popen(
                ["bash", "-c", script],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._servers.append(server)
        end = time.monotonic() + self._timeout
        while not _answers(url):
            if server.poll() is not None or time.monotonic() > end:
                raise PageError(f"{where}: {url} does not answer; the server printed\n{file.read_text()}")
            time.sleep(0.2)
        return file.read_text()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def rewritten(page: str, done: list[Done]) -> str:
    """Return a page with what its commands printed; outputs that leave something out stay as they are."""
    for step in reversed(done):
        if step.shown is not None and "..." not in step.shown.text:
            start = step.shown.start
            kept = re.sub(r"[ \t]+$", "", step.output, flags=re.M).rstrip("\n") + "\n"
            page = page[:start] + kept + page[start + len(step.shown.text) :]
    return page


def _children_seconds() -> float:
    """Return the CPU time of the commands so far, which says more than the wall where others work too."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Run a page as a reader would, and say how long each block took."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("pages", type=Path, nargs="+")
    parser.add_argument("--folder", type=Path, required=True, help="New, or one where a page was run before.")
    parser.add_argument("--write", action="store_true", help="Put what is printed into the last page.")
    arguments = parser.parse_args()
    runner = Runner(arguments.folder, timeout=3600)
    for number, page in enumerate(arguments.pages, start=1):
        last = number == len(arguments.pages)
        before = _children_seconds()
        done = runner.run(page, check=not (last and arguments.write))
        for step in done:
            print(f"{page}:{step.block.line}: {step.seconds:.1f} s")
        used = _children_seconds() - before
        print(f"{page}: {sum(step.seconds for step in done):.0f} s, {used:.0f} s of CPU", flush=True)
        if last and arguments.write:
            page.write_text(rewritten(page.read_text(encoding="utf-8"), done), encoding="utf-8")


if __name__ == "__main__":
    main()
