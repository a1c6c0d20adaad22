"""Similarity of item texts as a ranker: mean of the history's embeddings against the candidate's.

The user as the mean of their items is the usual content-based profile (Rocchio; Lops, de Gemmis and
Semeraro, "Content-based recommender systems", 2011). Hidden states of language models share a large common
direction; subtracting the mean vector first (`centre`) is the first step of Mu and Viswanath,
"All-but-the-top", ICLR 2018.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trsr.baselines.simple import ExampleRanker
from trsr.errors import MissingExtraError, ModelError, first_line
from trsr.llm import models
from trsr.storage import atomic_write
from trsr.types import RankingExample

PART_SIZE = 256
"""Texts per part of an unfinished file."""
_Vectors = npt.NDArray[np.float32]


class EmbeddingRanker(ExampleRanker):
    """Scores a candidate by the cosine, in [-1, 1], of its embedding and the mean embedding of the history.

    Reads nothing but the example and the item texts. An item without an embedding, and every candidate of
    a user without any, has margin 0.

    Args:
        vectors: Embedding of each item, all of the same width; lengths do not count.
        n_recent: How many of the newest items make up the user; None for all.
        centre: Whether the mean of all embeddings is subtracted first.
    """

    name = "embedding"

    def __init__(
        self, vectors: Mapping[str, npt.NDArray[Any]], *, n_recent: int | None = None, centre: bool = True
    ) -> None:
        self._row = {item: row for row, item in enumerate(vectors)}
        table = np.stack([*vectors.values()]).astype(np.float32) if vectors else np.zeros((0, 1), np.float32)
        table = _unit(table)
        if centre and len(table):
            table = _unit(table - table.mean(axis=0, dtype=np.float64).astype(np.float32))
        self._table = table
        self._n_recent = n_recent

    def facts(self, examples: Sequence[RankingExample]) -> dict[str, int]:
        """Count the candidates without an embedding."""
        unknown = sum(item not in self._row for e in examples for item in e.candidates)
        return {"candidates_without_embedding": unknown}

    def _margins(self, example: RankingExample) -> npt.ArrayLike:
        recent = example.history if self._n_recent is None else example.history[-self._n_recent :]
        rows = [self._row[item] for item in recent if item in self._row]
        margins = np.zeros(len(example.candidates), dtype=np.float32)
        if rows:
            user = _unit(self._table[rows].mean(axis=0, keepdims=True))[0]
            known = [i for i, item in enumerate(example.candidates) if item in self._row]
            margins[known] = self._table[[self._row[example.candidates[i]] for i in known]] @ user
        return margins


def _unit(vectors: _Vectors) -> _Vectors:
    """Scale rows to length 1; rows of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), dtype=np.float32)


class TextEmbedder:
    """Turns texts into the mean of a model's last hidden states, scaled to length 1.

    Args:
        name: The embedded model, a hub id or a local folder.
        device: As torch names it.
        max_tokens: Tokens of a text that are read, the first ones, special tokens of the model included.
        max_batch_tokens: Most tokens of a forward pass, padding included; one text always fits.

    Raises:
        ModelError: there is no such model, or it cannot be loaded.
        MissingExtraError: torch or transformers is not installed.
    """

    def __init__(self, name: str, *, device: str, max_tokens: int, max_batch_tokens: int) -> None:
        try:
            import torch
            from transformers import AutoModel
            from transformers.utils import logging as hf_logging

            from trsr.llm.transformers import HfTokenizer, refuse_made_up, resolve_device
        except ImportError as error:
            raise MissingExtraError("transformers", "hf") from error
        self.model_id = models.model_id(name)
        self.max_tokens = max_tokens
        self._max_batch_tokens = max_batch_tokens
        folder = models.hf_folder(name)
        self._tokenizer = HfTokenizer(folder).hf
        self._device = resolve_device(device)
        verbosity = hf_logging.get_verbosity()
        hf_logging.set_verbosity_error()  # else it reports that a language model's head is not used
        try:
            model, found = AutoModel.from_pretrained(
                folder, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
            )
        except Exception as error:  # third-party files fail in any way
            raise ModelError(
                f"The model {name!r} cannot be loaded to embed texts ({first_line(error)}); use another."
            ) from error
        finally:
            hf_logging.set_verbosity(verbosity)
        refuse_made_up(name, [key for key in found["missing_keys"] if "pooler" not in key])  # it is not used
        self._model: Any = model.to(self._device).eval()

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, cut to `max_tokens`, at least one token each."""
        found = self._tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"]
        return [list(ids) or [0] for ids in found]

    def embed(self, texts: Sequence[str]) -> _Vectors:
        """Return one row per text, shape (n_texts, width); the other texts change no row."""
        import torch

        tokens = self.tokenize(texts)
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        rows: dict[int, _Vectors] = {}
        with torch.no_grad():
            while order:
                n = 1
                while n < len(order) and (n + 1) * len(tokens[order[n]]) <= self._max_batch_tokens:
                    n += 1
                batch, order = order[:n], order[n:]
                rows.update(zip(batch, self._pass([tokens[i] for i in batch]), strict=True))
        return np.stack([rows[i] for i in range(len(tokens))])

    def _pass(self, tokens: Sequence[Sequence[int]]) -> _Vectors:
        import torch

        longest = max(map(len, tokens))
        ids = torch.tensor([[*t, *[0] * (longest - len(t))] for t in tokens], device=self._device)
        lengths = torch.tensor([len(t) for t in tokens], device=self._device)
        mask = (torch.arange(longest, device=self._device)[None, :] < lengths[:, None]).long()
        hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, T, D)
        mean = (hidden * mask[:, :, None]).sum(dim=1) / lengths[:, None]
        return np.asarray(torch.nn.functional.normalize(mean, dim=-1).cpu().numpy(), dtype=np.float32)


def cached_embeddings(texts: Mapping[str, str], embedder: TextEmbedder, folder: Path) -> dict[str, _Vectors]:
    """Return the embedding of each item's text, read from the folder or computed.

    The file is named by the model's id, its token limit and the texts; the next process resumes from the
    whole parts of a killed one. Equal texts are embedded once.

    Raises:
        OutputError: the folder cannot be written; finished parts are kept.
    """
    unique = sorted(set(texts.values()), key=lambda text: (len(text), text))
    digest = hashlib.sha256(f"{embedder.model_id}\n{embedder.max_tokens}".encode())
    for text in unique:
        digest.update(hashlib.sha256(text.encode()).digest())
    file = folder / f"{digest.hexdigest()[:16]}.npy"
    parts = file.with_suffix(".parts")
    if not file.exists():
        found = [np.zeros((0, 1), np.float32)] if not unique else []
        for start in range(0, len(unique), PART_SIZE):
            part = parts / f"{start:08d}.npy"
            if not part.exists():
                _write(part, embedder.embed(unique[start : start + PART_SIZE]))
            found.append(np.load(part))
        _write(file, np.concatenate(found))
    shutil.rmtree(parts, ignore_errors=True)
    row = dict(zip(unique, np.load(file), strict=True))
    return {item: row[text] for item, text in texts.items()}


def _write(file: Path, vectors: _Vectors) -> None:
    def write(path: Path) -> None:
        with path.open("wb") as stream:  # by name, numpy would add an ending
            np.save(stream, vectors)

    atomic_write(file, write)
