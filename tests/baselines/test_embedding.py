"""Embeddings are means of hidden states, alike in any batch, computed once; similar texts go together."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from trsr.baselines import embedding
from trsr.baselines.embedding import EmbeddingRanker, TextEmbedder, cached_embeddings
from trsr.errors import ModelError
from trsr.types import RankingExample

TEXTS = {
    "seeds": "garden supplies, seeds and clay pots",
    "pots": "clay pots",
    "lights": "string lights",
    "twin": "clay pots",
    "letter": "y",
}


def embedder(model: Path, max_tokens: int = 32, max_batch_tokens: int = 64) -> TextEmbedder:
    return TextEmbedder(str(model), device="cpu", max_tokens=max_tokens, max_batch_tokens=max_batch_tokens)


def margins(ranker: EmbeddingRanker, history: tuple[str, ...], *candidates: str) -> list[float]:
    example = RankingExample("e", "u", history, candidates, (1,) + (0,) * (len(candidates) - 1))
    (answer,) = ranker.rank([example])
    return [float(margin) for margin in answer.margins]


def test_an_embedding_is_the_mean_of_the_last_hidden_states(tiny_model: Path) -> None:
    made = embedder(tiny_model)
    (row,), (tokens,) = made.embed([TEXTS["seeds"]]), made.tokenize([TEXTS["seeds"]])
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        hidden = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1][0].numpy()
    mean = hidden.mean(axis=0)
    np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-5)


@pytest.mark.parametrize("max_batch_tokens", [1, 20, 10_000])
def test_other_texts_and_batches_change_no_embedding(tiny_model: Path, max_batch_tokens: int) -> None:
    texts = [*TEXTS.values(), ""]
    together = embedder(tiny_model, max_batch_tokens=max_batch_tokens).embed(texts)
    alone = np.concatenate([embedder(tiny_model).embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_second_run_reads_the_embeddings_of_the_first(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cached_embeddings(TEXTS, embedder(tiny_model), tmp_path)
    np.testing.assert_array_equal(first["pots"], first["twin"])
    changed = cached_embeddings(TEXTS | {"pots": "string"}, embedder(tiny_model), tmp_path)
    assert not np.allclose(changed["pots"], changed["twin"], atol=1e-3)
    cached_embeddings(TEXTS, embedder(tiny_model, max_tokens=2), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr(TextEmbedder, "embed", None)
    again = cached_embeddings(TEXTS, embedder(tiny_model), tmp_path)
    for item, row in first.items():
        np.testing.assert_array_equal(again[item], row)


def test_a_killed_process_leaves_parts_from_which_the_next_resumes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "PART_SIZE", 2)
    whole = TextEmbedder.embed
    read: list[str] = []

    def killed(self: TextEmbedder, texts: list[str]) -> npt.NDArray[np.float32]:
        if read:
            raise KeyboardInterrupt
        read.extend(texts)
        return whole(self, texts)

    monkeypatch.setattr(TextEmbedder, "embed", killed)
    with pytest.raises(KeyboardInterrupt):
        cached_embeddings(TEXTS, embedder(tiny_model), tmp_path)

    def rest(self: TextEmbedder, texts: list[str]) -> npt.NDArray[np.float32]:
        assert not set(texts) & set(read)
        return whole(self, texts)

    monkeypatch.setattr(TextEmbedder, "embed", rest)
    resumed = cached_embeddings(TEXTS, embedder(tiny_model), tmp_path)
    for item, row in resumed.items():
        np.testing.assert_allclose(row, whole(embedder(tiny_model), [TEXTS[item]])[0], atol=1e-5)


def test_candidates_like_the_history_are_preferred() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.standard_normal((3, 16))
    common = 10 * rng.standard_normal(16)  # as language models have it
    vectors = {
        f"k{kind}-{n}": common + kinds[kind] + 0.5 * rng.standard_normal(16)
        for kind in range(3)
        for n in range(20)
    }
    ranker = EmbeddingRanker(vectors)
    right = 0
    for n in range(8):
        like, other, third = margins(ranker, ("k0-0", f"k0-{n + 1}"), f"k0-{n + 10}", f"k1-{n}", f"k2-{n}")
        right += like > max(other, third)
    assert right >= 7


def test_a_margin_is_the_cosine_with_the_mean_of_the_recent_items() -> None:
    vectors = {"a": np.array([1.0, 0.0]), "b": np.array([0.0, 2.0]), "c": np.array([-3.0, 0.0])}
    whole = margins(EmbeddingRanker(vectors, centre=False), ("a", "b"), "a", "b", "c")
    assert whole == pytest.approx([0.5**0.5, 0.5**0.5, -(0.5**0.5)])
    newest = margins(EmbeddingRanker(vectors, centre=False, n_recent=1), ("a", "b"), "a", "b", "c")
    assert newest == pytest.approx([0.0, 1.0, 0.0])


def test_centring_subtracts_what_all_items_share() -> None:
    vectors = {"a": np.array([9.0, 1.0]), "b": np.array([9.0, 1.1]), "c": np.array([9.0, -1.0])}
    b, c = margins(EmbeddingRanker(vectors, centre=False), ("a",), "b", "c")
    assert min(b, c) > 0.9
    b, c = margins(EmbeddingRanker(vectors, centre=True), ("a",), "b", "c")
    assert b > 0.9
    assert c < -0.9


def test_items_and_users_without_an_embedding_get_zero_and_are_counted() -> None:
    ranker = EmbeddingRanker({"a": np.array([1.0, 0.0]), "b": np.array([0.0, 2.0])})
    assert margins(ranker, ("never", "a"), "never", "a")[0] == 0
    assert margins(ranker, (), "a", "b") == margins(ranker, ("never",), "a", "b") == [0, 0]
    assert margins(EmbeddingRanker({}), ("a",), "a") == [0]
    example = RankingExample("e", "u", (), ("a", "never"), (1, 0))
    assert ranker.facts([example]) == {"candidates_without_embedding": 1}


def test_a_model_without_some_weights_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "part")
    file = tmp_path / "part" / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no weights of that size for layers\.1\.mlp\.up_proj\.weight,"):
        embedder(tmp_path / "part")
    file.unlink()
    with pytest.raises(ModelError):
        embedder(tmp_path / "part")
