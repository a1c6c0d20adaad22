"""Every error that `trsr` raises on purpose, in one tree.

    TrsrError                     exit code 1
    ├── InputError                exit code 2: wrong input
    │   ├── DataError             a raw file or a dataset folder
    │   │   └── LeakageError      an input contains the target to be predicted
    │   ├── ConfigError           a configuration; lists every problem at once
    │   ├── TemplateError         a prompt template
    │   ├── ModelError            an unknown model, or one that cannot be used for this
    │   ├── BudgetError           a prompt that cannot fit its token budget
    │   │   └── CandidateTooLongError  ... or a forward pass
    │   ├── StoreError            a summary store of a newer version, or not a store at all
    │   ├── RunMismatchError      a run or model folder made by another configuration
    │   ├── RunInUseError         a run folder that another process works on
    │   └── OutputError           a folder that cannot be written: read-only, or the disk is full
    │       └── NotErasedError    a user is deleted, but another process holds their bytes on the disk
    ├── MissingExtraError         an optional dependency is not installed
    ├── OverloadedError           a service cannot answer in time
    └── EngineError               a language model engine failed; `retryable` says whether to try again
        └── MissingLabelsError    ... some candidates have no margin

Messages are one sentence: found, expected, what to do.
"""

from __future__ import annotations

from collections.abc import Sequence


def first_line(error: Exception) -> str:
    """Return the first line of a library's message without its full stop, else the kind of the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    message = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"unknown key {message}" if isinstance(error, KeyError) else message.rstrip(":. ")


class TrsrError(Exception):
    """Base of all errors raised on purpose; `exit_code` is for the command line."""

    exit_code = 1


class InputError(TrsrError):
    """The input cannot be used."""

    exit_code = 2


class DataError(InputError):
    """A raw file or a dataset folder is wrong."""


class LeakageError(DataError):
    """An example, its profile or training data has seen its target or later events."""


class ConfigError(InputError):
    """A configuration is wrong; `problems` holds every mistake found, one sentence each."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class TemplateError(InputError):
    """A prompt template does not parse, or uses undeclared variables."""


class ModelError(InputError):
    """A model is unknown or unsuitable (for example: a label has two tokens)."""


class BudgetError(InputError):
    """The parts of a prompt that may never be cut do not fit the token budget."""


class CandidateTooLongError(BudgetError):
    """Candidate `suffix` of group `group` does not fit a forward pass together with its prefix."""

    def __init__(self, group: int, suffix: int, n_tokens: int, max_tokens: int, name: str = "") -> None:
        self.group, self.suffix, self.n_tokens, self.max_tokens = group, suffix, n_tokens, max_tokens
        super().__init__(
            f"{name or f'Candidate {suffix} of group {group}'} has {n_tokens} tokens with its prefix, "
            f"at most {max_tokens} fit a forward pass; raise max_batch_tokens or lower prompt.max_tokens."
        )


class StoreError(InputError):
    """A summary store was written by a newer version, or is not a summary store."""


class RunMismatchError(InputError):
    """A run or model folder was made by another configuration."""


class RunInUseError(InputError):
    """Another process works on the run folder."""


class OutputError(InputError):
    """A result cannot be written; earlier results are kept."""


class NotErasedError(OutputError):
    """A user is deleted, but some of their bytes are still on the disk, to be removed later."""


class MissingExtraError(TrsrError):
    """An optional dependency is missing; names the extra that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"The package {package!r} is not installed: run `pip install 'trsr[{extra}]'`.")


class OverloadedError(TrsrError):
    """Request rejected: queue full or deadline passed. `retry_after` is in seconds, above 0."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineError(TrsrError):
    """A language model engine failed on a call."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class MissingLabelsError(EngineError):
    """`n_missing` of `n_candidates` candidates got no margin: a label was not among `top_k` tokens."""

    def __init__(self, n_missing: int, n_candidates: int, top_k: int) -> None:
        self.n_missing, self.n_candidates, self.top_k = n_missing, n_candidates, top_k
        super().__init__(
            f"For {n_missing} of {n_candidates} candidates an answer is not among the {top_k} likeliest "
            "tokens, so they have no margin: raise top_logprobs (and the server's own limit), or use a "
            "server that scores labels (vllm, sglang)."
        )
