"""Time training steps and ranking on one model, with and without shared prefixes."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trsr.llm import prefix_attention
from trsr.llm.base import LabelTokens, ScoringGroup, Sharing
from trsr.llm.prefix_attention import label_head, separate_margins
from trsr.llm.transformers import load_causal_lm
from trsr.recommend.scorer import PrefixCache, SharedPrefixScorer
from trsr.train.config import TrainConfig
from trsr.train.dataset import TrainingGroup
from trsr.train.lora import with_adapter
from trsr.train.losses import Objective


def bench_train(
    model_name: str,
    *,
    users: int,
    prefix_tokens: int,
    candidate_tokens: int,
    candidates: int,
    repeats: int,
    device: str = "auto",
    dtype: str = "auto",
) -> dict[str, Any]:
    """Measure forward and backward passes of `users` users per step, by LoRA with the default configuration.

    All `users` share one forward pass; times are per user, medians of `repeats` steps. The first of a
    user's `candidates` is the chosen one. Model, device and dtype are as `load_causal_lm` takes them.
    """
    shared, plain = (_model(model_name, share=share, device=device, dtype=dtype) for share in (True, False))
    where, labels = shared.device, any_labels(shared)
    groups = [
        TrainingGroup(group, (1, *[0] * (candidates - 1)))
        for group in random_groups(shared, users, prefix_tokens, candidate_tokens, candidates)
    ]
    alone = [
        [TrainingGroup(ScoringGroup(g.group.prefix, (suffix,)), (label,))]
        for g in groups
        for suffix, label in zip(g.group.suffixes, g.labels, strict=True)
    ]
    packed = median_seconds(_step(shared, labels, [groups]), where, repeats) / users
    separate = median_seconds(_step(plain, labels, alone), where, max(1, repeats // 2)) / users
    gemm = gemm_gflops(where, shared.dtype)
    # Backward: gradients of activations through frozen weights (as much as forward), and twice attention's.
    reading = forward_flops(shared, [g.group for g in groups])
    n_tokens = users * (prefix_tokens + candidates * candidate_tokens)
    weights = 2 * body_parameters(shared) * n_tokens
    rate = (3 * reading - weights) / users / packed / 1e9
    return {
        "benchmark": "train",
        "model": model_name,
        "users": users,
        "prefix_tokens": prefix_tokens,
        "candidate_tokens": candidate_tokens,
        "candidates": candidates,
        "pointwise_s": round(separate, 4),
        "shared_prefix_s": round(packed, 4),
        "users_per_s": round(1 / packed, 3),
        "speedup_vs_pointwise": round(separate / packed, 2),
        "speedup_by_token_count": round(
            candidates * (prefix_tokens + candidate_tokens) * users / n_tokens, 2
        ),
        "max_rel_grad_difference": float(f"{_largest_difference(shared, plain):.2g}"),
        "gemm_gflops": round(gemm, 1),
        "model_gflops": round(rate, 1),
        "fraction_of_gemm_peak": round(rate / gemm, 3),
        "peak_memory_mb": round(peak_memory_mb(where), 1),
        **machine(shared),
    }


def _model(name: str, *, share: bool, device: str, dtype: str) -> Any:
    """Return the model with an adapter whose both halves are at work, the same one each time."""
    base = load_causal_lm(name, device=device, dtype=dtype)
    prefix_attention.enable(base, "auto" if share else "separate")
    torch.manual_seed(0)
    model = with_adapter(base, TrainConfig())
    for parameter_name, weights in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(weights, std=0.01)
    return model.train()


def _step(model: Any, labels: LabelTokens, passes: Sequence[Sequence[TrainingGroup]]) -> Callable[[], None]:
    """Return a step of one forward and backward per pass, with the gradient of the passes' mean loss."""
    objective = Objective(model, "answer", labels)

    def step() -> None:
        model.zero_grad()
        with objective.installed(model):
            for groups in passes:
                (objective(model, groups).mean() / len(passes)).backward()

    return step


def _largest_difference(left: Any, right: Any) -> float:
    """Return the largest |difference| / |gradient| of any trained matrix, by norms."""
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return max(float((a.grad - b.grad).norm() / b.grad.norm()) for a, b in pairs if b.grad is not None)


PADDED_TOKENS = 2048
N_CACHED = 5
LEAST_CACHED_REPEATS = 7  # each takes about a second


def bench_score(
    model_name: str,
    *,
    users: int,
    prefix_tokens: int,
    candidate_tokens: int,
    candidates: Sequence[int],
    max_batch_tokens: int,
    repeats: int,
    slow_candidates: int,
    device: str = "auto",
    dtype: str = "auto",
    sharing: Sharing = "auto",
) -> dict[str, Any]:
    """Measure ranking three ways.

        padded pointwise    as LLM-TRSR's released code: each candidate padded to 2,048 tokens, batch 1,
                            logits at every position
        pointwise           each candidate separately, no padding, two rows of the head
        shared prefix       `SharedPrefixScorer`

    `users` groups are scored in one call; times are per user, medians of `repeats` runs, and a single run is
    not preceded by one that warms up. The slow ways are timed on `slow_candidates` of the first count of
    `candidates` and multiplied, 0 leaves them out; the growth is timed with all counts. Model, device and
    dtype are as `load_causal_lm` takes them, sharing as `prefix_attention.enable`.
    """
    model = load_causal_lm(model_name, device=device, dtype=dtype)
    labels, where = any_labels(model), model.device
    groups = random_groups(model, users, prefix_tokens, candidate_tokens, candidates[0])
    slow = (
        _slow_ways(model, groups[0], labels, min(slow_candidates, candidates[0])) if slow_candidates else None
    )
    prefix_attention.enable(model, sharing)
    scorer = SharedPrefixScorer(model, max_batch_tokens=max_batch_tokens)
    margins: dict[int, Any] = {}

    def score() -> None:
        margins.update(scorer.score(groups, labels))

    runs = [seconds(score, where) for _ in range(repeats + (repeats > 1))]
    shared = median(runs[1:] or runs) / users  # the first of several warms up
    gemm = gemm_gflops(where, model.dtype)
    rate = forward_flops(model, groups) / users / shared / 1e9
    return {
        "benchmark": "score",
        "model": model_name,
        "users": users,
        "prefix_tokens": prefix_tokens,
        "candidate_tokens": candidate_tokens,
        "candidates": candidates[0],
        "max_batch_tokens": max_batch_tokens,
        "sharing": sharing if scorer.shares_prefixes else "separate",
        **_compared(slow, shared, candidates[0], margins[0]),
        "shared_prefix_s": round(shared, 4),
        "candidates_per_s": round(candidates[0] / shared, 1),
        "gemm_gflops": round(gemm, 1),
        "model_gflops": round(rate, 1),
        "fraction_of_gemm_peak": round(rate / gemm, 3),
        **_cached(scorer, groups[0], labels, repeats),
        **_growth(scorer, candidates, prefix_tokens, candidate_tokens, repeats, labels),
        "peak_memory_mb": round(peak_memory_mb(where), 1),
        **machine(model),
    }


def _compared(
    slow: dict[str, Any] | None, shared: float, n: int, margins: npt.NDArray[np.float32]
) -> dict[str, Any]:
    """Return the slow ways' seconds for `n` candidates and the speedup over them; None if not timed."""
    if slow is None:
        slow = {"padded": None, "pointwise": None, "margins": margins[:0]}
    n_timed, found = len(slow["margins"]), {}
    for way, name in (("padded", "padded_pointwise_s"), ("pointwise", "pointwise_s")):
        duration = None if slow[way] is None else slow[way] * n
        found[name] = None if duration is None else round(duration, 3)
        found[f"speedup_vs_{way}"] = None if duration is None else round(duration / shared, 2)
    difference = np.abs(margins[:n_timed] - slow["margins"]).max(initial=0)
    return {
        "slow_ways_timed_on_candidates": n_timed,
        **found,
        "max_abs_margin_difference": float(f"{difference:.2g}") if n_timed else None,
    }


def _slow_ways(model: Any, group: ScoringGroup, labels: LabelTokens, n: int) -> dict[str, Any]:
    """Return the seconds per candidate of both slow ways, and the margins of the pointwise one.

    The padded way has no time if a prompt exceeds the padded length, where the released code cuts it.
    """
    few = [ScoringGroup(group.prefix, (suffix,)) for suffix in group.suffixes[:n]]
    rows = [[*group.prefix, *one.suffixes[0]] for one in few]
    width = max(PADDED_TOKENS, *map(len, rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.long, device=model.device)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = torch.tensor(ids)
    mask = torch.zeros_like(tokens)
    mask[:, : len(rows[0])] = 1

    def padded() -> None:
        for row in range(min(2, n)):
            model(input_ids=tokens[row : row + 1], attention_mask=mask[row : row + 1], use_cache=False)

    def pointwise() -> list[torch.Tensor]:
        return [separate_margins(model, one, columns, PADDED_TOKENS) for one in few]

    with torch.inference_mode():
        padded_s = None
        if len(rows[0]) <= PADDED_TOKENS:
            padded_s = median_seconds(padded, model.device, 3) / min(2, n)
        with label_head(model, labels) as columns:
            margins = torch.cat(pointwise()).cpu().numpy()
            pointwise_s = median_seconds(pointwise, model.device, 3) / n
    return {"padded": padded_s, "pointwise": pointwise_s, "margins": margins}


def _cached(
    scorer: SharedPrefixScorer, group: ScoringGroup, labels: LabelTokens, repeats: int
) -> dict[str, Any]:
    """Time a few candidates of a user with a cached and with an uncached prefix."""
    few = ScoringGroup(group.prefix, group.suffixes[:N_CACHED])
    knowing = SharedPrefixScorer(
        scorer.model, max_batch_tokens=scorer.max_batch_tokens, cache=PrefixCache(2**31)
    )
    where = scorer.model.device
    list(knowing.score([few], labels))  # reads the prefix
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(max(repeats, LEAST_CACHED_REPEATS)):  # in turn: noise of the machine affects both
        for cached, way in ((False, scorer), (True, knowing)):
            times[cached].append(seconds(lambda w=way: list(w.score([few], labels)), where))  # type: ignore[misc]
    without, known = median(times[False]), median(times[True])
    return {
        "cached_prefix_candidates": len(few.suffixes),
        "uncached_s": round(without, 4),
        "cached_s": round(known, 4),
        "cached_speedup": round(without / known, 2),
    }


def _growth(
    scorer: SharedPrefixScorer,
    counts: Sequence[int],
    n_prefix: int,
    n_candidate: int,
    repeats: int,
    labels: LabelTokens,
) -> dict[str, Any]:
    """Time growing numbers of candidates; the ratio is the last time over the line through the first two."""
    if len(counts) < 2:
        return {}
    groups = {n: random_groups(scorer.model, 1, n_prefix, n_candidate, n)[0] for n in counts}
    times: dict[int, list[float]] = {n: [] for n in counts}
    for _ in range(repeats):  # in turn: noise of the machine affects all
        for n, group in groups.items():
            times[n].append(seconds(lambda g=group: list(scorer.score([g], labels)), scorer.model.device))  # type: ignore[misc]
    middle = {n: float(np.median(values)) for n, values in times.items()}
    growth = {"growth": [{"candidates": n, "shared_prefix_s": round(s, 4)} for n, s in middle.items()]}
    if len(counts) < 3:
        return growth
    return growth | {"growth_ratio": round(growth_ratio(list(counts), list(middle.values())), 3)}


def growth_ratio(counts: Sequence[int], times: Sequence[float]) -> float:
    """Return the last time over the value there of the line through the first two; 1 is linear growth."""
    slope = (times[1] - times[0]) / (counts[1] - counts[0])
    return times[-1] / (times[0] + slope * (counts[-1] - counts[0]))


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


def gemm_gflops(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
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
