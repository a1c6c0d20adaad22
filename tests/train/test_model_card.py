"""The model folder holds everything for ranking, and a model card."""

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
Save = Callable[..., None]


@pytest.fixture
def save(tiny_model: Path, tmp_path: Path) -> Save:
    adapter = tmp_path / "adapter"
    with quiet_peft():
        lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(load_causal_lm(str(tiny_model), device="cpu"), lora)
    model.save_pretrained(str(adapter))
    (adapter / "best.json").write_text("{}")
    config = adapter / "adapter_config.json"  # PEFT notes the folder the model was loaded from
    noted = {"base_model_name_or_path": "/somebody/cache/tiny"}
    config.write_text(json.dumps(json.loads(config.read_text()) | noted))

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


def test_model_folder_records_the_inputs_of_scores(save: Save, tmp_path: Path, tiny_model: Path) -> None:
    for name in ("model", "model.new"):  # an older one, and the rest of a killed one
        (tmp_path / name).mkdir()
        (tmp_path / name / "old.txt").write_text("")
    folder = tmp_path / "model"
    save(folder)
    files = {
        "adapter_config.json",
        WEIGHTS,
        "tokenizer.json",
        "tokenizer_config.json",
        "trsr.json",
        "README.md",
    }
    assert {path.name for path in folder.iterdir()} >= files
    assert not any((folder / name).exists() for name in ("best.json", "old.txt"))
    assert not (tmp_path / "model.new").exists()
    info = read_adapter_info(folder)
    assert info.base_model == str(tiny_model)
    assert info.base_model_id == models.model_id(str(tiny_model))
    assert (info.template, info.template_hash) == ("products", TEMPLATE.hash)
    assert info.labels == LabelTokens(7, 8)
    assert info.prompt["n_recent"] == 3
    assert info.training["learning_rate"] == 0.25
    assert info.metrics == {"valid_recall_sum": 1.75, "best_step": 2.0}
    assert info.adapter_sha256 == file_sha256(folder / WEIGHTS)
    assert set(info.versions) == {"trsr", "torch", "transformers", "peft"}
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nbase_model: ")
    facts = ("trsr train shop.yaml --out out", "shop", "0.7500, 0.5000", "1.7500 at step 2", "0.25", "12")
    assert all(fact in card for fact in facts)
    save(folder, TrainingReport([], 0, 0.0, 1))
    assert "none logged" in (folder / "README.md").read_text()


def test_peft_and_transformers_load_the_folder(save: Save, tmp_path: Path, tiny_model: Path) -> None:
    save(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_model)
    ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "model", tiny_model))
    assert ours.encode("yes") == theirs.encode("yes")
    base = load_causal_lm(str(tiny_model), device="cpu")
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode(), quiet_peft():
        plain = base(input_ids=ids).logits
        adapted = PeftModel.from_pretrained(base, tmp_path / "model").eval()
        assert not torch.allclose(adapted(input_ids=ids).logits, plain)


def test_a_folder_that_cannot_be_written_is_one_sentence(save: Save, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"model folder .* cannot be written"):
        save(tmp_path / "file" / "model")
