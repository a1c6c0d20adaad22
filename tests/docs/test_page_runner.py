"""The program that runs the pages: it does what a reader would, and is not content with less."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from page_runner import PageError, Runner, blocks_of, difference, rewritten


def run(tmp_path: Path, text: str, **settings: object) -> str:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    done = Runner(tmp_path / "there", **settings).run(page)  # type: ignore[arg-type]
    return "".join(step.output for step in done)


def test_runner_keeps_files_and_exported_variables(tmp_path: Path) -> None:
    text = (
        "```csv a/items.csv\nx\ny\n```\nSave as `words.txt`:\n\n```yaml\nthree\n```\n"
        "```sh\nexport N=2; M=1\n```\n```sh\necho $N ${M-none}; cat a/items.csv words.txt\n```\n"
        "```text\n2 none\nx\ny\nthree\n```\n```sh skip: it would fail\nfalse\n```\n"
    )
    assert run(tmp_path, text) == "2 none\nx\ny\nthree\n"
    assert [block.file for block in blocks_of(text)][:2] == ["a/items.csv", "words.txt"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("text\n\n```sh\necho a\n```\n\n```text\nb\n```\n", "page.md, line 3: the page shows\nb\n"),
        ("```sh\necho a; false; echo b\n```\n", "page.md, line 1: ended with 1 and printed\na\n"),
        ("```sh\nfalse | cat\n```\n", "ended with 1"),
        ("```sh\necho $NOTHING\n```\n", "NOTHING: unbound variable"),
        ("```sh serve\ntrue\n```\n", "`serve` is unknown; expected `server URL` or `skip: WHY`"),
        ("```sh server http://127.0.0.1:9/\necho no\n```\n", "does not answer; the server printed\nno\n"),
        ("```sh\nsleep 30\n```\n", "not done within 1 seconds"),
    ],
)
def test_runner_reports_page_and_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(PageError, match=re.escape(said)):
        run(tmp_path, text, timeout=1 if "sleep" in text else 60)


@pytest.mark.parametrize(
    ("shown", "printed", "info", "fits"),
    [
        ("a 1\n", "a 1\n", "", True),
        ("a 1\n", "a 2\n", "", False),
        ("a ... c\n", "a b c\n", "", True),
        ("a\n...\nd\n", "a\nb\nc\nd\n", "", True),
        ("a\n...\nd\n", "a\nb\nc\n", "", False),
        ("a  1.5 s (2)\n", "a 10 s (3)\n", "numbers", True),
        ("a  1.5 s\n", "b 1.5 s\n", "numbers", False),
        ("Block 1\nProfile: tents\n", "Block 2\nProfile: clay pots\n", "words", True),
        ("Profile: tents\n", "Summary: tents\n", "words", False),
        ("tents\n", "tents\n", "words", False),  # nothing would be compared
        ('{"a": [{"b": 1}]}', '{"a": [{"b": 2.5}, {"b": 3}]}', "words", True),
        ('{"a": [{"b": 1}]}', '{"a": [{"b": "1"}]}', "words", False),
        ('{"a": [1]}', '{"a": []}', "words", False),
    ],
)
def test_output_is_compared_by_info_string(shown: str, printed: str, info: str, fits: bool) -> None:
    assert (difference(shown, printed, info) is None) is fits


def test_servers_run_until_the_page_ends(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    text = (
        "```sh server http://127.0.0.1:8000/\npython -m http.server --bind 127.0.0.1 8000\n```\n"
        "```python ask.py\nfrom urllib.request import urlopen\nanswer = urlopen('http://127.0.0.1:8000/')\n"
        "print(answer.status, answer.url)\n```\n```sh\npython ask.py\n```\n"
        "```text\n200 http://127.0.0.1:8000/\n```\n"
    )
    run(tmp_path, text, replace={"8000": port})
    with socket.create_server(("127.0.0.1", int(port))):
        pass  # the port is closed


def test_write_replaces_outputs_without_ellipsis(tmp_path: Path) -> None:
    text = "```sh\necho a\n```\n\n```text\nold\n```\n\n```sh\necho b\n```\n\n```text\n...\n```\nend\n"
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    done = Runner(tmp_path / "there").run(page, check=False)
    assert rewritten(text, done) == text.replace("old", "a")
