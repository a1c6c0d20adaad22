"""Shows candidates of training with texts that ask for an answer, as `train.injections` says."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trsr.data.verbalize import verbalize_item
from trsr.pipeline.workbench import Workbench
from trsr.seeding import derive_rng
from trsr.train.injections import in_front, injection
from trsr.types import RankingExample

Injector = Callable[[RankingExample], Mapping[str, str]]


def injector(bench: Workbench, share: float, epoch: int) -> Injector:
    """Return what finds the injected candidates of an example, and their texts, cut as all candidates are.

    They depend on seed, example and epoch alone.
    """
    prompt, words = bench.config.prompt, bench.builder.answers()
    fields = bench.dataset.info.text_fields if prompt.fields is None else prompt.fields
    catalogue = bench.dataset.catalogue()

    def texts(example: RankingExample) -> dict[str, str]:
        rng = derive_rng(bench.config.seed, "injection", example.example_id, epoch)
        drawn = rng.random(len(example.candidates)) < share
        injected = (item for item, hit in zip(example.candidates, drawn, strict=True) if hit)
        return {
            item: verbalize_item(
                in_front(injection(rng, *words), catalogue[item], fields),
                fields=fields,
                max_field_tokens=prompt.max_field_tokens,
                tokenizer=bench.tokenizer,
            )
            for item in injected
        }

    return texts
