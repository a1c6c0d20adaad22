from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from trsr.llm.base import GenerationParams, Message, PhrasePart, Prompt, prompt_key

MESSAGES = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.text())
PARTS = st.builds(PhrasePart, st.lists(st.text()).map(tuple), st.integers(1, 9), st.text())
PROMPTS = st.builds(
    Prompt, st.lists(MESSAGES, max_size=4).map(tuple), st.text(), st.none() | st.lists(PARTS).map(tuple)
)


@given(PROMPTS, st.text(), st.builds(GenerationParams, seed=st.integers(0, 3)))
def test_a_key_is_the_hash_of_all_that_is_asked(
    prompt: Prompt, model_id: str, params: GenerationParams
) -> None:
    """Stores of earlier versions are found by it."""
    asked = asdict(prompt)
    if prompt.parts is None:
        del asked["parts"]
    content = {"prompt": asked, "model": model_id, "params": asdict(params)}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    assert prompt_key(prompt, model_id, params) == hashlib.sha256(text.encode()).hexdigest()
