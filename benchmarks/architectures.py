"""Compare trsr with plain transformers on a tiny random model of every architecture that transformers builds.

python benchmarks/architectures.py --machine "2-core x86 VM" --out benchmarks/results/architectures.json
python benchmarks/architectures.py llama mamba      # some of them, printed

Of each: margins with shared prefixes, split over passes, from the prefix cache and read one by one;
gradients of the adapter; and written texts. The reference is a fresh model with transformers' eager attention
that reads one sequence without padding, and its own `generate`.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as hf_logging

from trsr.experiment.run_folder import environment
from trsr.llm import prefix_attention
from trsr.llm.architecture import length_limit
from trsr.llm.base import GenerationParams, LabelTokens, ScoringGroup, Sharing
from trsr.llm.text_batch import Text, TextBatch, batch_obstacle
from trsr.llm.transformers import load_causal_lm
from trsr.recommend.scorer import PrefixCache, SharedPrefixScorer
from trsr.train.config import LoraConfig, TrainConfig
from trsr.train.dataset import TrainingGroup
from trsr.train.lora import with_adapter
from trsr.train.losses import Objective, joint_loss

SEED = 20
VOCABULARY = 96
LABELS = LabelTokens(40, 71)
MOST_PARAMETERS = 10_000_000
N_WRITTEN = 12
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"

# One size by all the names that configurations have for it.
SIZE: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "decoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 512),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "head_dim", "state_size"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("dropout", "attention_dropout"), 0.0),
    "vocab_size": VOCABULARY,
    "num_key_value_heads": 2,
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 24,
    "is_decoder": True,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
    "rotary_dim": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Settings for some architectures; None keeps the library's default.
_LATENT = {"head_dim": None, "num_key_value_heads": 4}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "head_dim": None}
CHANGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa",
         "minicpm3", "sarvam_mla", "youtu", "dots3_note_text"),
        _LATENT,
    ),
    "bailing_hybrid": {"layer_types": [LINEAR, FULL] * 2, "head_dim": None},
    "bamba": {**_MAMBA2, "attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"layer_types": [SLIDING, FULL] * 2},
    "falcon": {"head_dim": None},
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 64, "head_dim": 8},
    "gemma3n_text": {"num_kv_shared_layers": 2, "vocab_size_per_layer_input": VOCABULARY,
                     "layer_types": [SLIDING, FULL] * 2, "hidden_size_per_layer_input": 8, "laurel_rank": 4,
                     "activation_sparsity_pattern": [0.0] * 4, "altup_num_inputs": 2},
    "gemma4_text": {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8,
                    "global_head_dim": 8, "layer_types": [SLIDING, FULL] * 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 16, "num_layers": 4},
    "granitemoehybrid": {**_MAMBA2, "layer_types": [LINEAR, FULL] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4, "head_dim": None},
    "kimi_linear": {"layer_types": [LINEAR, FULL] * 2, **_LATENT},
    "lfm2": {"layer_types": ["conv", FULL] * 2},
    "lfm2_moe": {"layer_types": ["conv", FULL] * 2},
    "llama4_text": {"attention_chunk_size": 16, "no_rope_layers": [1, 1, 1, 0], "moe_layers": [],
                    "attn_temperature_tuning": False, "intermediate_size_mlp": 64},
    "longcat_flash": {"head_dim": 8, "num_key_value_heads": 4, "num_layers": 2},
    "mamba2": {"num_heads": 8, "n_groups": 2, "expand": 2},
    "mpt": {"n_heads": 4, "n_layers": 4, "max_seq_len": 512},
    "nemotron_h": {"layers_block_type": ["mamba", "attention"] * 2},
    "qwen3_5_text": {"layer_types": [LINEAR, FULL] * 2},
    "qwen3_next": {"layer_types": [LINEAR, FULL] * 2},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 64,
                        "block_types": ["recurrent", "attention"]},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"], "attention_head_size": 8},
    "xlnet": {"n_layer": 4, "d_inner": 64, "max_position_embeddings": None, "head_dim": None,
              "hidden_size": None, "num_attention_heads": None, "num_hidden_layers": None},
    "xlstm": {"v_head_dim": None, "num_heads": 4, "head_dim": None},
    "zamba": {"layers_block_type": [LINEAR, "hybrid"] * 2, "n_mamba_heads": 2, "head_dim": None},
    "zamba2": {"layers_block_type": [LINEAR, "hybrid"] * 2, "n_mamba_heads": 8, "head_dim": None,
               "mamba_d_state": 8},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
_ORIGINAL = 64
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
_LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.2, 1.3],
             "long_factor": [2.0, 3.0, 4.0, 5.0], "original_max_position_embeddings": _ORIGINAL}  # fmt: skip
# The same architectures with what a setting changes: name, architecture, settings.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, dynamic rope": ("llama", {"rope_parameters": _DYNAMIC, "max_position_embeddings": _ORIGINAL}),
    "llama, longrope": ("llama", {"rope_parameters": {**_LONGROPE, "factor": 8.0}}),
    "llama, yarn": ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                                  "original_max_position_embeddings": _ORIGINAL}}),
    "llama, llama3 rope": ("llama", {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": _ORIGINAL}}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "falcon, alibi": ("falcon", {"alibi": True, "new_decoder_architecture": False, "multi_query": False}),
    "gpt_neox, not parallel": ("gpt_neox", {"use_parallel_residual": False}),
    "gemma2, without caps": ("gemma2", {"attn_logit_softcapping": None}),
    "llama4_text, long chunks": ("llama4_text", {"attention_chunk_size": 512}),
    "llama4_text, temperature": ("llama4_text", {"attn_temperature_tuning": True, "floor_scale": 16,
                                                 "no_rope_layers": [0, 0, 0, 0]}),
    "opt, 350m": ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "phi3, longrope": ("phi3", {"rope_parameters": _LONGROPE, "sliding_window": None,
                                "original_max_position_embeddings": _ORIGINAL}),
    "phimoe, no window": ("phimoe", {"sliding_window": None}),
    "qwen2, window": ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}),
}  # fmt: skip

# Those that people are likely to bring come first.
USUAL = [
    "llama", "qwen2", "qwen3", "qwen3_moe", "qwen3_next", "mistral", "ministral", "mixtral", "gemma",
    "gemma2", "gemma3_text", "gemma3n_text", "phi", "phi3", "phimoe", "gpt2", "opt", "gpt_neox",
    "gpt_neo", "gptj", "bloom", "falcon", "mpt", "stablelm", "starcoder2", "cohere", "cohere2",
    "olmo2", "olmo3", "granite", "granitemoehybrid", "smollm3", "glm4", "gpt_oss", "llama4_text",
    "deepseek_v3", "mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma", "jamba", "lfm2",
    "zamba", "zamba2", "bamba", "diffllama", "doge", "minicpm3", "exaone4", "ernie4_5",
    "hunyuan_v1_dense", "seed_oss", "qwen2_moe",
]  # fmt: skip

Row = dict[str, Any]


def build(name: str, folder: Path) -> None:
    """Save a random model of an architecture or variant.

    Raises:
        ValueError: it is too large to be tried.
    """
    kind, changes = VARIANTS.get(name, (name, {}))
    wanted = {**SIZE, **CHANGES.get(kind, {}), **changes}
    kept = {key: value for key, value in wanted.items() if value is not None or key in changes}
    if not hasattr(CONFIG_MAPPING[kind], "sliding_window"):  # a cache would obey it, the model would not
        kept.pop("sliding_window", None)
    config = AutoConfig.for_model(kind, **kept)
    with torch.device("meta"):
        n_parameters = sum(w.numel() for w in AutoModelForCausalLM.from_config(config).parameters())
    if n_parameters > MOST_PARAMETERS:
        raise ValueError(f"{n_parameters / 1e6:.0f} million parameters at the smallest size tried")
    torch.manual_seed(SEED)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:  # far enough from uniform that different texts get different answers
                weights.normal_(0, 0.3)
    model.save_pretrained(folder)


def texts(seed: int, *lengths: int) -> tuple[tuple[int, ...], ...]:
    """Return random token ids of given lengths, none of them special."""
    generator = torch.Generator().manual_seed(SEED + seed)
    return tuple(tuple(torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()) for n in lengths)


# Shorter and longer than windows, chunks and the context that rotary positions were made for.
GROUPS = [
    ScoringGroup(texts(0, 90)[0], texts(1, 7, 31, 12, 5, 9)),
    ScoringGroup(texts(2, 13)[0], texts(3, 25, 3, 40)),
    ScoringGroup(texts(4, 120)[0], texts(5, 18, 4)),
]
LEARNED = [
    TrainingGroup(ScoringGroup(texts(6, 60)[0], texts(7, 7, 21, 12)), (0, 1, 0)),
    TrainingGroup(ScoringGroup(texts(8, 13)[0], texts(9, 25, 3)), (1, 0)),
]
_START = texts(10, 8)[0]
PROMPTS = [[*_START, *rest] for rest in texts(11, 30, 4, 17)]


def plain_logits(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """Return the logits of one sequence, shape (T, V), of a model as if it had read nothing before."""
    for module in model.modules():
        if getattr(module, "rope_type", None) == "dynamic":
            module.max_seq_len_cached = module.original_max_seq_len
            module.inv_freq = module.original_inv_freq.clone()
    logits: torch.Tensor = model(input_ids=torch.tensor([tokens])).logits[0].float()
    return logits


def margin(logits: torch.Tensor) -> torch.Tensor:
    return logits[-1, LABELS.positive] - logits[-1, LABELS.negative]


def expected_margins(model: Any) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [
            torch.stack([margin(plain_logits(model, [*group.prefix, *suffix])) for suffix in group.suffixes])
            for group in GROUPS
        ]


def largest(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """Return the largest difference; no number stays none."""
    return float(torch.cat([(a - b).abs().flatten() for a, b in zip(found, expected, strict=True)]).max())


def scored(scorer: SharedPrefixScorer) -> list[torch.Tensor]:
    found = dict(scorer.score(GROUPS, LABELS))
    return [torch.from_numpy(found[index]) for index in range(len(GROUPS))]


def margin_differences(folder: Path, expected: Sequence[torch.Tensor], sharing: Sharing) -> Row:
    """Return the largest difference of margins by way of reading, and whether prefixes are shared."""
    model = load_causal_lm(str(folder), dtype="float32", device="cpu")
    with said("trsr.llm.prefix_attention") as lines:
        shares = prefix_attention.enable(model, sharing)
    row: Row = {"shares": shares, "why": reason(lines)}
    scorers = {"whole": SharedPrefixScorer(model)}
    if sharing != "padded":
        scorers["split"] = SharedPrefixScorer(model, max_batch_tokens=170)
    if shares and sharing != "padded":
        scorers["cached"] = SharedPrefixScorer(model, cache=PrefixCache(10**9))
        scored(scorers["cached"])
    for name, scorer in scorers.items():
        row[name] = largest(scored(scorer), expected)
    return row


def gradient_differences(folder: Path, attention: str) -> Row:
    """Return the largest difference of the adapter's gradients by loss, as a share of the largest."""
    base = load_causal_lm(str(folder), dtype="float32", device="cpu")
    prefix_attention.enable(base, "auto")
    torch.manual_seed(SEED)
    model = with_adapter(base, TrainConfig(lora=LoraConfig(r=4, alpha=8))).eval()
    for weights in learned(model).values():
        weights.data.normal_(0, 0.05)
    plain = with_adapter(plain_model(folder, attention), TrainConfig(lora=LoraConfig(r=4, alpha=8))).eval()
    for name, weights in learned(model).items():
        learned(plain)[name].data.copy_(weights)
    row: Row = {}
    for loss in ("joint", "full"):
        objective = Objective(model, loss, LABELS)
        with objective.installed(model):
            found = gradients(model, objective(model, LEARNED).sum())
        expected = gradients(plain, torch.stack([plain_loss(plain, one, loss) for one in LEARNED]).sum())
        top = max(float(g.abs().max()) for g in expected.values())
        row[loss] = max(float((found[k] - g).abs().max()) for k, g in expected.items()) / top
    return row


def learned(model: Any) -> dict[str, torch.Tensor]:
    return {name: weights for name, weights in model.named_parameters() if weights.requires_grad}


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {
        name: weights.grad.clone() for name, weights in learned(model).items() if weights.grad is not None
    }


def plain_loss(model: Any, one: TrainingGroup, loss: str) -> torch.Tensor:
    """Return a group's loss, each candidate read by itself."""
    margins, total, n_tokens = [], torch.zeros(()), 0
    for suffix, label in zip(one.group.suffixes, one.labels, strict=True):
        tokens = [*one.group.prefix, *suffix]
        logits = plain_logits(model, tokens)
        margins.append(margin(logits))
        wanted = torch.tensor([*tokens[1:], LABELS.positive if label else LABELS.negative])
        total = total + functional.cross_entropy(logits, wanted, reduction="sum")
        n_tokens += len(wanted)
    if loss == "full":
        return total / n_tokens
    return joint_loss(torch.stack(margins), torch.tensor(one.labels))


def texts_written(folder: Path) -> Row:
    """Return whether texts are written in batches, why not, and how many equal those of `generate`."""
    options = {"max_new_tokens": N_WRITTEN, "do_sample": False, "pad_token_id": 0}
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    plain.generation_config = GenerationConfig()
    expected = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        out = plain.generate(ids, attention_mask=torch.ones_like(ids), **options)
        expected.append(out[0, len(prompt) :].tolist())
    model = load_causal_lm(str(folder), dtype="float32", device="cpu")
    limit = length_limit(model.config)
    obstacle = batch_obstacle(model)
    together = not obstacle and (limit is None or max(map(len, PROMPTS)) + N_WRITTEN <= limit)
    batch = TextBatch(model, GenerationParams(max_new_tokens=N_WRITTEN), {-1}, one_by_one=not together)
    batch.join([Text(number, list(prompt), "kind") for number, prompt in enumerate(PROMPTS)])
    found: dict[int, list[int]] = {}
    while batch.texts:
        found.update({text.index: text.written for text in batch.step()})
    same = sum(found[number] == text for number, text in enumerate(expected))
    return {"together": together, "why": obstacle, "same": same, "of": len(expected)}


def plain_model(folder: Path, attention: str = "eager") -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    )
    return model.eval()


def measure(name: str) -> Row:
    """Return what was found of one architecture; `built` says what stood against it."""
    row: Row = {"name": name}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        try:
            build(name, folder)
            expected = expected_margins(plain_model(folder))
        except Exception as problem:  # a library's model that does not work says so in many ways
            return row | {"built": one_line(problem)}
        default: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        own, attention = expected_margins(default), "eager"
        row["library"] = largest(own, expected)  # transformers' attentions against one another
        if row["library"] > 1e-3:
            expected, attention = own, default.config._attn_implementation
        row["spread"] = float(torch.cat(expected).std())
        for part, find in {
            "shared": lambda: margin_differences(folder, expected, "auto"),
            "padded": lambda: margin_differences(folder, expected, "padded"),
            "separate": lambda: margin_differences(folder, expected, "separate"),
            "gradient": lambda: gradient_differences(folder, attention),
            "written": lambda: texts_written(folder),
        }.items():
            try:
                row[part] = find()
            except Exception as problem:
                row[part] = {"error": one_line(problem)}
    return row


def one_line(problem: Exception) -> str:
    first = (str(problem).strip().splitlines() or [""])[0]
    return f"{type(problem).__name__}: {first}"[:160]


def reason(lines: Sequence[str]) -> str:
    """Return the text in brackets of a log line."""
    return lines[0].partition("(")[2].rpartition(")")[0] if lines else ""


@contextmanager
def said(logger: str) -> Iterator[list[str]]:
    """Collect what a logger says inside the block."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger(logger).addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger(logger).removeHandler(handler)


def rounded(row: Any) -> Any:
    """Write differences with two digits."""
    if isinstance(row, Mapping):
        return {key: rounded(value) for key, value in row.items()}
    return float(f"{row:.2g}") if isinstance(row, float) else row


def be_quiet() -> None:
    warnings.filterwarnings("ignore")
    hf_logging.set_verbosity_error()
    logging.getLogger("trsr").propagate = False
    logging.getLogger("trsr").addHandler(logging.NullHandler())
    torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="architectures as transformers calls them; default: all")
    parser.add_argument("--machine", default="", help="for example '2-core x86 VM'")
    parser.add_argument("--processes", type=int, default=2, help="to share the architectures out to")
    parser.add_argument("--out", type=Path, help="file to write")
    given = parser.parse_args()
    facts = environment()
    names = given.names or list(dict.fromkeys([*VARIANTS, *USUAL, *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]))
    content: dict[str, Any] = {
        "name": "architectures",
        "command": shlex.join(["python", "benchmarks/architectures.py", *sys.argv[1:]]),
        "commit": facts["commit"],
        "seed": SEED,
        "machine": given.machine,
        "versions": {"python": facts["python"], **facts["versions"]},
        "results": [],
    }
    with ProcessPoolExecutor(given.processes, get_context("spawn"), be_quiet) as pool:
        for row in pool.map(measure, names):
            content["results"].append(rounded(row))
            print(json.dumps(content["results"][-1]), flush=True)
            if given.out is not None:
                text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
                given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
