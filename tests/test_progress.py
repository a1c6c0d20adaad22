"""Progress is shown on a terminal and nowhere else."""

from __future__ import annotations

import pytest
from rich.console import Console

from trsr import progress
from trsr.progress import bar


def test_nothing_is_printed_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("Working") as shown:
        shown.update(1, 2, "halfway")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_sees_name_count_and_note_on_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "Console", lambda **_: Console(stderr=True, force_terminal=True, width=120))
    with bar("Working") as shown:
        shown.update(1, 2, "halfway")
    out, err = capsys.readouterr()
    assert out == ""
    for text in ("Working", "1/2", "halfway"):
        assert text in err
