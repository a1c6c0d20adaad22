"""Checks whether a model can be a recommender and a summariser here: `trsr models check MODEL`.

Each check looks at what a prompt or a pass really is and compares it with what tokenizer and model say by
themselves, so that a mistake of `trsr` shows like one of the model. A failed check does not stop the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from trsr.errors import ModelError, TrsrError
from trsr.llm import models
from trsr.llm.base import GenerationParams, LabelTokens, Message, Prompt, ScoringGroup
from trsr.llm.context import check_vocabulary, context_of, read_config
from trsr.recommend.model_folder import FILE_NAME, AdapterInfo, check_adapter, load_adapter, read_adapter_info
from trsr.recommend.prompt import TEMPLATES, PromptBuilder, PromptConfig, load_ranking_template
from trsr.templating import built_in_templates

N_PROMPTS = 8
"""Prompts that are read both shared and one by one: two users with four candidates each."""
_SHARING_TOKENS = 320  # of the longer user's prompts
_NEW_TOKENS = 16
# Differences of margins that rounding makes: an absolute part in logits, and a share of the margins' spread.
_TOLERANCES = {"float32": (1e-4, 0.01), "float16": (0.02, 0.05), "bfloat16": (0.1, 0.1)}
_PROFILE = "clay pots and seeds for a balcony; before that string lights."
_ITEMS = tuple(
    f"{thing}, {colour} | Brand: {brand}"
    for colour, brand in (("red", "Terra"), ("grey", "Nordlys"), ("green", "Ilex"), ("blue", "Mira"))
    for thing in ("Clay pot", "Garden gloves", "String lights", "Watering can", "Seed mix", "Rope ladder")
)
_QUESTION = Prompt(
    (
        Message("system", "You describe people by what they choose."),
        Message(
            "user",
            "Chosen, oldest first:\n- " + "\n- ".join(_ITEMS[:6]) + "\nDescribe this person in a line.",
        ),
    )
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: Its name.
        ok: Whether the model passes.
        message: One sentence.
        facts: Numbers and names behind it, for JSON.
    """

    check: str
    ok: bool
    message: str
    facts: dict[str, Any] = field(default_factory=dict)


class CheckedModel:
    """A base model, or a fine-tuned one with its adapter merged; each part is loaded when it is first needed.

    Args:
        name: A model's name, or a model folder or run folder of `trsr`.
        templates: Ranking templates, built-in or files; empty for that of the adapter or, for a base model,
            all built-in ones that are not for one family of models.
        max_tokens: Tokens of the longest prompt to come; None for the default, or that of the adapter.
        dtype: Precision.
        device: Where to compute.

    Raises:
        ModelError: there is no such model.
        RunMismatchError: it is a model folder that cannot be read.
    """

    def __init__(
        self,
        name: str,
        *,
        templates: tuple[str, ...] = (),
        max_tokens: int | None = None,
        dtype: str = "auto",
        device: str = "auto",
    ) -> None:
        self.adapter = _adapter_folder(name)
        self.info: AdapterInfo | None = read_adapter_info(self.adapter) if self.adapter else None
        self.name = self.info.base_model if self.info else name
        models.locate(self.name)
        self.dtype, self.device = dtype, device
        own = PromptConfig.model_validate(self.info.prompt) if self.info else PromptConfig()
        self.prompt = own if max_tokens is None else own.model_copy(update={"max_tokens": max_tokens})
        self.templates = templates or ((self.info.template,) if self.info else _general_templates())

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer (`HfTokenizer`)."""
        from trsr.llm.transformers import HfTokenizer

        return HfTokenizer(models.hf_folder(self.name))

    @cached_property
    def config(self) -> Any:
        """The configuration of the part that reads text."""
        return read_config(self.name).get_text_config(decoder=True)

    @cached_property
    def model(self) -> Any:
        """The model, the adapter merged into it; attention as transformers sets it."""
        from trsr.llm.transformers import load_causal_lm

        model = load_causal_lm(self.name, dtype=self.dtype, device=self.device)
        if self.adapter is None:
            return model
        return load_adapter(model, self.adapter).merge_and_unload().eval()

    def forget(self) -> None:
        """Free the model's memory; it is loaded anew when it is needed again."""
        self.__dict__.pop("model", None)

    def builder(self, template: str, max_tokens: int | None = None) -> PromptBuilder:
        """Return a builder of prompts whose items are their own texts."""
        changes = {"n_recent": len(_ITEMS), "max_tokens": max_tokens or self.prompt.max_tokens}
        loaded = load_ranking_template(template, "generic")
        return PromptBuilder(loaded, self.prompt.model_copy(update=changes), self.tokenizer, str)


def check_model(subject: CheckedModel) -> Iterator[Finding]:
    """Yield what each check finds, in an order that loads the model late and once."""
    checks: dict[str, Callable[[CheckedModel], Finding]] = {"model": _architecture}
    if subject.info is not None:
        checks["adapter"] = _adapter
    checks |= {f"labels {name}": partial(_labels, template=name) for name in subject.templates}
    checks |= {"BOS": _bos, "chat template": _chat_template, "context": _context}
    checks |= {"sharing": _sharing, "LoRA targets": _lora_targets, "generation": _generation}
    for name, check in checks.items():
        try:
            found = check(subject)
        except Exception as error:  # models bring code, templates and files of others, which fail in any way
            found = Finding(name, False, _one_sentence(error))
        yield Finding(name, found.ok, found.message, found.facts)


def _general_templates() -> tuple[str, ...]:
    """Return the built-in ranking templates without a frame of their own, which is one family's."""
    names = sorted(built_in_templates(TEMPLATES))
    return tuple(name for name in names if "frame" not in load_ranking_template(name, "generic").sections)


def _adapter_folder(name: str) -> Path | None:
    """Return the model folder that `name` is or, as a run folder, holds."""
    path = Path(name).expanduser()
    return next((folder for folder in (path, path / "model") if (folder / FILE_NAME).is_file()), None)


def _one_sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, TrsrError):
        return text
    return f"{type(error).__name__}: {text[:300] or 'no reason given'}"


def _architecture(subject: CheckedModel) -> Finding:
    names = getattr(subject.config, "architectures", None) or [type(subject.config).__name__]
    n = sum(p.numel() for p in subject.model.parameters())
    facts = {
        "model_id": models.model_id(subject.name),
        "architecture": str(names[0]),
        "parameters": n,
        "dtype": str(subject.model.dtype).removeprefix("torch."),
        "device": str(subject.model.device),
    }
    size = f"{n / 1e9:.2f}e9" if n >= 1e8 else f"{n / 1e6:.2f}e6"
    said = f"{facts['model_id']}, {facts['architecture']}, {size} parameters in {facts['dtype']}"
    return Finding("", True, f"{said} on {facts['device']}.", facts)


def _adapter(subject: CheckedModel) -> Finding:
    info, folder = subject.info, subject.adapter
    assert info is not None
    assert folder is not None
    now = load_ranking_template(info.template, "generic").hash
    facts = {
        "template": info.template,
        "template_hash": now,
        "trained_template_hash": info.template_hash,
        "base_model_id": info.base_model_id,
        "rank": info.training.get("lora", {}).get("r"),
    }
    check_adapter(
        info,
        folder,
        template_hash=now,
        prompt_version=subject.tokenizer.prompt_version,
        base_model_id=models.model_id(subject.name),
        quantization=info.quantization,
    )
    _ = subject.model  # its weights can be loaded
    return Finding(
        "",
        True,
        f"trained on {info.base_model_id} with the template {info.template!r} ({now[:12]}), both as now.",
        facts,
    )


def _labels(subject: CheckedModel, template: str) -> Finding:
    builder = subject.builder(template)
    labels = builder.labels()
    group = builder.build(_ITEMS[:1], _PROFILE, _ITEMS[1:2]).group
    check_vocabulary(subject.config, subject.tokenizer, (*group.prefix, *group.suffixes[0]))
    words = [subject.tokenizer.decode([i]) for i in (labels.positive, labels.negative)]
    facts = {"positive": labels.positive, "negative": labels.negative, "texts": words}
    said = f"{words[0]!r} ({labels.positive}) and {words[1]!r} ({labels.negative})"
    if subject.info is not None and template == subject.info.template and labels != subject.info.labels:
        trained = subject.info.labels
        return Finding(
            "",
            False,
            f"{said}, but the adapter was trained on {trained.positive} and {trained.negative}; train again.",
            facts,
        )
    return Finding("", True, f"{said}, one token each.", facts)


def _bos(subject: CheckedModel) -> Finding:
    hf, bos = subject.tokenizer.hf, subject.tokenizer.hf.bos_token_id
    adds = bos is not None and bos in hf("x")["input_ids"]
    group = _one_prompt(subject)
    tokens = [*group.prefix, *group.suffixes[0]]
    n = next((i for i, token in enumerate(tokens) if token != bos), len(tokens))  # how many it begins with
    written = bos is not None and hf.chat_template is not None and n > 0
    facts = {"bos_token_id": bos, "added_by_tokenizer": adds, "first_tokens": tokens[:3], "leading": n}
    first = hf.convert_ids_to_tokens(tokens[0])
    if bos is None:
        return Finding("", True, f"the tokenizer has none; prompts begin with {first!r}.", facts)
    if not adds and not written:
        return Finding("", n == 0, f"the tokenizer adds none; prompts begin with {first!r}.", facts)
    if n == 1:
        return Finding("", True, f"prompts begin with {first!r} ({bos}) once.", facts)
    return Finding(
        "",
        False,
        f"prompts begin with {hf.bos_token!r} {n} times ({first!r} comes first), expected once.",
        facts,
    )


def _chat_template(subject: CheckedModel) -> Finding:
    """Say what the chat template does, and whether every text is still in the prompt."""
    facts = _chat_facts(subject.tokenizer.hf)
    builder = subject.builder(subject.templates[0])
    group = builder.build(_ITEMS[:3], _PROFILE, _ITEMS[4:5]).group
    text = subject.tokenizer.decode([*group.prefix, *group.suffixes[0]])
    system = builder.template.render(
        "system", recent=list(_ITEMS[:3]), profile=_PROFILE, notes="", candidate=_ITEMS[4]
    )
    missing = [part for part in (system.strip(), _PROFILE, *_ITEMS[:3], _ITEMS[4]) if part not in text]
    if missing:
        return Finding("", False, f"{missing[0][:60]!r} is not in the prompt as it was given.", facts)
    if not facts["present"]:
        return Finding("", True, "none: prompts are plain paragraphs, and the whole text is there.", facts)
    system_role = "a system role" if facts["system_role"] else "no system role (its text goes to the user's)"
    trims = "trims texts" if facts["trims"] else "keeps texts as they are"
    thinking = "has a switch for thinking" if facts["thinking"] else "knows no thinking"
    return Finding("", True, f"{system_role}, {trims}, {thinking}; the whole text is there.", facts)


def _chat_facts(hf: Any) -> dict[str, bool]:
    """Return what a tokenizer's chat template does by itself."""
    if hf.chat_template is None:
        return {"present": False, "system_role": False, "trims": False, "thinking": False}

    def render(*turns: tuple[str, str]) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return str(hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    try:
        system_role = "Weigh both." in render(("system", "Weigh both."), ("user", "Which?"))
    except Exception:  # a template refuses in its own way
        system_role = False
    text = render(("user", " \n Which?"))
    source = str(hf.chat_template)
    return {
        "present": True,
        "system_role": system_role,
        "trims": " \n Which?" not in text,
        "thinking": "enable_thinking" in source or "<think>" in text,
    }


def _context(subject: CheckedModel) -> Finding:
    limit, wanted = context_of(subject.config), subject.prompt.max_tokens
    facts = {"context": limit, "max_tokens": wanted}
    if limit is None:
        return Finding(
            "", True, f"without a limit that its configuration names; prompts have up to {wanted}.", facts
        )
    if limit < wanted:
        said = f"{limit} tokens, but prompts may have {wanted}; set prompt.max_tokens to at most {limit}."
        return Finding("", False, said, facts)
    return Finding("", True, f"{limit} tokens; prompts have up to {wanted}.", facts)


def _sharing(subject: CheckedModel) -> Finding:
    """Compare margins as ranking computes them with those of plain passes, a prompt at a time."""
    import numpy as np

    from trsr.llm import prefix_attention
    from trsr.recommend.scorer import SharedPrefixScorer

    groups, labels = _two_groups(subject)
    for group in groups:
        check_vocabulary(subject.config, subject.tokenizer, group.prefix)
    plain = _plain_margins(subject.model, groups, labels)
    with _logged(prefix_attention.__name__) as said:
        shares = prefix_attention.enable(subject.model)
        found = dict(SharedPrefixScorer(subject.model).score(groups, labels))
    margins = np.concatenate([found[i] for i in range(len(groups))]).astype(np.float64)
    difference = float(np.abs(margins - plain).max())
    spread = float(np.std(plain))
    dtype = str(subject.model.dtype).removeprefix("torch.")
    absolute, relative = _TOLERANCES[dtype]
    ok = difference <= absolute + relative * spread  # false for NaN
    facts = {
        "shared": shares,
        "reason": "; ".join(said),
        "prompts": len(plain),
        "longest_prompt": max(len(g.prefix) + max(map(len, g.suffixes)) for g in groups),
        "max_difference": difference,
        "spread": spread,
        "tolerance": absolute + relative * spread,
    }
    how = "shared" if shares else "refused, so candidates are read one by one"
    verdict = "exact" if ok else f"WRONG: at most {facts['tolerance']:.1g} is rounding"
    numbers = (
        f"margins of {len(plain)} prompts differ by {difference:.1e} at most (they spread by {spread:.1e})"
    )
    return Finding("", ok, f"{how}; {numbers}: {verdict}.", facts)


def _plain_margins(model: Any, groups: list[ScoringGroup], labels: LabelTokens) -> Any:
    """Return the margins of all prompts, each read by transformers alone; float64 (n_prompts,)."""
    import numpy as np
    import torch

    found = []
    for prefix, suffix in [(g.prefix, suffix) for g in groups for suffix in g.suffixes]:
        tokens = torch.tensor([[*prefix, *suffix]], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=tokens, use_cache=False).logits[0, -1].float()
        found.append(float(logits[labels.positive] - logits[labels.negative]))
    return np.array(found)


def _two_groups(subject: CheckedModel) -> tuple[list[ScoringGroup], LabelTokens]:
    """Return a long and a short user's prompts, of the first template whose labels this model can answer."""
    room = min(_SHARING_TOKENS, subject.prompt.max_tokens, context_of(subject.config) or _SHARING_TOKENS)
    problem: ModelError | None = None
    for template in subject.templates:
        builder = subject.builder(template, max_tokens=room)
        try:
            labels = builder.labels()
        except ModelError as error:
            problem = problem or error
            continue
        candidates = _ITEMS[-(N_PROMPTS // 2) :]
        long = builder.build(_ITEMS * 2, _PROFILE, candidates).group
        return [long, builder.build(_ITEMS[:2], "", candidates).group], labels
    raise problem or ModelError("There is no template to ask with; name one with --template.")


def _one_prompt(subject: CheckedModel) -> ScoringGroup:
    return subject.builder(subject.templates[0]).build(_ITEMS[:3], _PROFILE, _ITEMS[4:5]).group


def _lora_targets(subject: CheckedModel) -> Finding:
    from trsr.train.config import LoraConfig
    from trsr.train.lora import lora_targets

    layers = lora_targets(subject.name, LoraConfig())
    names = sorted({layer.rpartition(".")[2] for layer in layers})
    return Finding(
        "", True, f"{', '.join(names)}: {len(layers)} layers.", {"targets": names, "layers": len(layers)}
    )


def _generation(subject: CheckedModel) -> Finding:
    """Write a line with the engine `transformers`, and compare it with what the model writes by itself."""
    import torch
    from transformers import GenerationConfig

    from trsr.llm.answers import answer_or_error
    from trsr.llm.chat_format import rendered
    from trsr.llm.generation import TransformersGenerator

    tokenizer = subject.tokenizer
    subject.forget()  # as it was loaded, without an adapter and with its own attention
    adapter, subject.adapter = subject.adapter, None
    try:
        model = subject.model
        text = rendered(tokenizer, _QUESTION, thinking=False)
        read = tokenizer.hf(text, add_special_tokens=not tokenizer.has_chat_template)["input_ids"]
        check_vocabulary(model.config, tokenizer, read)
        ids = torch.tensor([read], device=model.device)
        eos = model.generation_config.eos_token_id
        ends = [*(eos if isinstance(eos, list) else [eos]), tokenizer.hf.eos_token_id]
        ends = sorted({end for end in ends if end is not None})
        greedy = GenerationConfig(
            max_new_tokens=_NEW_TOKENS, do_sample=False, eos_token_id=ends or None, pad_token_id=0
        )
        model.generation_config = GenerationConfig()  # else `generate` takes its penalties from there
        with torch.inference_mode():
            written = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)[
                0, ids.shape[1] :
            ]
    finally:
        subject.adapter = adapter
        subject.forget()
    decoded = str(tokenizer.hf.decode(written, skip_special_tokens=True))
    expected, _ = answer_or_error(decoded, (), whole=len(written) < _NEW_TOKENS)
    generator = TransformersGenerator(subject.name, dtype=subject.dtype, device=subject.device)
    try:
        found = next(iter(generator.generate([_QUESTION], GenerationParams(max_new_tokens=_NEW_TOKENS))))
    finally:
        generator.close()
    facts = {"text": found.text, "expected": expected, "tokens": found.n_generated_tokens}
    if found.error is not None:
        return Finding("", False, found.error, facts)
    if found.text != expected:
        return Finding(
            "", False, f"{found.text!r} differs from what transformers writes, {expected!r}.", facts
        )
    shown = repr(found.text) if found.text else f"no text in {found.n_generated_tokens} tokens"
    return Finding("", True, f"{shown}, as transformers writes it.", facts)


class _Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _logged(name: str) -> Iterator[list[str]]:
    """Collect what a logger says, in place of showing it."""
    kept, log = _Kept(), logging.getLogger(name)
    before, log.propagate = log.propagate, False
    log.addHandler(kept)
    try:
        yield kept.messages
    finally:
        log.removeHandler(kept)
        log.propagate = before
