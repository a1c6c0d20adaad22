"""How many tokens a model reads at most, prompt and answer together, without loading its weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from trsr.errors import EngineError, MissingExtraError, ModelError, first_line
from trsr.llm import models
from trsr.llm.base import Tokenizer
from trsr.llm.engines import EngineConfig, FakeEngine, LlamaCppEngine, OpenAIEngine, TransformersEngine

_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "n_ctx",
)
# The rotary embeddings whose configuration names the context before it was stretched.
_STRETCHED = ("linear", "dynamic", "ntk", "yarn")
# Of models whose first position is behind that of the padding, so that some places are never used.
_OFFSET = ("roberta", "camembert", "xmod", "data2vec-text")
_SANE = 10**9
"""A tokenizer that knows no limit says 10^30."""
# Sizes of the scalar values of a GGUF file, by their type.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


def context_length(name: str) -> int | None:
    """Return how many tokens a model reads at most; None where nothing says it.

    Args:
        name: As for `models.locate`; one on the hub is downloaded.

    Raises:
        ModelError: there is no such model, or its configuration cannot be read.
        MissingExtraError: transformers is not installed.
    """
    source = models.locate(name)
    if source.kind == "gguf" and source.path is not None:
        return gguf_context(source.path)
    config, folder = read_config(name), models.hf_folder(name)
    return context_of(config) or _tokenizer_limit(folder)


def read_config(name: str) -> Any:
    """Return a model's configuration as transformers reads it.

    Raises:
        ModelError: it cannot be read.
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


def context_of(config: Any) -> int | None:
    """Return the context that a configuration of transformers names, stretched as its rotary embedding is."""
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


def _tokenizer_limit(folder: Path) -> int | None:
    """Return `model_max_length` of a tokenizer, where the model itself names no limit and this is one."""
    try:
        told = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        limit = int(told["model_max_length"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return limit if 0 < limit < _SANE else None


def gguf_context(file: Path) -> int | None:
    """Return the context that the head of a GGUF file names; None where it does not, or is damaged."""
    try:
        with file.open("rb") as stream:
            magic, _version, _n_tensors, n_values = struct.unpack("<4sIQQ", stream.read(24))
            for _ in range(n_values if magic == b"GGUF" else 0):
                key, kind = _gguf_string(stream), _gguf_int(stream, 4)
                if key.endswith(b".context_length") and kind in _SIZES:
                    return _gguf_int(stream, _SIZES[kind]) or None
                _skip(stream, kind)
    except (OSError, struct.error, KeyError):
        pass  # whoever loads the file says what is wrong with it
    return None


def _gguf_int(stream: BinaryIO, size: int) -> int:
    return int.from_bytes(stream.read(size), "little")


def _gguf_string(stream: BinaryIO) -> bytes:
    return stream.read(_gguf_int(stream, 8))


def _skip(stream: BinaryIO, kind: int) -> None:
    """Pass over a value of a GGUF file."""
    if kind == _STRING:
        _gguf_string(stream)
    elif kind == _ARRAY:
        inner, n = _gguf_int(stream, 4), _gguf_int(stream, 8)
        if inner in _SIZES:
            stream.seek(n * _SIZES[inner], 1)
        else:
            for _ in range(n):
                _skip(stream, inner)
    else:
        stream.seek(_SIZES[kind], 1)


def engine_context(engine: EngineConfig) -> int | None:
    """Return the context of the model that an engine asks; None where nobody says it.

    Raises:
        ModelError, MissingExtraError: as `context_length`.
    """
    match engine:
        case FakeEngine():
            return None
        case LlamaCppEngine():
            source = models.locate(engine.model)
            file = source.path if source.kind == "gguf" else models.gguf_file(engine.model)
            return None if file is None else gguf_context(file)
        case TransformersEngine():
            return context_length(engine.model)
        case OpenAIEngine():
            return server_context(engine)


def server_context(server: OpenAIEngine) -> int | None:
    """Return the `max_model_len` that a server tells of its model, as vLLM and SGLang do.

    A server that cannot be asked has none here: the first call says what is wrong with it.
    """
    try:
        from trsr.llm.remote_scoring import RemoteScorer
    except MissingExtraError:
        return None
    try:
        listed = RemoteScorer(
            server.base_url, server.model, api_key_env=server.api_key_env, timeout=10.0, retries=0
        ).models()
    except EngineError:
        return None
    found = [one.get("max_model_len") for one in listed if one.get("id") == server.model]
    return next((length for length in found if isinstance(length, int) and length > 0), None)
