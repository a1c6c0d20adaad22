"""LoRA adapters on a model's layers, and which layers get one before any weight is loaded."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM

from trsr.errors import ModelError, first_line
from trsr.llm.models import read_config
from trsr.recommend.model_folder import load_adapter, quiet_peft
from trsr.train.config import LoraConfig, TrainConfig

_log = logging.getLogger(__name__)
_N_NAMED = 12
_EMBEDDINGS = {"embed_tokens", "embed_in", "embed_out", "wte", "wpe", "lm_head", "embed_positions"}
_MAMBA = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
# Mamba's fused kernels read these layers' weights directly, without the adapter.
_BEHIND_KERNELS = ["out_proj", "conv1d", "x_proj", "dt_proj"]


def with_adapter(base: Any, config: TrainConfig) -> Any:
    """Return the model with the adapter of `warm_start`, or a fresh one, the only trainable part.

    Raises:
        ModelError: the model has none of the layers that are to be adapted.
        RunMismatchError: the folder of `warm_start` holds no adapter for it.
    """
    if config.warm_start is not None:
        return load_adapter(base, Path(config.warm_start), trainable=True)
    return _add_lora(base, config.lora)


def lora_targets(model: str, config: LoraConfig) -> list[str]:
    """Return the names of the layers of a model that get an adapter; only its configuration is read.

    Raises:
        ModelError: the model cannot be read, or a name of `target_modules` matches no layer.
    """
    config_of_model = read_config(model)
    try:
        with torch.device("meta"):  # no memory, no weights
            base: Any = AutoModelForCausalLM.from_config(config_of_model, trust_remote_code=False)
    except Exception as error:  # third-party configurations fail in any way
        raise ModelError(
            f"The model {model!r} cannot be built as a causal language model from its configuration "
            f"({first_line(error)}); use another."
        ) from error
    names, targets = [f".{name}" for name, _ in base.named_modules()], config.target_modules
    if targets == "all-linear":
        missing = []
    elif isinstance(targets, str):
        missing = [] if any(re.fullmatch(targets, name[1:]) for name in names) else [targets]
    else:
        missing = [target for target in targets if not any(name.endswith(f".{target}") for name in names)]
    if missing:
        raise ModelError(
            f"train.lora.target_modules: the model has no layers {', '.join(missing)!r}; use `all-linear`, "
            f"or some of {', '.join(_layer_kinds(base)[:_N_NAMED])}."
        )
    with torch.device("meta"):
        adapted = _add_lora(base, config)
    return [name for name, module in adapted.named_modules() if isinstance(module, BaseTunerLayer)]


def _layer_kinds(base: Any) -> list[str]:
    kinds = dict.fromkeys(
        name.rpartition(".")[2]
        for name, module in base.named_modules()
        if isinstance(weight := getattr(module, "weight", None), torch.Tensor) and weight.dim() == 2
    )
    return [kind for kind in kinds if kind not in _EMBEDDINGS]


def _add_lora(base: Any, config: LoraConfig) -> Any:
    """Add a fresh adapter, and log which weights of experts get none."""
    targets, parameters = config.target_modules, list(config.target_parameters)
    lora = PeftLoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=(_unfit_layers(base) or None) if targets == "all-linear" else None,
        target_parameters=parameters or None,
        task_type="CAUSAL_LM",
    )
    try:
        with quiet_peft():
            adapted = get_peft_model(base, lora)
    except ValueError as error:
        requested = f"{targets!r}" + (f" and {parameters!r}" if parameters else "")
        raise ModelError(
            f"train.lora.target_modules: {requested} cannot have an adapter in this model "
            f"({first_line(error)}); use `all-linear` or other layers."
        ) from error
    if left := experts_without_adapter(adapted):
        _log.warning(
            "train.lora: the weights %s of the experts get no adapter, the other layers do; to train them "
            "too, name them in train.lora.target_parameters.",
            ", ".join(left),
        )
    return adapted


def _unfit_layers(model: Any) -> list[str]:
    """Return the linear layers that cannot have an adapter: routers, grouped layers, and Mamba's."""
    own = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and re.search("Router|Grouped", type(module).__name__)
    ]
    return own + (_BEHIND_KERNELS if model.config.model_type in _MAMBA else [])


def experts_without_adapter(adapted: Any) -> list[str]:
    """Return the ends of the names of weights that hold all experts of a layer and get no adapter.

    Such weights have three dimensions, experts first, and are no layers of their own.
    """
    found = {
        ".".join(name.split(".")[-2:])
        for name, weights in adapted.named_parameters()
        if weights.dim() == 3 and "expert" in name and "lora_" not in name and "base_layer" not in name
    }
    return sorted(found)
