"""Only what a model answers becomes a profile: neither its thoughts nor its introductions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import item_ids, make_summariser

from trsr.errors import EngineError
from trsr.llm.base import Generation, GenerationParams, Prompt
from trsr.llm.fake import FakeGenerator
from trsr.summarize.executor import summarize
from trsr.summarize.store import SqliteStore
from trsr.templating import Template
from trsr.types import History


class Says(FakeGenerator):
    """Gives one answer to every prompt."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        self.answer = answer

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        for result in super().generate(prompts, params):
            yield replace(result, text=self.answer)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("<think>", "still thinking aloud"),
        ("<think>\nPens.\n</think>\n", "its thoughts and no answer"),
        ("Here is the updated summary of the user's preferences:", "an introduction and no answer"),
    ],
)
def test_thoughts_and_introductions_are_failed_calls_whatever_the_engine(
    said: str, why: str, tmp_path: Path
) -> None:
    history = History("u", item_ids(0, 2))
    with SqliteStore(tmp_path / "s.sqlite") as store:
        with pytest.raises(EngineError, match=why):
            summarize([history], make_summariser(), Says(said), store)
        answered = Says("<think>Hm.</think>\n\nSure! pens.\nMore.")
        (fold,) = summarize([history], make_summariser(), answered, store)
        assert fold.texts[0].endswith(" pens.")
        assert "Hm" not in fold.texts[0]


def test_a_thought_that_an_earlier_version_stored_as_a_text_is_not_used(tmp_path: Path) -> None:
    history = History("u", item_ids(0, 2))
    summariser = make_summariser()
    with SqliteStore(tmp_path / "s.sqlite") as store:
        summarize([history], summariser, FakeGenerator(), store)
        store._db.execute("UPDATE summaries SET text = 'Here is the summary:'")
        with pytest.raises(EngineError, match="trsr store gc --model"):
            summarize([history], summariser, FakeGenerator(), store)


def test_a_template_can_ask_for_more_than_one_line_and_no_other_key_changes(tmp_path: Path) -> None:
    summariser = make_summariser()
    assert summariser.params == summariser.config.params
    many = Template("many", f"{summariser.template.source}\n[[stop]]\n", summariser.template.variables)
    assert replace(summariser, template=many).params.stop == ()
    to_mark = Template("mark", f"{summariser.template.source}\n[[stop]]\n###\n", many.variables)
    assert replace(summariser, template=to_mark).params.stop == ("###",)
    engine = Says("## Summary\n- pens\n- ink")
    with SqliteStore(tmp_path / "s.sqlite") as store:
        (fold,) = summarize([History("u", item_ids(0, 2))], replace(summariser, template=many), engine, store)
    assert fold.texts[0].endswith("- pens - ink")
