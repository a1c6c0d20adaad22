"""The tokenizer and chat format that llama.cpp reads from a GGUF file, behind the `Tokenizer` protocol.

A conversion can change either; asking the server itself is the only way to see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trsr.llm.base import Prompt
from trsr.llm.llamacpp import ask_server, render_chat


class LlamaCppTokenizer:
    """A `Tokenizer` over a running server (`trsr.llm.llamacpp.open_server`).

    Args:
        server: The server.
        special_texts: Texts that stand for special tokens, which the server does not list.
    """

    def __init__(self, server: Any, special_texts: tuple[str, ...] = ()) -> None:
        self._server = server
        self.special_texts = special_texts

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; nothing is added around it."""
        asked = {"content": text, "add_special": False, "parse_special": True}
        return [int(token) for token in ask_server(self._server, "/tokenize", asked)["tokens"]]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of the ids, special tokens included."""
        return str(ask_server(self._server, "/detokenize", {"tokens": list(token_ids)})["content"])

    def render_chat(self, prompt: Prompt) -> str:
        """Return the prompt in the chat format that the file holds."""
        return render_chat(self._server, prompt)
