"""A real llama.cpp server with the embedded model, shared by the tests that talk to one."""

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def llama_url() -> Iterator[str]:
    """The base URL of llama.cpp's OpenAI API on a loopback port; four slots of 512 tokens."""
    from trsr.llm import models
    from trsr.llm.llamacpp import open_server

    server = open_server(models.gguf_file(models.EMBEDDED_MODEL), n_parallel=4, slot_tokens=512, threads=1)
    yield f"{server.listening_address}/v1"
    del server
