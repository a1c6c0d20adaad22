"""Turn a GGUF file into a safetensors folder once, safely when several processes ask at the same time.

Engines and `models` decide when; this only does it. The weights keep the values that quantisation left them
(float32), so `llamacpp` and `transformers` run the same model.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from trsr.errors import MissingExtraError, ModelError, OutputError, first_line


def dequantize(gguf: Path, folder: Path, *, quiet: bool = False) -> Path:
    """Return `folder`, filled with the de-quantised model and its tokenizer if it is not there yet.

    It appears whole or not at all: written beside its place and renamed; a lock file keeps a second process
    waiting for the first.

    Args:
        gguf: The quantised model.
        folder: Where the result belongs.
        quiet: Whether to keep stderr silent.

    Raises:
        MissingExtraError: transformers or gguf is not installed.
        ModelError: transformers cannot read the file.
        OutputError: the cache folder cannot be written.
    """
    if folder.is_dir():
        return folder
    try:
        from filelock import FileLock
    except ImportError as error:
        raise MissingExtraError("transformers", "hf") from error
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            if not folder.is_dir():  # another process may have made it while we waited
                _say(quiet, f"De-quantising {gguf.name} once (about 40 s for 135 million weights) ...")
                started = time.perf_counter()
                _fill(gguf, folder)
                _say(quiet, f"... done in {time.perf_counter() - started:.0f} s, kept in {folder}.")
    except OSError as error:
        raise OutputError(
            f"The model cache {folder.parent} cannot be written ({error.strerror or error}): "
            "free some space, or set TRSR_CACHE to another folder."
        ) from error
    return folder


def _fill(gguf: Path, folder: Path) -> None:
    """Convert into a temporary folder on the same disk and move it into place."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # transformers' bars; `_say` has said what happens
            model, tokenizer = _load(gguf)
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        for file in temporary.iterdir():  # both are made private; a cache may be shared
            file.chmod(0o644)
        temporary.chmod(0o755)
        os.replace(temporary, folder)  # noqa: PTH105  # Path.replace would say the same
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _load(gguf: Path) -> tuple[Any, Any]:
    """Load a GGUF through transformers as a plain float32 model and its tokenizer."""
    if importlib.util.find_spec("gguf") is None:  # transformers would say so less clearly, and later
        raise MissingExtraError("gguf", "hf")
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtraError(error.name or "transformers", "hf") from error
    try:
        file: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **file)
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, **file, dtype=torch.float32)
    except Exception as error:  # a broken file fails anywhere in the reader
        raise ModelError(
            f"The file {gguf} could not be read by transformers ({first_line(error)}): "
            "use the model's safetensors folder, or the engine `llamacpp`."
        ) from error
    # What was loaded counts as quantised and refuses to be saved: put its weights into a fresh model.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    return plain, tokenizer


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)
