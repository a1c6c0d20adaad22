"""Shows one ranking prompt as the model would read it, without loading the model."""

from __future__ import annotations

from typing import Any

from trsr.pipeline.workbench import Workbench


def describe_prompt(bench: Workbench) -> dict[str, Any]:
    """Render the first test example's prompt for its first candidate.

    Returns:
        The prompt's text, its token counts, and what the budget cut. The profile is the written one where the
        stage `summarize` is finished, else it is left out and the answer says so.
    """
    example = bench.splits.test[0]
    written = "summarize" in bench.folder.stages()
    profile = bench.profiles.get(example.example_id, "") if written else ""
    prompt = bench.builder.build(example.history, profile, example.candidates)
    suffix = prompt.group.suffixes[0]
    labels = bench.labels
    decode = bench.tokenizer.decode
    answers = [f"{decode([token])!r} ({token})" for token in (labels.positive, labels.negative)]
    return {
        "user": example.user_id,
        "profile": "written" if written else "not written yet; the prompt below has none",
        "prompt": decode(prompt.group.prefix + suffix),
        "prefix_tokens": len(prompt.group.prefix),
        "candidate_tokens": len(suffix),
        "candidates": len(example.candidates),
        "max_tokens": bench.config.prompt.max_tokens,
        "recent_items_cut": prompt.fitted.n_recent_cut,
        "tokens_cut": prompt.fitted.n_tokens_cut,
        "answers": ", ".join(answers),
    }
