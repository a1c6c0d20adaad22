"""Metrics, intervals, `metrics.json` and the report of a run."""

import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    """Makes `trsr.evaluate(...)` work where a module of this package was imported before the function."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from trsr.evaluate.evaluate_rankers import evaluate

        return evaluate(*args, **options)


sys.modules[__name__].__class__ = _CallableModule
