"""What a fine-tuned model folder says about itself (`trsr.json`): training writes it, ranking obeys it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trsr.errors import RunMismatchError
from trsr.llm.base import LabelTokens
from trsr.recommend.calibration import Calibration
from trsr.storage import atomic_write, file_sha256

FILE_NAME = "trsr.json"
WEIGHTS = "adapter_model.safetensors"


class Origin(BaseModel):
    """Where a model was trained from Python, so that `from_pretrained` finds its data and profiles again."""

    model_config = ConfigDict(extra="forbid")

    data: str
    """The dataset folder."""
    summarizer: dict[str, Any] | None = None
    """The arguments of its `Summarizer`; None where it was trained without profiles."""


class AdapterInfo(BaseModel):
    """The facts that scores depend on, and where they came from."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = 1
    base_model: str
    """The name the base model was loaded by."""
    base_model_id: str
    """Its name and revision."""
    template: str
    template_hash: str
    prompt_version: int = 1
    """See `Tokenizer.prompt_version`; model folders made before it was noted have the first."""
    positive_token: int
    negative_token: int
    prompt: dict[str, Any]
    """The resolved prompt configuration."""
    training: dict[str, Any]
    """The resolved training configuration."""
    metrics: dict[str, float]
    """Validation results."""
    calibration: Calibration | None = None
    """How margins become scores; None for sigmoid(margin)."""
    quantization: Literal["4bit"] | None = None
    """How the base model was rounded under the adapter (`recommender.quantization`); None if it was not."""
    origin: Origin | None = None
    """What `trsr.fine_tune` trained it on; None for the model of a run, whose folder says it."""
    versions: dict[str, str]
    adapter_sha256: str | None = None
    """Of `adapter_model.safetensors`; None in model folders made before it was noted."""

    @property
    def labels(self) -> LabelTokens:
        """The answer tokens the adapter was trained on."""
        return LabelTokens(self.positive_token, self.negative_token)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence warnings that say nothing: of every wrapped model, of GPT-2's transposed layers, of experts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
        # PEFT sets ranks for experts' weights by itself, and then does not find them among the layers.
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys", RuntimeWarning)
        warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)  # `load_adapter` refuses
        yield


def load_adapter(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """Return the model with the adapter of a model folder around it, a PEFT model.

    Raises:
        RunMismatchError: the folder says nothing about itself, or its adapter is damaged or of another model.
    """
    from peft import PeftModel

    noted, file = read_adapter_info(folder).adapter_sha256, folder / WEIGHTS
    try:
        if noted is not None and file_sha256(file) != noted:
            raise ValueError(f"its sha256 is not the one that {FILE_NAME} notes")
        with quiet_peft():
            adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
        _check_weights(adapted, file)
    except Exception as error:  # PEFT, safetensors and torch each have errors of their own for a damaged file
        said = " ".join(str(error).split())[:300].rstrip(":. ") or type(error).__name__
        raise RunMismatchError(
            f"The adapter {file} cannot be used ({said}): it is damaged or of another model; copy the whole "
            "model folder again, or train again."
        ) from error
    return adapted


def _check_weights(adapted: Any, file: Path) -> None:
    """Raise ValueError unless a file holds the weights that an adapter has, all of them finite.

    PEFT leaves weights that it does not find as they were drawn, and ignores those that it does not know.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    found, wanted = load_file(file), get_peft_model_state_dict(adapted, save_embedding_layers=False)
    # PEFT saves an embedding whole beside its adapter.
    known = {name for name in found if name in wanted or name.endswith(".base_layer.weight")}
    if missing := sorted(wanted.keys() - found.keys()):
        raise ValueError(f"{len(missing)} of {len(wanted)} weights are missing, as {missing[0]}")
    if unknown := sorted(found.keys() - known):
        raise ValueError(f"it holds weights that this adapter does not have, as {unknown[0]}")
    if broken := sorted(name for name, weights in found.items() if not weights.isfinite().all()):
        raise ValueError(f"{broken[0]} holds numbers that are not finite")


def write_adapter_info(folder: Path, info: AdapterInfo) -> None:
    """Write `trsr.json` into a model folder, in one move.

    Raises:
        OutputError: it cannot be written.
    """
    text = info.model_dump_json(indent=2) + "\n"
    atomic_write(folder / FILE_NAME, lambda file: file.write_text(text, encoding="utf-8"))


def read_adapter_info(folder: Path) -> AdapterInfo:
    """Read a model folder's `trsr.json`.

    Raises:
        RunMismatchError: the folder is no model folder of this version.
    """
    try:
        return AdapterInfo.model_validate(json.loads((folder / FILE_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        said = ""
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            said = f" ({'.'.join(map(str, first['loc']))}: {first['msg']})"
        raise RunMismatchError(
            f"{folder} holds no readable {FILE_NAME}{said}, so it is no model folder of trsr; "
            "train one with `trsr train`."
        ) from error


def check_adapter(
    info: AdapterInfo,
    folder: Path,
    *,
    template_hash: str,
    prompt_version: int,
    base_model_id: str,
    quantization: str | None = None,
) -> None:
    """Refuse an adapter that was trained on another prompt or base model than the one at hand.

    Raises:
        RunMismatchError: naming what differs.
    """
    version_of = f"prompt version (BOS, answer cue, think block) of trsr {info.versions.get('trsr', 'then')}"
    for what, trained, now in (
        (f"version of the template {info.template!r}", info.template_hash[:12], template_hash[:12]),
        ("base model", info.base_model_id, base_model_id),
        (version_of, info.prompt_version, prompt_version),
        ("recommender.quantization", info.quantization or "null", quantization or "null"),
    ):
        if trained != now:
            raise RunMismatchError(
                f"The model in {folder} was trained with {trained} as {what}, but found {now}; "
                "use what it was trained with, or train again."
            )


def installed(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed, in the order given.

    A package that runs from its source tree without being installed has no version, trsr itself included.
    """
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
