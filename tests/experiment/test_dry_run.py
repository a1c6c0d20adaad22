"""`trsr rank --dry-run` shows the very prompt that the ranking would score."""

from __future__ import annotations

from collections.abc import Callable

from trsr.experiment.experiment import Workbench
from trsr.experiment.ranking import describe_prompt
from trsr.experiment.stages import run_stages
from trsr.llm.fake import FakeTokenizer


def made(small_run: Callable[..., Workbench], max_tokens: int) -> Workbench:
    bench = small_run("run", prompt={"max_tokens": max_tokens})
    run_stages(bench, "summarize")
    bench.tokenizer = FakeTokenizer()
    return bench


def test_the_prompt_shown_is_the_prompt_built(small_run: Callable[..., Workbench]) -> None:
    bench = made(small_run, 4096)
    shown, example = describe_prompt(bench), bench.splits.test[0]
    profile = bench.profiles[example.example_id]
    group = bench.builder.build(example.history, profile, example.candidates).group
    assert shown["prompt"] == FakeTokenizer().decode(group.prefix + group.suffixes[0])
    assert profile in shown["prompt"]
    assert (shown["profile"], shown["user"]) == ("written", example.user_id)
    n_tokens = len(FakeTokenizer().encode(shown["prompt"]))
    assert shown["prefix_tokens"] + shown["candidate_tokens"] == n_tokens <= shown["max_tokens"]
    assert (shown["recent_items_cut"], shown["tokens_cut"]) == (0, 0)
    assert shown["candidates"] == len(example.candidates)
    assert shown["answers"] == "'yes' (258), 'no' (259)"


def test_what_the_budget_cut_is_shown(small_run: Callable[..., Workbench]) -> None:
    shown = describe_prompt(made(small_run, 900))
    assert shown["tokens_cut"] > 0
    assert shown["prefix_tokens"] + shown["candidate_tokens"] <= 900
