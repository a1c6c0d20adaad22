"""Supervised fine-tuning with LoRA: PEFT's adapters, Hugging Face's Trainer, our packed groups and losses.

A forward pass reads each user's prefix with all candidates once; gradients are accumulated over `batch_size`
users. Checkpoints hold everything, so a killed training goes on where it was and ends with the same weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from trsr.errors import ModelError, OutputError
from trsr.llm import shared_attention
from trsr.llm.adapter import quiet_peft
from trsr.llm.base import LabelTokens, Sharing
from trsr.llm.transformers import load_causal_lm, resolve_device, resolve_dtype
from trsr.train.config import TrainConfig
from trsr.train.dataset import EpochGroups, TrainingGroup
from trsr.train.objective import Objective
from trsr.train.validation import recall_sum


@dataclass(frozen=True)
class TrainingReport:
    """What a training did: the logged rows, and the best validation result with its step."""

    log: list[dict[str, float]]
    best_step: int
    best_recall_sum: float
    n_groups: int


class _GroupTrainer(Trainer):
    """A Trainer whose batch is some users' groups and whose validation is the paper's rule."""

    def __init__(
        self, objective: Objective, valid: Sequence[TrainingGroup], best: Path, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.objective: Objective = objective
        self.valid = valid
        self.best = best
        self.model_accepts_loss_kwargs = False  # our loss is a mean over users; the Trainer divides it

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """Return the mean loss of some users."""
        return self.objective(model, inputs["groups"])

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Rank the validation users, log R@3 + R@5 + R@10, keep the adapter if it is the best so far."""
        model: Any = self.model
        model.eval()
        values = []
        with torch.inference_mode():
            for group in self.valid:
                (margins,) = self.objective.margins(model, [group.group])
                values.append(recall_sum(margins.cpu().numpy(), group.labels))
        model.train()
        value = sum(values) / len(values)
        metrics = {"eval_recall_sum": value}
        self.log(metrics)
        if value > _best(self.best)[0]:
            _save_best(model, self.best, value, self.state.global_step)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _NewEpoch(TrainerCallback):
    """Tells the groups which epoch begins; a data loader would not in every arrangement of samplers."""

    def __init__(self, groups: EpochGroups) -> None:
        self.groups = groups

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        self.groups.set_epoch(int((state.epoch or 0) + 1e-6))  # a fraction after a restart within an epoch


class _EarlyStop(TrainerCallback):
    """Stops after `patience` validations without a better one; reads the log, so it survives a restart."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(  # the arguments' names are the Trainer's
        self,
        args: Any,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        control.should_training_stop = _is_over(state.log_history, self.patience)


def train(
    groups: EpochGroups,
    valid: Sequence[TrainingGroup],
    *,
    model: str,
    labels: LabelTokens,
    config: TrainConfig,
    checkpoints: Path,
    seed: int,
    dtype: str = "auto",
    device: str = "auto",
    sharing: Sharing = "auto",
    progress: bool = False,
) -> tuple[Path, TrainingReport]:
    """Fine-tune an adapter; goes on from the newest whole checkpoint where there is one.

    Args:
        groups: What to learn from, epoch by epoch.
        valid: Groups to validate on; without any, the last adapter is kept.
        model: Name of the base model.
        labels: The answer tokens.
        config: How.
        checkpoints: A folder for checkpoints; the best adapter stands in `best` inside it.
        seed: Order of the groups and initial adapter weights.
        dtype: Precision of the base model; the adapter is trained in float32.
        device: Where to train.
        sharing: How candidates share their prefix, see `shared_attention.enable`.
        progress: Whether to show the Trainer's bar.

    Returns:
        The folder of the best adapter, and a report.

    Raises:
        ModelError: the model cannot be loaded, or has no such layers for an adapter.
        OutputError: the folder cannot be written.
    """
    set_seed(seed % 2**32)
    base = load_causal_lm(model, dtype=dtype, device=device)
    shared_attention.enable(base, sharing)
    adapted = with_adapter(base, config)
    where = resolve_device(device)
    bf16 = resolve_dtype(dtype, where) is torch.bfloat16
    best = checkpoints / "best"
    objective = Objective(adapted, config.loss, labels)
    with _one_sentence(checkpoints), objective.installed(adapted):
        trainer = _GroupTrainer(
            objective,
            valid,
            best,
            model=adapted,
            args=_arguments(config, checkpoints, len(groups), bool(valid), seed, where, bf16, progress),
            train_dataset=cast(Any, groups),
            eval_dataset=cast(Any, list(valid)) if valid else None,
            data_collator=_collate,
            callbacks=[_NewEpoch(groups), _EarlyStop(config.patience)],
        )
        if not progress:
            trainer.remove_callback(PrinterCallback)
        history = _go_on(trainer, checkpoints, config.patience)
        if not valid:
            _save_best(adapted, best, 0.0, trainer.state.global_step)
    value, step = _best(best)
    return best, TrainingReport(_log_rows(history), step, value, len(groups))


@contextmanager
def _one_sentence(folder: Path) -> Iterator[None]:
    """Turn what a full disk makes of Python, safetensors and torch into one sentence."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch's file writer
            raise
        raise OutputError(
            f"The folder {folder} cannot be written ({error}); free space and run the same command again."
        ) from error


def with_adapter(base: Any, config: TrainConfig) -> Any:
    """Return the model with a fresh LoRA adapter, the only part that learns."""
    targets = config.lora.target_modules
    lora = PeftLoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    try:
        with quiet_peft():
            return get_peft_model(base, lora)
    except ValueError as error:
        raise ModelError(
            f"train.lora.target_modules: the model has no layers {targets!r}; use `all-linear` or others."
        ) from error


def _go_on(trainer: Trainer, checkpoints: Path, patience: int) -> list[dict[str, float]]:
    """Train from the newest checkpoint to the end, and return the log; a training that is over stays so."""
    newest = _newest_checkpoint(checkpoints)
    if newest is not None:
        state = TrainerState.load_from_json(f"{newest}/trainer_state.json")
        if _is_over(state.log_history, patience):  # killed after an early stop
            return list(state.log_history)
    trainer.train(resume_from_checkpoint=newest)
    return list(trainer.state.log_history)


def _is_over(history: list[dict[str, float]], patience: int) -> bool:
    """Whether `patience` validations have passed without a better one."""
    values = [row["eval_recall_sum"] for row in history if "eval_recall_sum" in row]
    return bool(values) and len(values) - 1 - values.index(max(values)) >= patience


def _collate(batch: list[TrainingGroup]) -> dict[str, Any]:
    """Hand the groups on as they are; packing replaces padding."""
    return {"groups": batch}


def _arguments(
    config: TrainConfig,
    folder: Path,
    n: int,
    validate: bool,
    seed: int,
    device: torch.device,
    bf16: bool,
    progress: bool,
) -> TrainingArguments:
    steps = max(1, -(-n // config.batch_size))
    saves_memory: dict[str, Any] = {"activation_checkpointing": True} if config.gradient_checkpointing else {}
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.batch_size // config.micro_batch_size,
        learning_rate=config.learning_rate,
        num_train_epochs=config.epochs,
        warmup_steps=round(config.warmup_ratio * steps * config.epochs),
        lr_scheduler_type=config.schedule,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_betas[0],
        adam_beta2=config.adam_betas[1],
        max_grad_norm=config.max_grad_norm,
        bf16=bf16,
        use_cpu=device.type == "cpu",
        eval_strategy="steps" if validate else "no",
        eval_steps=max(1, steps // config.evaluations),
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=2,
        logging_steps=1,
        seed=seed % 2**32,
        data_seed=seed % 2**32,
        report_to=config.report_to,
        disable_tqdm=not progress,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **saves_memory,
    )


def _newest_checkpoint(folder: Path) -> str | None:
    """Return the newest checkpoint that was written to its end; the Trainer's state is written last."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)  # killed while it was written
        else:
            whole.append((int(state["global_step"]), str(path)))
    return max(whole)[1] if whole else None


def _best(folder: Path) -> tuple[float, int]:
    """Return the best validation result so far and its step."""
    try:
        note = json.loads((folder / "best.json").read_text())
    except OSError:
        return -1.0, 0
    return float(note["recall_sum"]), int(note["step"])


def _save_best(model: Any, folder: Path, value: float, step: int) -> None:
    """Replace the best adapter in one move, so that a kill leaves the old or the new one."""
    fresh = folder.with_name("best.new")
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(fresh)
    (fresh / "best.json").write_text(json.dumps({"recall_sum": value, "step": step}))
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def _log_rows(history: list[dict[str, float]]) -> list[dict[str, float]]:
    keep = ("step", "epoch", "loss", "learning_rate", "grad_norm", "eval_recall_sum")
    return [
        {k: row[k] for k in keep if k in row} for row in history if "loss" in row or "eval_recall_sum" in row
    ]
