"""Write the model folder: adapter, tokenizer, `trsr.json` and a model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from trsr.errors import OutputError
from trsr.llm import models
from trsr.llm.base import LabelTokens
from trsr.llm.transformers import HfTokenizer, Quantization
from trsr.recommend.model_folder import WEIGHTS, AdapterInfo, installed, write_adapter_info
from trsr.recommend.prompt import PromptConfig
from trsr.storage import file_sha256
from trsr.templating import Template
from trsr.train.config import TrainConfig
from trsr.train.trainer import TrainingReport

_PACKAGES = ("trsr", "torch", "transformers", "peft")


def save_model_folder(
    folder: Path,
    adapter: Path,
    report: TrainingReport,
    *,
    model: str,
    labels: LabelTokens,
    template: Template,
    prompt: PromptConfig,
    config: TrainConfig,
    dataset: str,
    command: str,
    quantization: Quantization = None,
) -> None:
    """Write a model folder in one move, replacing an older one.

    `adapter` is the folder of the trained PEFT adapter; `dataset` and `command` are for the card.

    Raises:
        OutputError: the folder cannot be written.
    """
    tokenizer = HfTokenizer(models.hf_folder(model))
    info = AdapterInfo(
        base_model=model,
        base_model_id=models.model_id(model),
        template=template.name,
        template_hash=template.hash,
        prompt_version=tokenizer.prompt_version,
        positive_token=labels.positive,
        negative_token=labels.negative,
        prompt=prompt.model_dump(mode="json"),
        training=config.model_dump(mode="json"),
        metrics={"valid_recall_sum": report.best_recall_sum, "best_step": float(report.best_step)},
        quantization=quantization,
        versions=installed(_PACKAGES),
    )
    fresh = folder.with_name(folder.name + ".new")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(adapter, fresh, ignore=shutil.ignore_patterns("best.json", "README.md"))
        noted = fresh / "adapter_config.json"  # PEFT notes the folder that the base model was loaded from
        config_of_adapter = json.loads(noted.read_text(encoding="utf-8")) | {"base_model_name_or_path": model}
        noted.write_text(json.dumps(config_of_adapter, indent=2) + "\n", encoding="utf-8")
        tokenizer.hf.save_pretrained(fresh)
        write_adapter_info(fresh, info.model_copy(update={"adapter_sha256": file_sha256(fresh / WEIGHTS)}))
        (fresh / "README.md").write_text(_card(info, report, dataset, command), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    except OSError as error:
        raise OutputError(
            f"The model folder {folder} cannot be written ({error}); "
            "free space and run the same command again."
        ) from error


_CARD = """---
base_model: {base_model}
library_name: peft
tags: [trsr, recommendation, ranking]
---

# A yes/no recommender made with trsr

Reads a user's preference profile, their recent items and one candidate, and answers yes or no;
the margin between the two answers ranks candidates. The adapter only means something with the
prompt template it was trained on.

| | |
|---|---|
{table}

Made by `{command}` with {versions}.

Scores are calibrated only if `trsr.json` holds a calibration. Trained on the behaviour of the
users of one data set: it repeats their biases, and does not describe people outside it.
"""


def _card(info: AdapterInfo, report: TrainingReport, dataset: str, command: str) -> str:
    training, lora = info.training, info.training["lora"]
    losses = [row["loss"] for row in report.log if "loss" in row]
    rows = {
        "Base model": f"`{info.base_model_id}`",
        "Quantization": info.quantization or "none",
        "Data": dataset,
        "Training groups (users)": report.n_groups,
        "Loss": f"`{training['loss']}`",
        "Learning rate, epochs": f"{training['learning_rate']}, {training['epochs']}",
        "LoRA": f"r {lora['r']}, alpha {lora['alpha']}, dropout {lora['dropout']}, {lora['target_modules']}",
        "Loss, first and last step": f"{losses[0]:.4f}, {losses[-1]:.4f}" if losses else "none logged",
        "Validation R@3 + R@5 + R@10": f"{report.best_recall_sum:.4f} at step {report.best_step}",
        "Prompt template": f"`{info.template}` ({info.template_hash[:12]})",
        "Answer tokens": f"{info.positive_token} (yes), {info.negative_token} (no)",
    }
    return _CARD.format(
        base_model=info.base_model,
        table="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        command=command,
        versions=", ".join(f"{name} {number}" for name, number in info.versions.items()),
    )
