"""How the recommender is fine-tuned, as configuration; light to import."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trsr.errors import ConfigError

Loss = Literal["answer", "listwise", "joint", "full"]
ProfileKind = Literal["own", "none", "counted"]
"""Which profile a prompt has: the one that the run writes, no profile, or the counted one."""


class LoraConfig(BaseModel):
    """The adapter: W + alpha / r x B A on the target layers (Hu et al., ICLR 2022)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(default=16, ge=1)
    """Rank of the update."""
    alpha: int = Field(default=32, ge=1)
    """Scale of the update."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Layers that get an adapter; the paper's are `[q_proj, k_proj, v_proj, o_proj]`."""
    target_parameters: tuple[str, ...] = ()
    """Weights outside layers that get one, by the ends of their names: the experts of a mixture, for example
    `[experts.gate_up_proj, experts.down_proj]`. Needs `dropout: 0`."""


class ProfileMix(BaseModel):
    """Shares of the training users, drawn again each epoch, who are shown without the profile of the run.

    One model then ranks with a written, a counted and no profile, so the three can be compared on the same
    weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    none: float = Field(default=0.0, ge=0, le=1)
    """Without a profile."""
    counted: float = Field(default=0.0, ge=0, le=1)
    """With a counted profile."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.none + self.counted > 1:
            raise ValueError(f"none and counted are {self.none + self.counted:g} in all, more than 1")
        return self


class TrainConfig(BaseModel):
    """How the recommender is fine-tuned."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    loss: Loss = "joint"
    """`answer`, `listwise`, `joint`, or `full` (the paper's: over every token of the prompts, here the mean
    over each user's tokens: users with long prompts count as much as others). `joint` has the largest
    mrr@10 on MIND and Amazon Office; it beats `answer`, has no significant difference to `listwise`, and
    its scores stay probabilities (`docs/results.md`)."""
    learning_rate: float = Field(default=5e-4, gt=0)
    warm_start: str | None = None
    """The model folder of an earlier run, `RUN/model`, whose adapter training begins with; None for a fresh
    one. The rest of that run must be there: it shows which targets the model has already seen."""
    epochs: int = Field(default=1, ge=0)
    """Passes over the training users; 0 takes the model of `warm_start` as it is."""
    max_steps: int | None = Field(default=None, ge=1)
    """Most optimizer steps; None for no limit."""
    batch_size: int = Field(default=8, ge=1)
    """Users per optimizer step of all processes together, by accumulation; each with all its candidates."""
    micro_batch_size: int = Field(default=1, ge=1)
    """Users per forward pass of one process, at most `batch_size`; more than one pays off on a GPU."""
    resample_negatives: bool = True
    """Whether each epoch draws its negatives again."""
    profiles: ProfileMix = ProfileMix()
    """Users shown with no profile or a counted one."""
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "cosine"
    weight_decay: float = Field(default=5e-4, ge=0)
    adam_betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = Field(default=1.0, gt=0)
    lora: LoraConfig = LoraConfig()
    gradient_checkpointing: bool = False
    """Trades time for memory; for large models."""
    evaluations: int = Field(default=2, ge=1)
    """Validations per epoch."""
    patience: int = Field(default=3, ge=1)
    """Validations without a better result after which training stops."""
    save_steps: int = Field(default=10, ge=1)
    """Optimizer steps between checkpoints; a killed training repeats fewer than that."""
    report_to: str = "none"
    """Where else to log, as the Trainer calls it: `tensorboard`, `wandb`, `mlflow`, ..."""

    def n_steps(self, n_users: int) -> int:
        """Return the optimizer steps of a training on `n_users` users that is not ended early."""
        steps = self.epochs * self._epoch_steps(n_users)
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def n_validations(self, n_users: int) -> int:
        """Return the validations of that training after its first step; the last is near its end."""
        steps = self.n_steps(n_users)
        return max(1, round(self.evaluations * steps / self._epoch_steps(n_users))) if steps else 0

    def passes_per_step(self, n_processes: int) -> int:
        """Return the forward passes that each process makes for one optimizer step.

        Raises:
            ConfigError: the processes cannot share a batch equally.
        """
        n_at_once = self.micro_batch_size * n_processes
        if self.batch_size % n_at_once:
            raise ConfigError(
                f"train.batch_size: found {self.batch_size} users per step, which {n_processes} processes "
                f"with micro_batch_size {self.micro_batch_size} cannot share equally; "
                f"choose a multiple of {n_at_once}."
            )
        return self.batch_size // n_at_once

    def _epoch_steps(self, n_users: int) -> int:
        return -(-n_users // self.batch_size)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.epochs and self.warm_start is None:
            raise ValueError("epochs 0 trains nothing; name a model in `warm_start`, or set `train: null`")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of micro_batch_size")
        return self
