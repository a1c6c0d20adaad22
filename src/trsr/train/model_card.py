"""Makes the model folder: adapter, tokenizer, `trsr.json` and a model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from trsr.errors import OutputError
from trsr.llm import models
from trsr.llm.base import LabelTokens
from trsr.llm.transformers import HfTokenizer
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
    quantization: str | None = None,
) -> None:
    """Write a model folder in one move, replacing an older one.

    Args:
        folder: Where it shall stand.
        adapter: The folder of the trained PEFT adapter.
        report: What the training did.
        model: Name of the base model.
        labels: The answer tokens.
        template: The prompt template it was trained on.
        prompt: The prompt configuration.
        config: The training configuration.
        dataset: Name of the data set, for the card.
        command: The command that made it, for the card.
        quantization: How the base model was rounded.

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
        _name_base_model(fresh / "adapter_config.json", model)
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


def _name_base_model(file: Path, model: str) -> None:
    """Put the base model's name where PEFT noted the folder it was loaded from."""
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(
        json.dumps(config | {"base_model_name_or_path": model}, indent=2) + "\n", encoding="utf-8"
    )


def _card(info: AdapterInfo, report: TrainingReport, dataset: str, command: str) -> str:
    """Return the model card: what it is, how it was made, what it may not be used for."""
    losses = [row["loss"] for row in report.log if "loss" in row]
    lora = info.training["lora"]
    rows = [
        ("Base model", f"`{info.base_model_id}`"),
        ("Quantization", info.quantization or "none"),
        ("Data", dataset),
        ("Training groups (users)", str(report.n_groups)),
        ("Loss", f"`{info.training['loss']}`"),
        ("Learning rate, epochs", f"{info.training['learning_rate']}, {info.training['epochs']}"),
        (
            "LoRA",
            f"r {lora['r']}, alpha {lora['alpha']}, dropout {lora['dropout']}, {lora['target_modules']}",
        ),
        ("Loss, first and last step", f"{losses[0]:.4f}, {losses[-1]:.4f}" if losses else "none logged"),
        ("Validation R@3 + R@5 + R@10", f"{report.best_recall_sum:.4f} at step {report.best_step}"),
        ("Prompt template", f"`{info.template}` ({info.template_hash[:12]})"),
        ("Answer tokens", f"{info.positive_token} (yes), {info.negative_token} (no)"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"---\nbase_model: {info.base_model}\nlibrary_name: peft\n"
        "tags: [trsr, recommendation, ranking]\n---\n\n"
        "# A yes/no recommender made with trsr\n\n"
        "Reads a user's preference profile, their recent items and one candidate, and answers yes or no;\n"
        "the margin between the two answers ranks candidates. The adapter only means something with the\n"
        f"prompt template it was trained on.\n\n| | |\n|---|---|\n{table}\n\n"
        f"Made by `{command}` with "
        + ", ".join(f"{name} {number}" for name, number in info.versions.items())
        + ".\n\nScores are not calibrated unless `trsr.json` says how. Trained on the behaviour of the\n"
        "users of one data set: it repeats their biases, and says nothing about people outside it.\n"
    )
