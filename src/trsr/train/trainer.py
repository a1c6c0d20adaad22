"""Supervised fine-tuning with LoRA: PEFT's adapters, Hugging Face's Trainer, packed groups and losses.

A forward pass reads each user's prefix with all candidates once. Checkpoints hold everything, so a killed
training resumes and ends with the same weights. Only the main process writes.
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
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from trsr.errors import ModelError, OutputError, RunMismatchError
from trsr.llm import prefix_attention
from trsr.llm.base import LabelTokens, Sharing
from trsr.llm.prefix_attention import finite
from trsr.llm.transformers import Quantization, load_causal_lm, resolve_device, resolve_dtype
from trsr.train import distributed
from trsr.train.config import TrainConfig
from trsr.train.dataset import EpochGroups, TrainingGroup, recall_sum
from trsr.train.lora import with_adapter
from trsr.train.losses import Objective


@dataclass(frozen=True)
class TrainingReport:
    """The logged rows of a training, and the best validation result with its step."""

    log: list[dict[str, float]]
    best_step: int
    best_recall_sum: float
    n_groups: int


class Passes(Sampler[list[tuple[int, float]]]):
    """The forward passes of one process: (number of a group, weight of its loss) for each of its users.

    The order of all groups depends on seed and epoch only. Batch k is the same `batch_size` groups of it for
    any number of processes; the last batch of an epoch may be shorter. A step's loss is the mean over its
    batch's groups: the Trainer takes the mean over passes and processes, and the weights make up for passes
    of unequal size. All processes have to make the same number of passes, so where several share a batch,
    passes are filled with groups of weight 0.
    """

    def __init__(
        self, groups: EpochGroups, config: TrainConfig, seed: int, n_processes: int = 1, index: int = 0
    ) -> None:
        self._groups, self._seed, self._epoch = groups, seed, 0
        self._n_processes, self._index = n_processes, index
        self._batch_size, self._size = config.batch_size, config.micro_batch_size
        self.per_step = config.passes_per_step(n_processes)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch here and in the groups."""
        self._epoch = epoch
        self._groups.set_epoch(epoch)

    def __len__(self) -> int:
        whole, rest = divmod(len(self._groups), self._batch_size)
        return whole * self.per_step + self._n_passes(rest)

    def __iter__(self) -> Iterator[list[tuple[int, float]]]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(len(self._groups), generator=generator).tolist()
        for first in range(0, len(order), self._batch_size):
            batch = order[first : first + self._batch_size]
            n_passes = self._n_passes(len(batch))
            weight = n_passes * self._n_processes / len(batch)
            for number in range(n_passes):
                start = (number * self._n_processes + self._index) * self._size
                read = [(group, weight) for group in batch[start : start + self._size]]
                if self._n_processes > 1:
                    read += [(batch[0], 0.0)] * (self._size - len(read))
                yield read

    def _n_passes(self, n_users: int) -> int:
        return -(-n_users // (self._size * self._n_processes))


class _NewEpoch(TrainerCallback):
    """Sets the epoch of passes and groups; the Trainer does not where it resumes within an epoch."""

    def __init__(self, passes: Passes) -> None:
        self.passes = passes

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        self.passes.set_epoch(int((state.epoch or 0) + 1e-6))  # a fraction after a restart within an epoch


class _GroupTrainer(Trainer):
    """A Trainer on batches of users' groups, validated by R@3 + R@5 + R@10."""

    def __init__(
        self,
        model: Any,
        objective: Objective,
        groups: EpochGroups,
        valid: Sequence[TrainingGroup],
        *,
        config: TrainConfig,
        folder: Path,
        seed: int,
        **settings: Any,
    ) -> None:
        steps = config.n_steps(len(groups))
        self.passes = Passes(groups, config, seed, distributed.count(), distributed.index())
        self.objective: Objective = objective
        self.valid = valid
        self.best, self.patience = folder / "best", config.patience
        if config.gradient_checkpointing:
            settings["activation_checkpointing"] = True
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=config.micro_batch_size,
            gradient_accumulation_steps=self.passes.per_step,
            learning_rate=config.learning_rate,
            num_train_epochs=config.epochs,
            max_steps=steps if config.max_steps else -1,  # by which the Trainer means no limit
            warmup_steps=round(config.warmup_ratio * steps),
            lr_scheduler_type=config.schedule,
            weight_decay=config.weight_decay,
            adam_beta1=config.adam_betas[0],
            adam_beta2=config.adam_betas[1],
            max_grad_norm=config.max_grad_norm,
            eval_strategy="steps" if valid else "no",
            eval_steps=max(1, steps // max(1, config.n_validations(len(groups)))),
            eval_on_start=bool(valid) and config.warm_start is not None,  # it cannot end worse than that
            save_strategy="steps",
            save_steps=config.save_steps,
            save_total_limit=2,
            logging_steps=1,
            seed=seed,
            data_seed=seed,
            report_to=config.report_to,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            ddp_find_unused_parameters=False,
            ddp_broadcast_buffers=False,  # none of them changes, and passes may differ in number
            **settings,
        )
        super().__init__(
            model,
            arguments,
            train_dataset=cast(Any, groups),
            eval_dataset=cast(Any, list(valid)) if valid else None,
            data_collator=_collate,
            callbacks=[_NewEpoch(self.passes)],
        )
        self.model_accepts_loss_kwargs = False  # the weights make the mean over passes one over users

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the passes of this process; accelerate would share batches out in its own way."""
        return DataLoader(
            cast(Any, self.train_dataset), batch_sampler=self.passes, collate_fn=self.data_collator
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
        if distributed.agree(value > _best(self.best)[0]):
            _save_best(model, self.best, value, self.state.global_step)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.control.should_training_stop |= _is_over(self.state.log_history, self.patience)
        return metrics

    def _recall_sums(self, model: Any) -> list[float]:
        """Return each validation user's value; the processes take turns, each as many as the others."""
        n, step = len(self.valid), distributed.count()
        turns = [self.valid[min(start + distributed.index(), n - 1)] for start in range(0, n, step)]
        size, own = self.args.per_device_train_batch_size, []
        with torch.no_grad():
            for start in range(0, len(turns), size):
                users = turns[start : start + size]
                margins = self.objective.margins(model, [one.group for one in users])
                found = [finite(m.cpu().numpy(), model) for m in margins]
                own += [recall_sum(m, one.labels) for m, one in zip(found, users, strict=True)]
        every = distributed.gather(own)
        return [every[place % step][place // step] for place in range(n)]

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the state and wait, as the main process completes the checkpoint only after all are done."""
        super()._save_rng_state(output_dir)
        distributed.wait()


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
    """Fine-tune an adapter of the base model `model`, from the newest whole checkpoint where there is one.

    Without validation groups the last adapter is kept, else the best one. `dtype` and `quantization` are of
    the base model (see `load_causal_lm`); the adapter is trained in float32. `seed` decides the order of the
    groups and the adapter's first weights.

    Returns:
        The folder of the best adapter, `best` inside `checkpoints`, and a report.

    Raises:
        ConfigError: the processes cannot share a batch equally.
        ModelError: the model cannot be loaded, has no such layers for an adapter, or cannot be sharded.
        OutputError: the folder cannot be written.
        RunMismatchError: the checkpoints are of another kind: sharded, or not.
    """
    seed %= 2**32
    set_seed(seed)
    where = _own_device(device)
    precision = resolve_dtype(dtype, where)
    base = load_causal_lm(
        model,
        dtype=str(precision).removeprefix("torch."),
        device="cpu" if distributed.is_sharded() else str(where),  # it need not fit on one GPU
        quantization=quantization,
    )
    if quantization is not None:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    prefix_attention.enable(base, sharing)
    adapted = with_adapter(base, config)
    objective = Objective(adapted, config.loss, labels)
    if distributed.is_sharded():
        _check_shardable(objective, where)
    with _disk_errors(checkpoints), objective.installed(adapted):
        trainer = _GroupTrainer(
            adapted,
            objective,
            groups,
            valid,
            config=config,
            folder=checkpoints,
            seed=seed,
            bf16=precision is torch.bfloat16,
            use_cpu=where.type == "cpu",
            disable_tqdm=not progress,
        )
        if not progress:
            trainer.remove_callback(PrinterCallback)
        if distributed.count() > 1:  # the adapter is made, equal everywhere; dropout should not be
            torch.manual_seed(seed + distributed.index())
            # the Trainer uses torch's old name for this
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        history = _resume(trainer, checkpoints)
        if not valid:
            _save_best(trainer.model, trainer.best, 0.0, trainer.state.global_step)
    value, step = distributed.agree(_best(trainer.best))
    return trainer.best, TrainingReport(_log_rows(history), step, value, len(groups))


def _own_device(device: str) -> torch.device:
    """Return the device of this process: where there are several, each has a GPU of its own."""
    where = resolve_device(device)
    if distributed.count() == 1 or where.type == "cpu":
        return where
    if where.index is not None:
        raise ModelError(
            f"recommender.device: found {device!r}, which {distributed.count()} processes cannot share; "
            "use auto."
        )
    return torch.device(where.type, int(os.environ.get("LOCAL_RANK", "0")))


def _check_shardable(objective: Objective, where: torch.device) -> None:
    # On CPUs accelerate would silently leave the model whole; FSDP 1 cannot hold a frozen model with an
    # adapter; processes that make different passes wait for each other forever.
    version = os.environ.get("FSDP_VERSION", "1")
    if where.type == "cpu" or version != "2" or not objective.always_shares:
        shares = "shares" if objective.always_shares else "does not share"
        raise ModelError(
            f"FSDP: found the device {where.type}, fsdp_version {version} and a model that {shares} prefixes "
            "of every length, expected GPUs, version 2 and a model that shares them; "
            "use configs/accelerate/fsdp.yaml, ddp.yaml or, on CPUs, cpu.yaml."
        )


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Translate the errors of Python, safetensors and torch on a full disk into OutputError."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch's file writer
            raise
        raise OutputError(
            f"The folder {folder} cannot be written ({error}); free space and run the same command again."
        ) from error


def _resume(trainer: _GroupTrainer, checkpoints: Path) -> list[dict[str, float]]:
    """Train from the newest checkpoint to the end, unless training has ended, and return the log.

    Raises:
        RunMismatchError: the checkpoint is sharded and this training is not, or the other way round.
    """
    newest = distributed.agree(_newest_checkpoint(checkpoints) if distributed.is_main() else None)
    if newest is not None:
        sharded = not Path(newest, "optimizer.pt").exists()
        if sharded != distributed.is_sharded():
            found, wanted = ("with", "without") if sharded else ("without", "with")
            raise RunMismatchError(
                f"{newest} was written {found} FSDP and this training runs {wanted}; "
                f"train as before, or remove {checkpoints} to start again."
            )
        state = TrainerState.load_from_json(f"{newest}/trainer_state.json")
        if _is_over(state.log_history, trainer.patience):  # killed after an early stop
            return list(state.log_history)
    if trainer.args.num_train_epochs:
        trainer.train(resume_from_checkpoint=newest)
    elif trainer.eval_dataset is not None:
        trainer.evaluate()
    return list(trainer.state.log_history)


def _is_over(history: list[dict[str, float]], patience: int) -> bool:
    """Return whether `patience` validations have passed without a better one."""
    values = [row["eval_recall_sum"] for row in history if "eval_recall_sum" in row]
    return bool(values) and len(values) - 1 - values.index(max(values)) >= patience


def _collate(batch: list[tuple[TrainingGroup, float]]) -> dict[str, Any]:
    """Keep the groups as they are; packing replaces padding."""
    return {"groups": [group for group, _ in batch], "weights": [weight for _, weight in batch]}


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
    """Replace the best adapter in one move: a kill leaves the old or the new one."""
    weights = {}
    if distributed.is_sharded():  # gathered from the shards of all processes
        trained = {name: part for name, part in model.named_parameters() if part.requires_grad}
        weights["state_dict"] = {name: part.full_tensor().cpu() for name, part in trained.items()}
    if distributed.is_main():
        fresh = folder.with_name("best.new")
        shutil.rmtree(fresh, ignore_errors=True)
        model.save_pretrained(fresh, **weights)
        (fresh / "best.json").write_text(json.dumps({"recall_sum": value, "step": step}))
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    distributed.wait()


def _log_rows(history: list[dict[str, float]]) -> list[dict[str, float]]:
    keep = ("step", "epoch", "loss", "learning_rate", "grad_norm", "eval_recall_sum")
    return [
        {k: row[k] for k in keep if k in row} for row in history if "loss" in row or "eval_recall_sum" in row
    ]
