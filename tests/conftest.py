"""What many tests share: no network, one thread, and a language model small enough to run in milliseconds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before any model library is imported; tests that start processes pass these on.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("POLARS_MAX_THREADS", "2")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CORPUS = (
    "yes\nno\nAnswer yes or no.",
    "system user assistant Candidate: Profile: Recent products, newest last:",
    "This shopper buys garden supplies, seeds and clay pots, and before that string lights.",
    "You predict which product a shopper buys next. The profile is their long-term interest,",
    "Categories: Title: Brand: Description: Products, oldest first: Will the shopper buy the candidate next?",
)


def save_tiny_model(
    folder: Path, *, hidden_size: int = 32, seed: int = 0, single_answers: bool = True
) -> Path:
    """Save a random Llama of two layers with a byte-level BPE tokenizer in ChatML, and return its folder.

    Args:
        folder: Where to.
        hidden_size: Width of the model.
        seed: Of its weights.
        single_answers: Whether "yes" and "no" are one token each; else every letter is a token of its own.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512 if single_answers else 258,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", bos_token="<|im_start|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=2 * hidden_size,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            initializer_range=0.2,  # far enough from uniform that different texts get different answers
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model, good as `recommender.model` and as the engine's `model`."""
    import torch

    torch.set_num_threads(1)
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture(scope="session")
def two_token_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer needs several tokens for "yes" and for "no"."""
    return save_tiny_model(
        tmp_path_factory.mktemp("tiny") / "tiny-letters", hidden_size=16, single_answers=False
    )
