"""Models and tokenizers are loaded with one sentence for every mistake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Never

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from trsr.errors import ModelError
from trsr.experiment.preflight import label_tokens
from trsr.llm import models
from trsr.llm.answers import Thinking
from trsr.llm.base import GenerationParams, Prompt
from trsr.llm.context import read_config
from trsr.llm.engines import TransformersEngine
from trsr.llm.generation import TransformersGenerator
from trsr.llm.opening import engine_model_id, open_generator, token_counter
from trsr.llm.transformers import HfTokenizer, load_causal_lm, resolve_device, resolve_dtype
from trsr.recommend.model_folder import quiet_peft
from trsr.recommend.prompt import PromptBuilder, PromptConfig, load_ranking_template
from trsr.testing.contracts import ask
from trsr.train.config import LoraConfig
from trsr.train.dataset import training_groups
from trsr.train.lora import lora_targets
from trsr.types import RankingExample


def test_the_tokenizer_adds_nothing_and_reads_back(tiny_model: Path) -> None:
    tokenizer = HfTokenizer(tiny_model)
    text = "yes\n<|im_end|> Grüße, no"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("<|im_end|>")) == 1
    assert len(tokenizer.encode("yes")) == 1


def test_a_model_without_chat_format_gets_plain_paragraphs(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    text = HfTokenizer(tmp_path / "plain").render_chat(ask("Seeds?", prefill="Yes,"))
    assert text == "You answer in one sentence.\n\nSeeds?\n\nYes,"


@pytest.fixture
def base_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A tiny model without chat template, whose tokenizer adds a BOS as Llama's and Gemma's do."""
    shutil.copytree(tiny_model, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    file = tmp_path / "base" / "tokenizer.json"
    tokens = json.loads(file.read_text())
    bos = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    tokens["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [0], "tokens": ["<|im_start|>"]}},
    }
    file.write_text(json.dumps(tokens))
    return tmp_path / "base"


def test_a_base_model_reads_one_bos_in_summaries_training_and_ranking(base_model: Path) -> None:
    tokenizer = HfTokenizer(base_model)
    (bos,) = tokenizer.leading_ids
    assert tokenizer.hf("Seeds")["input_ids"] == tokenizer.encode_prompt("Seeds")
    template = load_ranking_template("generic", "any")
    builder = PromptBuilder(template, PromptConfig(), tokenizer, lambda item: f"Title: {item}")
    example = RankingExample("e", "u", ("a", "b"), ("c", "d"), (0, 1))
    (group,) = (one.group for one in training_groups([example], {"e": "Likes seeds."}, builder))
    assert group == builder.build(("a", "b"), "Likes seeds.", ("c", "d")).group
    text = TransformersGenerator(str(base_model), device="cpu")._text_of(0, ask("Seeds?"))
    for ids in (text.prompt, [*group.prefix, *group.suffixes[0]]):
        assert (ids[0], ids.count(bos)) == (bos, 1)
    assert count_prompt(base_model, ask("Seeds?")) == len(text.prompt)
    assert tokenizer.decode(group.prefix + group.suffixes[0]).endswith("\n\nAnswer:")
    assert tokenizer.prompt_version == 2


def test_a_chat_model_without_a_bos_of_its_own_keeps_the_first_version(tiny_model: Path) -> None:
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


def count_prompt(model: Path, prompt: Prompt) -> int:
    return token_counter(TransformersEngine(model=str(model))).count(prompt)


def test_half_precision_is_only_chosen_where_the_device_computes_in_it() -> None:
    assert resolve_dtype("auto", torch.device("cpu")) is torch.float32
    assert resolve_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in {"cpu", "cuda"}


@pytest.mark.parametrize("dtype", ["float99", "nn", "int8"])
def test_an_unknown_precision_is_one_sentence(dtype: str) -> None:
    with pytest.raises(ModelError, match=rf"{dtype}.*float32"):
        resolve_dtype(dtype, torch.device("cpu"))


@pytest.mark.parametrize("device", ["tpu9", "", "cuda:99"])
def test_a_device_that_is_not_there_is_one_sentence(device: str) -> None:
    with pytest.raises(ModelError, match="device"):
        resolve_device(device)


def test_an_unknown_model_is_one_sentence() -> None:
    with pytest.raises(ModelError, match="There is no model") as caught:
        load_causal_lm("./nowhere/tiny")
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_is_one_sentence(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "hollow")
    (tmp_path / "hollow" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_causal_lm(str(tmp_path / "hollow"))
    assert "\n" not in str(caught.value)


def test_broken_weights_are_one_sentence(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_causal_lm(str(tmp_path / "broken"))
    assert "\n" not in str(caught.value)


def test_a_folder_without_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="tokenizer") as caught:
        HfTokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_load_causal_lm_makes_up_no_weights(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "headless"))
    weights = load_file(folder / "model.safetensors")
    head = weights.pop("lm_head.weight")
    for kept in (weights, weights | {"lm_head.weight": head[:-1].clone()}):
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=r"no weights of that size for lm_head\.weight,"):
            load_causal_lm(str(folder))


def changed(model: Path, folder: Path, **settings: Any) -> Path:
    """Return a copy of a model with other settings."""
    shutil.copytree(model, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"num_attention_heads": 5},
        {"max_position_embeddings": None},
        {"quantization_config": {"quant_method": "awq", "bits": 4}},  # needs a package, or other weights
        {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.LM"}},
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_sentence(
    settings: dict[str, Any], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read() -> Never:
        pytest.fail("asked whether to run code")

    monkeypatch.setattr("builtins.input", lambda *_: read())
    folder = changed(tiny_model, tmp_path / "odd", **settings)
    (folder / "mine.py").write_text("raise SystemExit('run')")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_causal_lm(str(folder))
    assert "\n" not in str(caught.value)
    if "quantization_config" not in settings:
        for use in (read_config, lambda name: lora_targets(name, LoraConfig())):
            with pytest.raises(ModelError, match="cannot be read"):
                use(str(folder))


def test_a_model_with_an_adapter_beside_it_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = changed(tiny_model, tmp_path / "adapted")
    base = load_causal_lm(str(tiny_model))
    with quiet_peft():
        get_peft_model(base, PeftLoraConfig(target_modules=["q_proj"])).save_pretrained(str(folder))
    with pytest.raises(ModelError, match="comes with a LoRA adapter"):
        load_causal_lm(str(folder))


@pytest.mark.parametrize("head", ["BertForMaskedLM", "LlamaForSequenceClassification"])
def test_a_model_for_other_answers_than_the_next_token_is_refused(
    head: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = changed(tiny_model, tmp_path / "other", architectures=[head])
    with pytest.raises(ModelError, match=head):
        load_causal_lm(str(folder))


def test_the_date_that_a_template_writes_is_the_same_tomorrow(tiny_model: Path, tmp_path: Path) -> None:
    folder = changed(tiny_model, tmp_path / "dated")
    template = folder / "chat_template.jinja"
    template.write_text("{{ strftime_now( '%d %B %Y, %H:%M:%S.%f' ) }} " + template.read_text())
    assert HfTokenizer(folder).render_chat(ask("Seeds?")).startswith("26 July 2024, 00:00:00.000000 <")


def test_tokens_that_were_added_to_the_tokenizer_alone_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = changed(tiny_model, tmp_path / "added")
    added = HfTokenizer(folder).hf
    added.add_tokens(["<|person|>"], special_tokens=True)
    added.save_pretrained(folder)
    assert label_tokens(str(folder), "generic", "any")  # one that no prompt holds does no harm
    generator = TransformersGenerator(str(folder), device="cpu")
    assert list(generator.generate([ask("Seeds?")], GenerationParams(max_new_tokens=1)))
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|person|>"))
    generator = TransformersGenerator(str(folder), device="cpu")
    for use in (
        lambda: label_tokens(str(folder), "generic", "any"),
        lambda: list(generator.generate([ask("Seeds?")], GenerationParams(max_new_tokens=1))),
    ):
        with pytest.raises(
            ModelError, match=r"the token '<\|person\|>' \(\d+\) of the tokenizer, but the model"
        ):
            use()
