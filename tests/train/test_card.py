"""The model folder holds all that ranking needs, and tells a reader what it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer

from trsr.errors import OutputError
from trsr.llm import models
from trsr.llm.base import LabelTokens
from trsr.llm.transformers import load_causal_lm
from trsr.recommend.model_folder import WEIGHTS, quiet_peft, read_adapter_info
from trsr.recommend.prompt import PromptConfig, load_ranking_template
from trsr.storage import file_sha256
from trsr.train.config import TrainConfig
from trsr.train.model_card import save_model_folder
from trsr.train.trainer import TrainingReport

TEMPLATE = load_ranking_template("products", "products")
REPORT = TrainingReport([{"step": 1, "loss": 0.75}, {"step": 2, "loss": 0.5}], 2, 1.75, 12)
FILES = {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    with quiet_peft():
        lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(load_causal_lm(str(tiny_model), device="cpu"), lora)
    model.save_pretrained(str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "best.json").write_text("{}")
    config = tmp_path / "adapter" / "adapter_config.json"  # PEFT notes the folder the model was loaded from
    noted = {"base_model_name_or_path": "/somebody/cache/tiny"}
    config.write_text(json.dumps(json.loads(config.read_text()) | noted))
    return tmp_path / "adapter"


Save = Callable[..., None]


@pytest.fixture
def save(adapter: Path, tiny_model: Path) -> Save:
    def run(folder: Path, report: TrainingReport = REPORT) -> None:
        save_model_folder(
            folder,
            adapter,
            report,
            model=str(tiny_model),
            labels=LabelTokens(7, 8),
            template=TEMPLATE,
            prompt=PromptConfig(n_recent=3),
            config=TrainConfig(learning_rate=0.25),
            dataset="shop",
            command="trsr train shop.yaml --out out",
        )

    return run


def test_the_folder_holds_adapter_tokenizer_note_and_card(save: Save, tmp_path: Path) -> None:
    save(tmp_path / "model")
    found = {path.name for path in (tmp_path / "model").iterdir()}
    assert found >= FILES | {"trsr.json", "README.md"}
    assert "best.json" not in found
    assert not (tmp_path / "model.new").exists()


def test_the_note_says_what_scores_depend_on(save: Save, tmp_path: Path, tiny_model: Path) -> None:
    save(tmp_path / "model")
    info = read_adapter_info(tmp_path / "model")
    assert info.base_model == str(tiny_model)
    assert info.base_model_id == models.model_id(str(tiny_model))
    assert (info.template, info.template_hash) == ("products", TEMPLATE.hash)
    assert info.labels == LabelTokens(7, 8)
    assert info.prompt["n_recent"] == 3
    assert info.training["learning_rate"] == 0.25
    assert info.metrics == {"valid_recall_sum": 1.75, "best_step": 2.0}
    assert info.adapter_sha256 == file_sha256(tmp_path / "model" / WEIGHTS)
    assert set(info.versions) == {"trsr", "torch", "transformers", "peft"}


def test_the_card_tells_how_the_model_was_made(save: Save, tmp_path: Path, tiny_model: Path) -> None:
    save(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert card.startswith("---\nbase_model: ")
    for fact in (
        "trsr train shop.yaml --out out",
        "shop",
        "0.7500, 0.5000",
        "1.7500 at step 2",
        "0.25",
        "12",
    ):
        assert fact in card


def test_a_training_without_a_logged_loss_has_a_card_too(save: Save, tmp_path: Path) -> None:
    save(tmp_path / "model", TrainingReport([], 0, 0.0, 1))
    assert "none logged" in (tmp_path / "model" / "README.md").read_text()


def test_peft_and_transformers_load_the_folder(save: Save, tmp_path: Path, tiny_model: Path) -> None:
    save(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_model)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").encode("yes") == [
        *AutoTokenizer.from_pretrained(tiny_model).encode("yes")
    ]
    base = load_causal_lm(str(tiny_model), device="cpu")
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        plain = base(input_ids=ids).logits
        with quiet_peft():
            adapted = PeftModel.from_pretrained(base, tmp_path / "model").eval()
        assert not torch.allclose(adapted(input_ids=ids).logits, plain)


def test_an_older_folder_and_the_rest_of_a_killed_one_are_replaced(save: Save, tmp_path: Path) -> None:
    for name in ("model", "model.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old.txt").write_text("")
    save(tmp_path / "model")
    assert not (tmp_path / "model" / "old.txt").exists()
    assert not (tmp_path / "model.new").exists()


def test_a_place_that_cannot_be_written_is_one_sentence(save: Save, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"model folder .* cannot be written"):
        save(tmp_path / "file" / "model")
