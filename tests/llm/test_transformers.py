"""Models and tokenizers are loaded exactly, or refused in one sentence."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Never

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import random_model
from transformers import AutoModelForCausalLM

from trsr.errors import MissingExtraError, ModelError
from trsr.experiment.preflight import label_tokens
from trsr.llm import models
from trsr.llm import transformers as loading
from trsr.llm.base import GenerationParams
from trsr.llm.chat_format import Thinking
from trsr.llm.engines import TransformersEngine
from trsr.llm.generation import TransformersGenerator
from trsr.llm.models import read_config
from trsr.llm.opening import engine_model_id, open_generator, token_counter
from trsr.llm.transformers import (
    HfTokenizer,
    load_causal_lm,
    resolve_device,
    resolve_dtype,
    reuse_large_buffers,
)
from trsr.recommend.model_folder import quiet_peft
from trsr.recommend.prompt import PromptBuilder, PromptConfig, load_ranking_template
from trsr.testing.contracts import ask
from trsr.train.config import LoraConfig
from trsr.train.dataset import training_groups
from trsr.train.lora import lora_targets
from trsr.types import RankingExample

GPU = torch.device("cuda", 0)


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder that a test may change."""
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


@pytest.fixture
def base_model(copy: Path) -> Path:
    """A tiny model without chat template, whose tokenizer adds a BOS as Llama's and Gemma's do."""
    (copy / "chat_template.jinja").unlink()
    file = copy / "tokenizer.json"
    tokens = json.loads(file.read_text())
    bos = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    tokens["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [0], "tokens": ["<|im_start|>"]}},
    }
    file.write_text(json.dumps(tokens))
    return copy


def configure(folder: Path, **settings: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_tokenizer_adds_nothing_and_reads_back(tiny_model: Path) -> None:
    tokenizer = HfTokenizer(tiny_model)
    text = "yes\n<|im_end|> Grüße, no"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert [len(tokenizer.encode(one)) for one in ("<|im_end|>", "yes")] == [1, 1]


def test_base_model_reads_plain_paragraphs_with_one_bos_in_summaries_training_and_ranking(
    base_model: Path,
) -> None:
    tokenizer = HfTokenizer(base_model)
    prompt = ask("Seeds?", prefill="Yes,")
    assert tokenizer.render_chat(prompt).startswith("You answer in one sentence.\n\nSeeds?\n\n")
    (bos,) = tokenizer.leading_ids
    assert tokenizer.hf("Seeds")["input_ids"] == tokenizer.encode_prompt("Seeds")
    template = load_ranking_template("generic", "any")
    builder = PromptBuilder(template, PromptConfig(), tokenizer, lambda item: f"Title: {item}")
    example = RankingExample("e", "u", ("a", "b"), ("c", "d"), (0, 1))
    (group,) = (one.group for one in training_groups([example], {"e": "Likes seeds."}, builder))
    assert group == builder.build(("a", "b"), "Likes seeds.", ("c", "d")).group
    text = TransformersGenerator(str(base_model), device="cpu")._text_of(0, prompt)
    for ids in (text.prompt, [*group.prefix, *group.suffixes[0]]):
        assert (ids[0], ids.count(bos)) == (bos, 1)
    counter = token_counter(TransformersEngine(model=str(base_model)))
    assert counter.count(prompt) == len(text.prompt)
    assert tokenizer.decode(group.prefix + group.suffixes[0]).endswith("\n\nAnswer:")
    assert tokenizer.prompt_version == 2


def test_chat_model_without_a_bos_of_its_own_keeps_the_first_version(tiny_model: Path) -> None:
    tokenizer = HfTokenizer(tiny_model)
    assert tokenizer.prompt_version == 1
    prompt = ask("Seeds?", prefill="Yes,")
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt.messages]
    ids = tokenizer.hf.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert tokenizer.encode_prompt(tokenizer.render_chat(prompt, think=False))[: len(ids)] == ids


@pytest.mark.parametrize("thinking", ["off", "strip"])
def test_texts_that_answered_prompts_of_the_first_version_are_not_taken_for_others(
    thinking: Thinking, base_model: Path, tiny_model: Path
) -> None:
    def ids(folder: Path) -> set[str]:
        config = TransformersEngine(model=str(folder), device="cpu", thinking=thinking)
        return {engine_model_id(config), open_generator(config).model_id}

    suffix = {"off": "+prompt2", "strip": "+thinking"}[thinking]  # none was kept with thoughts before
    assert ids(base_model) == {models.model_id(str(base_model)) + suffix}
    assert ids(tiny_model) == {models.model_id(str(tiny_model)) + suffix.removeprefix("+prompt2")}


@pytest.mark.slow
@pytest.mark.model
def test_texts_of_the_embedded_model_keep_their_keys() -> None:
    assert engine_model_id(TransformersEngine()) == models.model_id(models.EMBEDDED_MODEL)


def test_half_precision_is_only_chosen_where_the_device_computes_in_it() -> None:
    assert resolve_dtype("auto", torch.device("cpu")) is torch.float32
    assert resolve_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in {"cpu", "cuda"}


@pytest.mark.parametrize("name", ["tpu9", "", "cuda:99", "int8"])
def test_device_or_precision_that_is_not_there_is_one_sentence(name: str) -> None:
    with pytest.raises(ModelError, match=rf"\A.*device '{name}'.*\Z"):
        resolve_device(name)
    with pytest.raises(ModelError, match=rf"\A.*dtype '{name}'.*float32.*\Z"):
        resolve_dtype(name, torch.device("cpu"))


def lose_the_head(folder: Path, rows: int = 0) -> None:
    weights = load_file(folder / "model.safetensors")
    head = weights.pop("lm_head.weight")
    kept = {"lm_head.weight": head[:rows].clone()} if rows else {}
    save_file(weights | kept, folder / "model.safetensors", metadata={"format": "pt"})


def add_adapter(folder: Path) -> None:
    with quiet_peft():
        lora = PeftLoraConfig(target_modules=["q_proj"])
        get_peft_model(load_causal_lm(str(folder)), lora).save_pretrained(str(folder))


NO_HEAD = r"no weights of that size for lm_head\.weight,"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"not safetensors"), "cannot be loaded"),
        (lose_the_head, NO_HEAD),
        (lambda folder: lose_the_head(folder, rows=1), NO_HEAD),
        (add_adapter, "includes a LoRA adapter"),
        (lambda folder: configure(folder, architectures=["BertForMaskedLM"]), "BertForMaskedLM"),
        (lambda folder: configure(folder, architectures=["LlamaForSequenceClassification"]), "Sequence"),
        (shutil.rmtree, "There is no model"),
    ],
)
def test_model_that_is_not_whole_is_refused_in_one_sentence(
    change: Callable[[Path], object], problem: str, copy: Path
) -> None:
    change(copy)
    with pytest.raises(ModelError, match=rf"\A.*{problem}.*\Z"):
        load_causal_lm(str(copy))


def test_folder_without_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match=r"\A.*tokenizer.*\Z"):
        HfTokenizer(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_attention_heads": 5},
        {"max_position_embeddings": None},
        {"quantization_config": {"quant_method": "awq", "bits": 4}},  # needs a package, or other weights
        {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.LM"}},
    ],
)
def test_configuration_that_cannot_be_used_is_one_sentence_and_runs_no_code(
    settings: dict[str, Any], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read() -> Never:
        pytest.fail("prompted for running code")

    monkeypatch.setattr("builtins.input", lambda *_: read())
    configure(copy, **settings)
    (copy / "mine.py").write_text("raise SystemExit('run')")
    with pytest.raises(ModelError, match=r"\A.*cannot be loaded.*\Z"):
        load_causal_lm(str(copy))
    if "quantization_config" not in settings:
        for use in (read_config, lambda name: lora_targets(name, LoraConfig())):
            with pytest.raises(ModelError, match="cannot be read"):
                use(str(copy))


def test_date_that_a_template_writes_is_the_same_tomorrow(copy: Path) -> None:
    template = copy / "chat_template.jinja"
    template.write_text("{{ strftime_now( '%d %B %Y, %H:%M:%S.%f' ) }} " + template.read_text())
    assert HfTokenizer(copy).render_chat(ask("Seeds?")).startswith("26 July 2024, 00:00:00.000000 <")


def test_tokens_that_were_added_to_the_tokenizer_alone_are_refused_where_a_prompt_has_them(
    copy: Path,
) -> None:
    def use_all() -> list[Callable[[], object]]:
        generator, params = TransformersGenerator(str(copy), device="cpu"), GenerationParams(max_new_tokens=1)
        return [
            lambda: label_tokens(str(copy), "generic", "any"),
            lambda: list(generator.generate([ask("Seeds?")], params)),
        ]

    added = HfTokenizer(copy).hf
    added.add_tokens(["<|person|>"], special_tokens=True)
    added.save_pretrained(copy)
    for use in use_all():
        assert use()
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|person|>"))
    for use in use_all():
        with pytest.raises(ModelError, match=r"token '<\|person\|>' \(\d+\) of the tokenizer, but the model"):
            use()


def test_four_bits_need_a_gpu_and_their_extra(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="needs an NVIDIA GPU, but the device is cpu"):
        load_causal_lm(str(tiny_model), device="cpu", quantization="4bit")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"bitsandbytes.*trsr\[4bit\]"):
        loading.four_bit(GPU, torch.bfloat16)


def test_four_bits_are_nf4_on_the_gpu(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {}
    find = importlib.util.find_spec

    def load(_folder: Path, **given: Any) -> tuple[torch.nn.Module, dict[str, list[str]]]:
        options.update(given)
        return random_model("llama").train(), {"missing_keys": [], "mismatched_keys": []}

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(loading, "resolve_device", lambda _: GPU)
    monkeypatch.setattr(loading, "resolve_dtype", lambda *_: torch.bfloat16)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "bitsandbytes" or find(name))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    assert not load_causal_lm(str(tiny_model), quantization="4bit").training
    assert options["device_map"] == {"": GPU}
    rounding = options["quantization_config"]
    assert (rounding.load_in_4bit, rounding.bnb_4bit_quant_type) == (True, "nf4")
    assert rounding.bnb_4bit_compute_dtype is torch.bfloat16


class Libc:
    def __init__(self) -> None:
        self.settings: dict[int, int] = {}

    def mallopt(self, name: int, value: int) -> int:
        self.settings[name] = value
        return 1


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Libc:
    fake = Libc()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: fake)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    return fake


def test_reuse_large_buffers_maps_nothing_and_keeps_what_is_freed(libc: Libc) -> None:
    assert reuse_large_buffers()
    assert libc.settings[-4] == 0
    assert libc.settings[-1] > 2**30


def test_reuse_large_buffers_leaves_the_users_settings(libc: Libc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    assert not reuse_large_buffers()
    assert libc.settings == {}


def test_reuse_large_buffers_leaves_other_c_libraries_alone(
    libc: Libc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not reuse_large_buffers()
    assert libc.settings == {}
