"""Loads Hugging Face models and tokenizers, and says which device and precision they use.

Writing texts with them is the work of `trsr.llm.transformers_generator`, label scoring that of `trsr.rank`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from trsr.errors import ModelError
from trsr.llm import models
from trsr.llm.allocator import reuse_large_buffers
from trsr.llm.architecture import forget_lengths
from trsr.llm.chat_format import ChatTokenizer

hf_logging.disable_progress_bar()


class HfTokenizer(ChatTokenizer):
    """A Hugging Face tokenizer behind the `Tokenizer` protocol.

    Raises:
        ModelError: the folder holds no tokenizer that can be read.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            self.hf: Any = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"The folder {folder} holds no tokenizer that can be read ({_first_line(error)}); "
                "use a whole model."
            ) from error
        added = [token.content for token in self.hf.added_tokens_decoder.values() if token.special]
        self.special_texts: tuple[str, ...] = tuple(dict.fromkeys([*self.hf.all_special_tokens, *added]))
        self.has_chat_template = getattr(self.hf, "chat_template", None) is not None
        self.name = Path(folder).name

    def token_ids(self, text: str, *, adds_special: bool) -> list[int]:
        """Return the library's own ids of a text, with or without the special tokens it adds by itself."""
        return list(self.hf(text, add_special_tokens=adds_special, return_attention_mask=False)["input_ids"])

    def apply_template(self, turns: list[dict[str, str]], variables: dict[str, Any]) -> str:
        """Return turns as the model's chat template writes them, ending where the answer begins."""
        return str(
            self.hf.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **variables)
        )

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of the ids, special tokens included."""
        return str(self.hf.decode(list(token_ids), clean_up_tokenization_spaces=False))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(":. ")


def resolve_device(device: str) -> torch.device:
    """Return the device called `device`; `auto` is the first GPU, else the CPU.

    Raises:
        ModelError: there is no such device on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # torch says "not compiled with CUDA" by an assertion
        raise ModelError(
            f"The device {device!r} is not there ({_first_line(error)}); use auto, cpu or cuda."
        ) from error
    return found


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype called `dtype`; `auto` is bfloat16 where the device computes in it, else float32.

    Raises:
        ModelError: no model computes in it.
    """
    if dtype == "auto":
        on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if on_gpu else torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise ModelError(f"The dtype {dtype!r} is unknown; use auto, {', '.join(known)}.")
    return known[dtype]


def load_causal_lm(name: str, *, dtype: str = "auto", device: str = "auto") -> Any:
    """Load a causal language model for inference or training.

    Args:
        name: The embedded model's name, a hub id or a local folder.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...

    Raises:
        ModelError: there is no such model, or it cannot be loaded.
    """
    where = resolve_device(device)
    if where.type == "cpu":
        reuse_large_buffers()
    folder = models.hf_folder(name)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=resolve_dtype(dtype, where))
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"The model {name!r} cannot be loaded as a causal language model ({_first_line(error)}); "
            "use another."
        ) from error
    model = model.to(where).eval()
    forget_lengths(model)
    return model
