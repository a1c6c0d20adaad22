"""Load Hugging Face models and tokenizers."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from trsr.errors import MissingExtraError, ModelError, first_line
from trsr.llm import models
from trsr.llm.architecture import forget_lengths
from trsr.llm.chat_format import PROMPT_DATE, Tokenizer

hf_logging.disable_progress_bar()
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


class HfTokenizer(Tokenizer):
    """A Hugging Face tokenizer behind the `Tokenizer` protocol.

    Raises:
        ModelError: the folder holds no tokenizer that can be read.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            self.hf: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # foreign files fail in any way
            raise ModelError(
                f"The folder {folder} holds no tokenizer that can be read ({first_line(error)}); "
                "use a whole model."
            ) from error
        added = [token.content for token in self.hf.added_tokens_decoder.values() if token.special]
        self.special_texts: tuple[str, ...] = tuple(dict.fromkeys([*self.hf.all_special_tokens, *added]))
        template = getattr(self.hf, "chat_template", None)
        self.has_chat_template = template is not None
        if isinstance(template, str):
            self.hf.chat_template = _TODAY.sub(lambda call: repr(PROMPT_DATE.strftime(call[2])), template)
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
            f"The device {device!r} is not there ({first_line(error)}); use auto, cpu or cuda."
        ) from error
    return found


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype called `dtype`; `auto` is bfloat16 if the device supports it, else float32.

    Raises:
        ModelError: the dtype is unknown.
    """
    if dtype == "auto":
        on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if on_gpu else torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise ModelError(f"The dtype {dtype!r} is unknown; use auto, {', '.join(known)}.")
    return known[dtype]


Quantization = Literal["4bit"] | None
"""How weights are rounded on loading."""


def four_bit(where: torch.device, dtype: torch.dtype) -> Any:
    """Return transformers' settings for 4 bits: NF4, double quantization (Dettmers et al., 2023).

    Raises:
        ModelError: the device is not an NVIDIA GPU.
        MissingExtraError: bitsandbytes is not installed.
    """
    if where.type != "cuda" or torch.version.cuda is None:
        raise ModelError(
            "recommender.quantization: found 4bit, which needs an NVIDIA GPU, but the device is "
            f"{where.type}; leave it out, or use a machine with such a GPU."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "4bit")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h
_KEEP_BYTES = 2**31 - 1
_GROW_BYTES = 64 * 2**20


def reuse_large_buffers() -> bool:
    """Keep freed memory in the process, up to 2 GB, and serve large blocks from it.

    Otherwise glibc maps every large temporary of a forward pass again, with its page faults. Does nothing
    with other C libraries or if the user has set glibc's `MALLOC_...` variables.

    Returns:
        Whether the allocator was changed.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _KEEP_BYTES), (_M_TOP_PAD, _GROW_BYTES))
    return all(mallopt(name, value) for name, value in settings)


# Their files may hold all weights of a language model, which was not trained for the next token.
_OTHER_HEAD = re.compile(r"For(?:MaskedLM|QuestionAnswering|(?:Sequence|Token)Classification)$")


def refuse_made_up(name: str, weights: Collection[str]) -> None:
    """Refuse a model with weights missing from its files, which transformers has initialized at random.

    Raises:
        ModelError: naming one of them.
    """
    if weights:
        others = f" and {len(weights) - 1} others" if len(weights) > 1 else ""
        raise ModelError(
            f"The files of the model {name!r} hold no weights of that size for {min(weights)}{others}, "
            "which its configuration needs; use a whole causal language model."
        )


def load_causal_lm(
    name: str, *, dtype: str = "auto", device: str = "auto", quantization: Quantization = None
) -> Any:
    """Load a causal language model for inference or training.

    Args:
        name: The embedded model's name, a hub id or a local folder.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        quantization: `4bit`, or None for no rounding.

    Raises:
        ModelError: there is no such model, or it cannot be loaded.
        MissingExtraError: the package for `quantization` is not installed.
    """
    where = resolve_device(device)
    if where.type == "cpu":
        reuse_large_buffers()
    precision = resolve_dtype(dtype, where)
    rounded = {}
    if quantization == "4bit":  # weights are rounded on the device while loading
        rounded = {"quantization_config": four_bit(where, precision), "device_map": {"": where}}
    folder = models.hf_folder(name)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=precision,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below
            trust_remote_code=False,
            **rounded,
        )
    except Exception as error:  # foreign files fail in any way, packages may be missing
        raise ModelError(
            f"The model {name!r} cannot be loaded as a causal language model ({first_line(error)}); "
            "use another."
        ) from error
    model, found = loaded
    refuse_made_up(name, {*found["missing_keys"], *(key[0] for key in found["mismatched_keys"])})
    if other := [head for head in model.config.architectures or () if _OTHER_HEAD.search(head)]:
        raise ModelError(
            f"The model {name!r} does not predict the next token ({other[0]}); use a causal language model."
        )
    model = model.eval() if rounded else model.to(where).eval()
    forget_lengths(model)
    return model
