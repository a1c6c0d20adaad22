"""Text-rich sequential recommendation with language models."""

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    """Look up `__version__` when it is asked for: reading package metadata slows every start."""
    if name == "__version__":
        from importlib.metadata import version

        return version("trsr")
    raise AttributeError(f"module 'trsr' has no attribute {name!r}")
