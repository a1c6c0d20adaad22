"""Text-rich sequential recommendation with language models."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("trsr")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0"

__all__ = ["__version__"]
