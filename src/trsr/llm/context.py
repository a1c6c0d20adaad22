"""What is known of a model without loading its weights: context length, vocabulary, tokenizer, text id."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from trsr.errors import MissingExtraError, ModelError, first_line
from trsr.llm import models
from trsr.llm.answers import Thinking, with_thinking
from trsr.llm.chat_format import Tokenizer

if TYPE_CHECKING:
    from trsr.llm.transformers import HfTokenizer

_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "n_ctx",
)
# Rotary embeddings whose configuration states the context before it was stretched.
_STRETCHED = ("linear", "dynamic", "ntk", "yarn")
# Models whose positions begin after that of the padding, so that some are never used.
_OFFSET = ("roberta", "camembert", "xmod", "data2vec-text")
_NO_LIMIT = 10**9  # a tokenizer without a limit says 10^30
# Sizes in bytes of the scalar values of a GGUF file, by their type.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


def context_length(name: str) -> int | None:
    """Return how many tokens a model reads at most, prompt and answer together; None where nothing says it.

    Args:
        name: As for `models.locate`; one on the hub is downloaded.

    Raises:
        ModelError: there is no such model, or its configuration cannot be read.
        MissingExtraError: transformers is not installed.
    """
    source = models.locate(name)
    if source.kind == "gguf" and source.path is not None:
        return gguf_context(source.path)
    if context := context_of(read_config(name)):
        return context
    try:
        tokenizer = json.loads((models.hf_folder(name) / "tokenizer_config.json").read_text(encoding="utf-8"))
        limit = int(tokenizer["model_max_length"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return limit if 0 < limit < _NO_LIMIT else None


def read_config(name: str) -> Any:
    """Return a model's configuration as transformers reads it.

    Raises:
        ModelError: it cannot be read.
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise MissingExtraError("transformers", "hf") from error
    folder = models.hf_folder(name)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # files of others fail in any way
        raise ModelError(
            f"The configuration of the model {name!r} cannot be read ({first_line(error)}); "
            "use another model."
        ) from error


def context_of(config: Any) -> int | None:
    """Return the context length of a transformers configuration, stretched as its rotary embedding is."""
    text = config.get_text_config(decoder=True)
    named = [value for key in _KEYS if isinstance(value := getattr(text, key, None), int) and value > 0]
    if not named:
        return None
    context = min(named)
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if (rope.get("rope_type") or rope.get("type")) in _STRETCHED:
        original = rope.get("original_max_position_embeddings") or context
        context = max(context, int(original * float(rope.get("factor") or 1)))
    if any(kind in str(text.model_type) for kind in _OFFSET):
        context -= (text.pad_token_id or 0) + 1
    return context


def gguf_context(file: Path) -> int | None:
    """Return the context length in the header of a GGUF file; None where it has none, or is damaged."""
    try:
        with file.open("rb") as stream:
            magic, _version, _n_tensors, n_values = struct.unpack("<4sIQQ", stream.read(24))
            for _ in range(n_values if magic == b"GGUF" else 0):
                key = stream.read(_number(stream, 8))
                kind = _number(stream, 4)
                if key.endswith(b".context_length") and kind in _SIZES:
                    return _number(stream, _SIZES[kind]) or None
                _skip(stream, kind, 1)
    except (OSError, EOFError, struct.error, KeyError):
        pass  # loading the file says what is wrong with it
    return None


def _number(stream: BinaryIO, size: int) -> int:
    found = stream.read(size)
    if len(found) < size:
        raise EOFError
    return int.from_bytes(found, "little")


def _skip(stream: BinaryIO, kind: int, n: int) -> None:
    """Skip `n` values of one type."""
    if kind in _SIZES:
        stream.seek(n * _SIZES[kind], 1)
        return
    for _ in range(n):
        if kind == _STRING:
            stream.seek(_number(stream, 8), 1)
        elif kind == _ARRAY:
            _skip(stream, _number(stream, 4), _number(stream, 8))
        else:
            raise KeyError(kind)


def check_vocabulary(config: Any, tokenizer: Tokenizer, ids: Sequence[int]) -> None:
    """Refuse a prompt with tokens that the model has no weights for: added to its tokenizer alone.

    Args:
        config: Of the model, from transformers.
        tokenizer: Of the prompt.
        ids: The prompt.

    Raises:
        ModelError: naming one of them.
    """
    n_known = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    if isinstance(n_known, int) and (highest := max(ids, default=0)) >= n_known:
        raise ModelError(
            f"The prompt holds the token {tokenizer.decode([highest])!r} ({highest}) of the tokenizer, but "
            f"the model knows the tokens 0 to {n_known - 1}; use the tokenizer that it was made with."
        )


def find_tokenizer(name: str) -> HfTokenizer | None:
    """Return a model's tokenizer; None where it, or a library to read it, is not here. Downloads nothing."""
    try:
        if not models.model_files(name):
            return None
        from trsr.llm.transformers import HfTokenizer
    except (ImportError, MissingExtraError, ModelError):
        return None
    return HfTokenizer(models.hf_folder(name))


def text_model_id(model: str, tokenizer: Tokenizer, thinking: Thinking) -> str:
    """Return the model id under which the texts of the engine `transformers` are kept.

    Texts that answer prompts of version 2 are not those of version 1; `+thinking` never had version 1.
    """
    changed = thinking == "off" and tokenizer.text_prompt_version == 2
    return with_thinking(models.model_id(model) + "+prompt2" * changed, thinking)
