"""Versions of installed packages."""

from __future__ import annotations

from trsr.recommend.model_folder import installed


def test_packages_that_are_not_installed_are_left_out() -> None:
    found = installed(["pydantic", "a-package-that-nobody-made", "numpy"])
    assert list(found) == ["pydantic", "numpy"]
    assert all(version[0].isdigit() for version in found.values())
