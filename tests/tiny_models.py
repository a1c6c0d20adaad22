"""Random models of two layers, one of each architecture that users are likely to bring."""

from __future__ import annotations

from typing import Any

_SIZE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_SLIDING = ["sliding_attention", "full_attention"]
_OWN: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 8},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "mistral": {"sliding_window": 16},
    "gemma2": {"head_dim": 8, "sliding_window": 16},
    "gemma3_text": {"head_dim": 8, "sliding_window": 16, "layer_types": _SLIDING},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
    "bloom": {"n_head": 4, "n_layer": 2},
    "doge": {"num_key_value_heads": 4},
    "llama4_text": {
        **{"head_dim": 8, "attention_chunk_size": 128, "intermediate_size_mlp": 64, "num_local_experts": 2},
        **{"no_rope_layers": [1, 0], "moe_layers": [], "attn_temperature_tuning": False},
    },
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "falcon_mamba": {"state_size": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "expand": 2},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "recurrent_gemma": {
        **{"lru_width": 32, "attention_window_size": 16, "head_dim": 8},
        "block_types": ["recurrent", "attention"],
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
}


def random_model(model_type: str, **changes: Any) -> Any:
    """Return a random float32 model of an architecture , equal each time; its tokens are 0 to 63."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **{**_SIZE, **_OWN.get(model_type, {}), **changes})
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:  # far enough from uniform that different texts get different answers
                weights.normal_(0, 0.2)
    return model.eval()
