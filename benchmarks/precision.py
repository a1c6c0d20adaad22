"""Time ways to compute on a CPU against float32, and see what they do to margins; print one JSON object.

python benchmarks/precision.py --run out/mind_recurrent --users 10

Prompts come from the test users of a finished run, for its fine-tuned model. A way that is not done
within `--limit` seconds, compiling among them, is given up and says so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from trsr.bench.models import gemm_gflops
from trsr.experiment.config import RunConfig
from trsr.experiment.experiment import Experiment
from trsr.experiment.ranking import make_ranker
from trsr.experiment.run_folder import RunFolder
from trsr.recommend.recommender import Recommender
from trsr.recommend.scorer import SharedPrefixScorer


def bfloat16(model: Any) -> Any:
    return model.to(torch.bfloat16)


def int8(model: Any) -> Any:
    """Quantise the weights of linear layers to int8, activations as they come."""
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def compiled(model: Any) -> Any:
    model.forward = torch.compile(model.forward, dynamic=True)
    return model


WAYS: dict[str, Callable[[Any], Any]] = {
    "float32": lambda model: model,
    "bfloat16": bfloat16,
    "int8": int8,
    "compiled": compiled,
}


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in what is done inside once `seconds` are over."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"not done within {seconds} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def pairs_kept(margins: list[np.ndarray], reference: list[np.ndarray]) -> float:
    """Return the share of candidate pairs that both order alike."""
    same = total = 0
    for ours, theirs in zip(margins, reference, strict=True):
        for i, j in itertools.combinations(range(len(ours)), 2):
            same += (ours[i] > ours[j]) == (theirs[i] > theirs[j])
            total += 1
    return same / total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--users", type=int, default=10)
    parser.add_argument("--limit", type=int, default=600, help="Seconds a way may take.")
    given = parser.parse_args()
    config = RunConfig.model_validate(yaml.safe_load((given.run / "config.yaml").read_text("utf-8")))
    experiment = Experiment(RunFolder(given.run, config, "benchmarks/precision.py"))
    examples = experiment.splits.test[: given.users]
    found: dict[str, Any] = {}
    reference: list[np.ndarray] = []
    for name, change in WAYS.items():
        ranker = make_ranker(experiment, "llm")
        assert isinstance(ranker, Recommender)
        assert isinstance(ranker.scorer, SharedPrefixScorer)
        try:
            with limited(given.limit):
                ranker.scorer.model = change(ranker.scorer.model)
                list(ranker.rank(examples[:1]))
                started = time.perf_counter()
                margins = [scores.margins for scores in ranker.rank(examples)]
                seconds = time.perf_counter() - started
        except (RuntimeError, NotImplementedError, TimeoutError) as error:
            found[name] = {"error": next(iter(str(error).splitlines()), type(error).__name__)}
            continue
        reference = reference or margins
        difference = max(float(np.abs(a - b).max()) for a, b in zip(margins, reference, strict=True))
        found[name] = {
            "seconds_a_user": round(seconds / len(examples), 3),
            "speedup": round(found["float32"]["seconds_a_user"] * len(examples) / seconds, 2) if found else 1,
            "max_abs_margin_difference": float(f"{difference:.2g}"),
            "pairs_in_the_same_order": round(pairs_kept(margins, reference), 4),
        }
    gemm = round(gemm_gflops(torch.device("cpu"), torch.float32), 1)
    result = {
        "benchmark": "precision",
        "run": config.name,
        "users": len(examples),
        "ways": found,
        "gemm_gflops": gemm,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
