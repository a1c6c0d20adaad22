"""Clocks, counts and random prompts that the benchmarks share."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from trsr.llm.base import LabelTokens, ScoringGroup

_GEMM_SIZE = 2048


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Return how long an action takes, in seconds, work queued on a GPU included."""
    _wait(device)
    started = time.perf_counter()
    action()
    _wait(device)
    return time.perf_counter() - started


def median_seconds(action: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the median time of some runs of an action, after one that is not timed."""
    action()
    return median(seconds(action, device) for _ in range(repeats))


def gemm_gflops(device: torch.device, dtype: torch.dtype, size: int = _GEMM_SIZE) -> float:
    """Return the rate of a square matrix product, the practical limit of a language model, in GFLOP/s."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    repeats = 3 if device.type == "cpu" else 50

    def multiply() -> None:
        for _ in range(repeats):
            left @ right

    return 2 * size**3 * repeats / median_seconds(multiply, device, 5) / 1e9


def peak_memory_mb(device: torch.device) -> float:
    """Return the most memory used so far: of the GPU, or of the process, in MB."""
    if device.type == "cuda":
        used: int = torch.cuda.max_memory_allocated(device)
        return used / 2**20
    unit = 2**20 if platform.system() == "Darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def random_groups(
    model: Any, users: int, n_prefix: int, n_candidate: int, candidates: int, seed: int = 0
) -> list[ScoringGroup]:
    """Return groups of random tokens of given lengths: only lengths matter for speed."""
    generator = torch.Generator().manual_seed(seed)
    n_vocabulary = model.get_input_embeddings().weight.shape[0]

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(n_vocabulary // 100, n_vocabulary, (n,), generator=generator).tolist())

    return [
        ScoringGroup(draw(n_prefix), tuple(draw(n_candidate) for _ in range(candidates)))
        for _ in range(users)
    ]


def any_labels(model: Any) -> LabelTokens:
    """Return two arbitrary tokens as the answers."""
    n_vocabulary = model.get_input_embeddings().weight.shape[0]
    return LabelTokens(n_vocabulary // 2, n_vocabulary // 3)


def forward_flops(model: Any, groups: Sequence[ScoringGroup]) -> float:
    """Return the floating-point operations of a forward pass of some groups with shared prefixes.

    2 x parameters outside the embeddings x tokens, and for attention 4 x layers x width of the heads x pairs
    of a token and one it attends to.
    """
    config = model.config
    n_heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    attention: int = 4 * config.num_hidden_layers * n_heads * head_dim
    body = 2 * body_parameters(model)
    total = 0.0
    for group in groups:
        n, lengths = len(group.prefix), [len(suffix) for suffix in group.suffixes]
        pairs = n * (n + 1) / 2 + sum(length * n + length * (length + 1) / 2 for length in lengths)
        total += body * (n + sum(lengths)) + attention * pairs
    return total


def body_parameters(model: Any) -> int:
    """Return the number of parameters outside input embedding, head and adapters."""
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    return sum(p.numel() for name, p in model.named_parameters() if id(p) not in ends and "lora_" not in name)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(model: Any) -> dict[str, Any]:
    """Return device, threads, precision and version that numbers were measured with."""
    device = model.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }
