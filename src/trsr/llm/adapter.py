"""What a fine-tuned model folder says about itself (`trsr.json`): training writes it, ranking obeys it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from trsr.data.files import write_whole
from trsr.errors import RunMismatchError
from trsr.llm.base import LabelTokens

FILE_NAME = "trsr.json"


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
    calibration: dict[str, str | float] | None = None
    """How margins become scores (`trsr.rank.calibration`); None for sigmoid(margin)."""
    versions: dict[str, str]

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
        yield


def write_adapter_info(folder: Path, info: AdapterInfo) -> None:
    """Write `trsr.json` into a model folder, in one move.

    Raises:
        OutputError: it cannot be written.
    """
    text = info.model_dump_json(indent=2) + "\n"
    write_whole(folder / FILE_NAME, lambda file: file.write_text(text, encoding="utf-8"))


def read_adapter_info(folder: Path) -> AdapterInfo:
    """Read a model folder's `trsr.json`.

    Raises:
        RunMismatchError: the folder is no model folder of this version.
    """
    try:
        return AdapterInfo.model_validate(json.loads((folder / FILE_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise RunMismatchError(
            f"{folder} holds no readable {FILE_NAME}, so it is no model folder of trsr; "
            "train one with `trsr train`."
        ) from error


def check_adapter(
    info: AdapterInfo, folder: Path, *, template_hash: str, prompt_version: int, base_model_id: str
) -> None:
    """Refuse an adapter that was trained on another prompt or base model than the one at hand.

    Raises:
        RunMismatchError: naming what differs.
    """
    if info.template_hash != template_hash:
        raise RunMismatchError(
            f"The model in {folder} was trained with version {info.template_hash[:12]} of the template "
            f"{info.template!r}, but is to be asked with {template_hash[:12]}, another one or another "
            "version; use what it was trained with, or train again."
        )
    if info.base_model_id != base_model_id:
        raise RunMismatchError(
            f"The model in {folder} was trained on {info.base_model_id}, not on {base_model_id}; "
            "use that base model or train again."
        )
    if info.prompt_version != prompt_version:
        raise RunMismatchError(
            f"The model in {folder} was trained on prompts of version {info.prompt_version}, those of "
            f"{info.base_model} are now of version {prompt_version} (BOS, answer cue, system text or think "
            f"block differ): train again, or rank with trsr {info.versions.get('trsr', 'of its time')}."
        )
