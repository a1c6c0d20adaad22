"""`trsr models check MODEL` finds what would go wrong with a model, row by row."""

import json
import shutil
from collections.abc import Callable
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import pytest
from conftest import Answer

from trsr.errors import ModelError
from trsr.experiment.model_check import CheckedModel, Finding, check_model
from trsr.llm.text_batch import TextBatch
from trsr.recommend.model_folder import FILE_NAME
from trsr.recommend.prompt import PromptBuilder
from trsr.recommend.scorer import SharedPrefixScorer


def checked(model: Path, **options: Any) -> dict[str, Finding]:
    return {found.check: found for found in check_model(CheckedModel(str(model), **options))}


def failed(found: dict[str, Finding]) -> set[str]:
    return {name for name, finding in found.items() if not finding.ok}


def test_check_model_passes_a_whole_model(tiny_model: Path) -> None:
    found = checked(tiny_model, templates=("generic", "products"))
    assert failed(found) == set()
    assert {"labels generic", "labels products", "BOS", "sharing", "LoRA targets", "generation"} <= set(found)
    assert "shared; margins of 8 prompts" in found["sharing"].message
    assert "14 layers" in found["LoRA targets"].message


def test_check_model_does_not_take_a_models_own_penalties_for_a_difference(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 0.6, "repetition_penalty": 5.0})
    )
    assert failed(checked(folder, templates=("news",))) == set()


def test_check_model_goes_on_after_labels_of_several_tokens(two_token_model: Path) -> None:
    found = checked(two_token_model, templates=("news",))
    assert failed(found) == {"labels news", "sharing"}
    assert "tokens for this model" in found["labels news"].message


def test_check_model_names_both_numbers_of_a_short_context(tiny_model: Path) -> None:
    found = checked(tiny_model, templates=("news",), max_tokens=5000)
    assert failed(found) == {"context"}
    assert found["context"].message.startswith("4096 tokens, but prompts may have 5000;")


def wrong_margins(right: Any, self: Any, groups: Any, labels: Any) -> Any:
    return ((index, margins + 0.3) for index, margins in right(self, groups, labels))


def second_bos(right: Any, self: Any, *texts: Any) -> Any:
    prefix = right(self, *texts)
    return (prefix[0], *prefix)


def wrong_text(right: Any, self: Any) -> Any:
    done = right(self)
    for text in done:
        text.written[-2:] = text.written[:2]
    return done


@pytest.mark.parametrize(
    ("place", "name", "wrong", "check", "message"),
    [
        (SharedPrefixScorer, "score", wrong_margins, "sharing", "differ by 3.0e-01 at most"),
        (PromptBuilder, "prefix", second_bos, "BOS", "2 times"),
        (TextBatch, "step", wrong_text, "generation", "differs from what transformers writes"),
    ],
)
def test_check_model_finds_what_is_wrong(
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    name: str,
    wrong: Any,
    check: str,
    message: str,
) -> None:
    monkeypatch.setattr(place, name, partialmethod(partial(wrong, getattr(place, name))))
    found = checked(tiny_model, templates=("news",))
    assert failed(found) == {check}
    assert message in found[check].message


def test_check_model_finds_lost_texts_and_broken_weights(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.content | upper }}{% endfor %}"
    )
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    found = checked(folder, templates=("news",))
    assert failed(found) >= {"model", "chat template", "sharing", "generation"}
    assert found["context"].ok


def test_check_model_reads_a_fine_tuned_model_and_its_run(finished_run: Path) -> None:
    of_model, of_run = checked(finished_run / "model"), checked(finished_run)
    assert failed(of_model) == failed(of_run) == set()
    assert set(of_model) == set(of_run)
    assert [name for name in of_model if name.startswith("labels")] == ["labels products"]


def test_check_model_refuses_an_adapter_of_another_template(finished_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished_run / "model", tmp_path / "model"))
    info = json.loads((folder / FILE_NAME).read_text())
    (folder / FILE_NAME).write_text(json.dumps(info | {"template_hash": "0" * 64}))
    found = checked(folder)
    assert failed(found) == {"adapter"}
    assert "template" in found["adapter"].message


def test_check_model_says_in_a_sentence_that_an_adapter_is_gone(finished_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished_run / "model", tmp_path / "model"))
    (folder / "adapter_model.safetensors").unlink()
    found = checked(folder)
    assert failed(found) == {"model", "adapter", "sharing"}
    assert "copy the whole model folder" in found["adapter"].message


def test_check_model_refuses_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a model"):
        CheckedModel(str(tmp_path))


def test_models_check_prints_a_table_and_json(
    trsr: Callable[..., Answer], tiny_model: Path, two_token_model: Path
) -> None:
    table = trsr("models", "check", tiny_model, "--template", "news")
    assert table.code == 0
    assert "labels news    ok" in table.out
    answer = trsr("models", "check", two_token_model, "--template", "news", "--json")
    assert answer.code == 1
    found = json.loads(answer.out)
    assert not found["ok"]
    assert {"check", "ok", "message"} == set(found["checks"][0])


def test_models_check_tells_its_two_forms_apart(trsr: Callable[..., Answer], tiny_model: Path) -> None:
    assert trsr("models", "check", tiny_model, "--run", "x").code == 2
    assert trsr("models", "check", "llm", "transformers").code == 2
    assert "--run is missing" in trsr("models", "check", "llm", "transformers").err
    missing = trsr("models", "check", "no-such-model")
    assert (missing.code, missing.out) == (2, "")
