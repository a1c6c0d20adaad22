"""Supervised fine-tuning with LoRA: PEFT's adapters, Hugging Face's Trainer, our packed groups and losses.

A forward pass reads each user's prefix with all candidates once; gradients are accumulated over `batch_size`
users, which several processes share (see `batches`). Checkpoints hold everything, so a killed training goes
on where it was and ends with the same weights. Only the main process writes.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import prepare_model_for_kbit_training
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from trsr.errors import ModelError, OutputError, RunMismatchError
from trsr.llm import prefix_attention
from trsr.llm.base import LabelTokens, Sharing
from trsr.llm.margins import finite
from trsr.llm.transformers import Quantization, load_causal_lm, resolve_device, resolve_dtype
from trsr.recommend.model_folder import load_adapter
from trsr.train import processes
from trsr.train.batches import Shares, WeightedGroups, passes_per_batch
from trsr.train.config import TrainConfig
from trsr.train.dataset import EpochGroups, TrainingGroup, recall_sum
from trsr.train.lora import add_lora
from trsr.train.losses import Objective


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
        self, objective: Objective, shares: Shares, valid: Sequence[TrainingGroup], best: Path, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.objective: Objective = objective
        self.shares = shares
        self.valid = valid
        self.best = best
        self.model_accepts_loss_kwargs = False  # our weights make a mean over passes that of the users

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return this process's share of each batch; accelerate would share batches out in its own way."""
        return DataLoader(
            cast(Any, self.train_dataset), batch_sampler=self.shares, collate_fn=self.data_collator
        )

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """Return the weighted sum of some users' losses."""
        losses = self.objective(model, inputs["groups"])
        return (losses * losses.new_tensor(inputs["weights"])).sum()

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Rank the validation users, log R@3 + R@5 + R@10, keep the adapter if it is the best so far."""
        model: Any = self.model
        model.eval()
        values = self._recall_sums(model)
        model.train()
        value = sum(values) / len(values)
        metrics = {"eval_recall_sum": value}
        self.log(metrics)
        if processes.agree(value > _best(self.best)[0]):
            _save_best(model, self.best, value, self.state.global_step)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _recall_sums(self, model: Any) -> list[float]:
        """Return each validation user's value; the processes take turns, each as many as the others."""
        n, step = len(self.valid), processes.count()
        turns = [self.valid[min(start + processes.index(), n - 1)] for start in range(0, n, step)]
        own: list[float] = []
        together = self.args.per_device_train_batch_size
        with torch.no_grad():
            for start in range(0, len(turns), together):
                some = turns[start : start + together]
                margins = self.objective.margins(model, [one.group for one in some])
                found = [finite(m.cpu().numpy(), model) for m in margins]
                own += [recall_sum(m, one.labels) for m, one in zip(found, some, strict=True)]
        every = processes.gather(own)
        return [every[place % step][place // step] for place in range(n)]

    def _save_rng_state(self, output_dir: str) -> None:
        """Save it; only then may the main process end the checkpoint with the Trainer's state."""
        super()._save_rng_state(output_dir)
        processes.wait()


class _NewEpoch(TrainerCallback):
    """Tells groups and shares which epoch begins; a data loader would not in every arrangement."""

    def __init__(self, groups: EpochGroups, shares: Shares) -> None:
        self.groups, self.shares = groups, shares

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        epoch = int((state.epoch or 0) + 1e-6)  # a fraction after a restart within an epoch
        self.groups.set_epoch(epoch)
        self.shares.set_epoch(epoch)


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
        control.should_training_stop |= _is_over(state.log_history, self.patience)


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
    quantization: Quantization = None,
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
        quantization: How the base model is rounded, see `load_causal_lm`.
        sharing: How candidates share their prefix, see `shared_attention.enable`.
        progress: Whether to show the Trainer's bar.

    Returns:
        The folder of the best adapter, and a report.

    Raises:
        ConfigError: the processes cannot share a batch equally.
        ModelError: the model cannot be loaded, has no such layers for an adapter, or cannot be sharded.
        OutputError: the folder cannot be written.
        RunMismatchError: the checkpoints are of another kind: sharded, or not.
    """
    shares = Shares(len(groups), config, seed % 2**32, processes.count(), processes.index())
    set_seed(seed % 2**32)
    where = _own_device(device)
    precision = resolve_dtype(dtype, where)
    # A model that is sharded need not fit on one device: it is loaded beside it.
    home = "cpu" if processes.is_sharded() else str(where)
    named = str(precision).removeprefix("torch.")
    base = load_causal_lm(model, dtype=named, device=home, quantization=quantization)
    if quantization is not None:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    prefix_attention.enable(base, sharing)
    adapted = with_adapter(base, config)
    best = checkpoints / "best"
    objective = Objective(adapted, config.loss, labels)
    if processes.is_sharded():
        _check_shardable(objective, model, where)
    bf16 = precision is torch.bfloat16
    with _one_sentence(checkpoints), objective.installed(adapted):
        trainer = _GroupTrainer(
            objective,
            shares,
            valid,
            best,
            model=adapted,
            args=_arguments(config, checkpoints, len(groups), bool(valid), seed, where, bf16, progress),
            train_dataset=cast(Any, WeightedGroups(groups)),
            eval_dataset=cast(Any, list(valid)) if valid else None,
            data_collator=_collate,
            callbacks=[_NewEpoch(groups, shares), _EarlyStop(config.patience)],
        )
        if not progress:
            trainer.remove_callback(PrinterCallback)
        if processes.count() > 1:  # the adapter is made, equal everywhere; dropout should not be
            torch.manual_seed(seed % 2**32 + processes.index())
            # torch has a new word for this that the Trainer does not know
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        history = _go_on(trainer, checkpoints, config.patience)
        if not valid:
            _save_best(trainer.model, best, 0.0, trainer.state.global_step)
    value, step = processes.agree(_best(best))
    return best, TrainingReport(_log_rows(history), step, value, len(groups))


def _own_device(device: str) -> torch.device:
    """Return the device of this process: each has a GPU of its own.

    Raises:
        ModelError: there is no such device, or all processes would share it.
    """
    where = resolve_device(device)
    if processes.count() == 1 or where.type == "cpu":
        return where
    if where.index is not None:
        raise ModelError(
            f"recommender.device: found {device!r}, which {processes.count()} processes cannot share; "
            "use auto."
        )
    return torch.device(where.type, processes.local_index())


def _check_shardable(objective: Objective, model: str, where: torch.device) -> None:
    """Refuse what FSDP cannot do: its processes must make the same passes, on GPUs."""
    if where.type == "cpu":  # accelerate would leave the model whole, and say nothing
        raise ModelError(
            "recommender.device: found cpu, but accelerate shards models on GPUs only; "
            "use configs/accelerate/cpu.yaml."
        )
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ModelError(
            "FSDP_VERSION: found 1, which cannot hold a frozen model with an adapter here; "
            "set fsdp_version: 2, as configs/accelerate/fsdp.yaml does."
        )
    if not objective.always_shares:
        raise ModelError(
            f"The model {model!r} does not share prefixes of every length, so its processes would make "
            "different passes and FSDP hang; use configs/accelerate/ddp.yaml."
        )


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
    """Return the model with a LoRA adapter, fresh or that of `warm_start`, the only part that learns.

    A log line says which weights of experts get none.
    """
    if config.warm_start is not None:
        return load_adapter(base, Path(config.warm_start), trainable=True)
    return add_lora(base, config.lora)


def _go_on(trainer: Trainer, checkpoints: Path, patience: int) -> list[dict[str, float]]:
    """Train from the newest checkpoint to the end, and return the log; a training that is over stays so."""
    newest = processes.agree(_newest_checkpoint(checkpoints) if processes.is_main() else None)
    if newest is not None:
        _check_kind(Path(newest))
        state = TrainerState.load_from_json(f"{newest}/trainer_state.json")
        if _is_over(state.log_history, patience):  # killed after an early stop
            return list(state.log_history)
    if trainer.args.num_train_epochs:
        trainer.train(resume_from_checkpoint=newest)
    elif trainer.eval_dataset is not None:
        trainer.evaluate()
    return list(trainer.state.log_history)


def _check_kind(checkpoint: Path) -> None:
    """Refuse to go on from shards without FSDP, and the other way round.

    Raises:
        RunMismatchError: naming the checkpoint.
    """
    sharded = not (checkpoint / "optimizer.pt").exists()
    if sharded != processes.is_sharded():
        found, wanted = ("with", "without") if sharded else ("without", "with")
        raise RunMismatchError(
            f"{checkpoint} was written {found} FSDP and this training runs {wanted}; "
            f"go on as it began, or remove {checkpoint.parent} to begin anew."
        )


def _is_over(history: list[dict[str, float]], patience: int) -> bool:
    """Whether `patience` validations have passed without a better one."""
    values = [row["eval_recall_sum"] for row in history if "eval_recall_sum" in row]
    return bool(values) and len(values) - 1 - values.index(max(values)) >= patience


def _collate(batch: list[tuple[TrainingGroup, float]]) -> dict[str, Any]:
    """Hand the groups on as they are; packing replaces padding."""
    return {"groups": [group for group, _ in batch], "weights": [weight for _, weight in batch]}


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
    steps = config.n_steps(n)
    saves_memory: dict[str, Any] = {"activation_checkpointing": True} if config.gradient_checkpointing else {}
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=passes_per_batch(config, processes.count()),
        learning_rate=config.learning_rate,
        num_train_epochs=config.epochs,
        max_steps=steps if config.max_steps else -1,  # by which the Trainer means no limit
        warmup_steps=round(config.warmup_ratio * steps),
        lr_scheduler_type=config.schedule,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_betas[0],
        adam_beta2=config.adam_betas[1],
        max_grad_norm=config.max_grad_norm,
        bf16=bf16,
        use_cpu=device.type == "cpu",
        eval_strategy="steps" if validate else "no",
        eval_steps=max(1, steps // max(1, config.n_validations(n))),
        eval_on_start=validate and config.warm_start is not None,  # so that it cannot end worse than it began
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
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # none of them changes, and passes may differ in number
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
    state = _whole_adapter(model) if processes.is_sharded() else None
    if processes.is_main():
        fresh = folder.with_name("best.new")
        shutil.rmtree(fresh, ignore_errors=True)
        model.save_pretrained(fresh, **({} if state is None else {"state_dict": state}))
        (fresh / "best.json").write_text(json.dumps({"recall_sum": value, "step": step}))
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    processes.wait()


def _whole_adapter(model: Any) -> dict[str, torch.Tensor]:
    """Return the adapter's parameters from all processes' shards; all of them must ask."""
    return {
        name: cast(Any, weights).full_tensor().cpu()
        for name, weights in model.named_parameters()
        if weights.requires_grad
    }


def _log_rows(history: list[dict[str, float]]) -> list[dict[str, float]]:
    keep = ("step", "epoch", "loss", "learning_rate", "grad_norm", "eval_recall_sum")
    return [
        {k: row[k] for k in keep if k in row} for row in history if "loss" in row or "eval_recall_sum" in row
    ]
