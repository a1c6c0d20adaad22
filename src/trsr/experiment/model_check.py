"""Checks whether a model can be a recommender and a summarizer here: `trsr models check MODEL`.

Each check compares a real prompt or pass with the plain output of tokenizer and model, and so finds mistakes
of `trsr` as well as of the model. A failed check does not stop the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from trsr.errors import ModelError, TrsrError
from trsr.llm import models
from trsr.llm.base import GenerationParams, LabelTokens, Message, Prompt, ScoringGroup
from trsr.llm.chat_format import check_vocabulary
from trsr.llm.models import context_of, read_config
from trsr.recommend.model_folder import FILE_NAME, AdapterInfo, check_adapter, load_adapter, read_adapter_info
from trsr.recommend.prompt import TEMPLATES, PromptBuilder, PromptConfig, load_ranking_template
from trsr.templating import built_in_templates

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

Result = tuple[bool, str]
"""Whether a check passes, and one sentence."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: its name, whether the model passes, and one sentence."""

    check: str
    ok: bool
    message: str


class CheckedModel:
    """A base model, or a fine-tuned one with its adapter merged; each part is loaded when first needed.

    Args:
        name: A model's name, or a model folder or run folder of `trsr`.
        templates: Ranking templates, built-in or files; empty for the adapter's own or, for a base
            model, all built-in ones that fit any family of models.
        max_tokens: Tokens of the longest prompt; None for the adapter's own or the default.
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
        path = Path(name).expanduser()
        self.adapter = next((at for at in (path, path / "model") if (at / FILE_NAME).is_file()), None)
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
        model = self.load_base()
        if self.adapter is None:
            return model
        return load_adapter(model, self.adapter).merge_and_unload().eval()

    def load_base(self) -> Any:
        """Load the base model."""
        from trsr.llm.transformers import load_causal_lm

        return load_causal_lm(self.name, dtype=self.dtype, device=self.device)

    def builder(self, template: str, max_tokens: int | None = None) -> PromptBuilder:
        """Return a builder of prompts whose items are their own texts."""
        changes = {"n_recent": len(_ITEMS), "max_tokens": max_tokens or self.prompt.max_tokens}
        loaded = load_ranking_template(template, "generic")
        return PromptBuilder(loaded, self.prompt.model_copy(update=changes), self.tokenizer, str)

    def one_prompt(self) -> list[int]:
        """Return the tokens of a short prompt of the first template."""
        group = self.builder(self.templates[0]).build(_ITEMS[:3], _PROFILE, _ITEMS[4:5]).group
        return [*group.prefix, *group.suffixes[0]]


def check_model(subject: CheckedModel) -> Iterator[Finding]:
    """Yield the result of each check, in an order that loads the model late and once."""
    checks: dict[str, Callable[[CheckedModel], Result]] = {"model": _architecture}
    if subject.info is not None:
        checks["adapter"] = _adapter
    checks |= {f"labels {name}": partial(_labels, template=name) for name in subject.templates}
    checks |= {"BOS": _bos, "chat template": _chat_template, "context": _context}
    checks |= {"sharing": _sharing, "LoRA targets": _lora_targets, "generation": _generation}
    for name, check in checks.items():
        try:
            found = check(subject)
        except TrsrError as error:
            found = False, " ".join(str(error).split())
        except Exception as error:  # a model's own code, templates and files can fail in any way
            reason = " ".join(str(error).split())[:300] or "no reason given"
            found = False, f"{type(error).__name__}: {reason}"
        yield Finding(name, *found)


def _general_templates() -> tuple[str, ...]:
    """Return the built-in ranking templates without a frame, which fits one family of models only."""
    names = sorted(built_in_templates(TEMPLATES))
    return tuple(name for name in names if "frame" not in load_ranking_template(name, "generic").sections)


def _architecture(subject: CheckedModel) -> Result:
    architectures = getattr(subject.config, "architectures", None) or [type(subject.config).__name__]
    n, dtype = sum(p.numel() for p in subject.model.parameters()), _dtype(subject.model)
    size = f"{n / 1e9:.2f}e9" if n >= 1e8 else f"{n / 1e6:.2f}e6"
    named = f"{models.model_id(subject.name)}, {architectures[0]}"
    return True, f"{named}, {size} parameters in {dtype} on {subject.model.device}."


def _dtype(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


def _adapter(subject: CheckedModel) -> Result:
    info, folder = subject.info, subject.adapter
    assert info is not None
    assert folder is not None
    now = load_ranking_template(info.template, "generic").hash
    check_adapter(
        info,
        folder,
        template_hash=now,
        prompt_version=subject.tokenizer.prompt_version,
        base_model_id=models.model_id(subject.name),
        quantization=info.quantization,
    )
    _ = subject.model  # loads its weights
    trained = f"trained on {info.base_model_id} with the template {info.template!r} ({now[:12]})"
    return True, f"{trained}, both as now."


def _labels(subject: CheckedModel, template: str) -> Result:
    builder = subject.builder(template)
    labels = builder.labels()
    group = builder.build(_ITEMS[:1], _PROFILE, _ITEMS[1:2]).group
    check_vocabulary(subject.config, subject.tokenizer, (*group.prefix, *group.suffixes[0]))
    yes, no = (f"{subject.tokenizer.decode([i])!r} ({i})" for i in (labels.positive, labels.negative))
    if subject.info is not None and template == subject.info.template and labels != subject.info.labels:
        own = subject.info.labels
        trained = f"the adapter was trained on {own.positive} and {own.negative}"
        return False, f"{yes} and {no}, but {trained}; train again."
    return True, f"{yes} and {no}, one token each."


def _bos(subject: CheckedModel) -> Result:
    hf, bos, tokens = subject.tokenizer.hf, subject.tokenizer.hf.bos_token_id, subject.one_prompt()
    n = next((i for i, token in enumerate(tokens) if token != bos), len(tokens))  # how many it starts with
    first = hf.convert_ids_to_tokens(tokens[0])
    if bos is None:
        return True, f"the tokenizer has none; prompts begin with {first!r}."
    if bos not in hf("x")["input_ids"] and (hf.chat_template is None or n == 0):
        return n == 0, f"the tokenizer adds none; prompts begin with {first!r}."
    if n == 1:
        return True, f"prompts begin with {first!r} ({bos}) once."
    return False, f"prompts begin with {hf.bos_token!r} {n} times ({first!r} comes first), expected once."


def _chat_template(subject: CheckedModel) -> Result:
    """Check that every text is in the prompt unchanged."""
    text = subject.tokenizer.decode(subject.one_prompt())
    template = subject.builder(subject.templates[0]).template
    values = {"recent": list(_ITEMS[:3]), "profile": _PROFILE, "notes": "", "candidate": _ITEMS[4]}
    system = template.render("system", **values).strip()
    for part in (system, _PROFILE, *_ITEMS[:3], _ITEMS[4]):
        if part not in text:
            return False, f"{part[:60]!r} is not in the prompt unchanged."
    kind = "none: prompts are plain paragraphs" if subject.tokenizer.hf.chat_template is None else "applied"
    return True, f"{kind}; the whole text is there."


def _context(subject: CheckedModel) -> Result:
    limit, wanted = context_of(subject.config), subject.prompt.max_tokens
    if limit is None:
        return True, f"no limit in its configuration; prompts have up to {wanted}."
    if limit < wanted:
        return (
            False,
            f"{limit} tokens, but prompts may have {wanted}; set prompt.max_tokens to at most {limit}.",
        )
    return True, f"{limit} tokens; prompts have up to {wanted}."


def _sharing(subject: CheckedModel) -> Result:
    """Compare the margins of ranking with the margins of plain passes over one prompt at a time."""
    import numpy as np
    import torch

    from trsr.llm import prefix_attention
    from trsr.recommend.scorer import SharedPrefixScorer

    groups, labels = _two_groups(subject)
    check_vocabulary(subject.config, subject.tokenizer, [token for group in groups for token in group.prefix])
    model, plain = subject.model, list[float]()
    for prefix, suffix in [(group.prefix, suffix) for group in groups for suffix in group.suffixes]:
        tokens = torch.tensor([[*prefix, *suffix]], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=tokens, use_cache=False).logits[0, -1].float()
        plain.append(float(logits[labels.positive] - logits[labels.negative]))
    shares = prefix_attention.enable(model)
    found = dict(SharedPrefixScorer(model).score(groups, labels))
    margins = np.concatenate([found[i] for i in range(len(groups))]).astype(np.float64)
    difference, spread = float(np.abs(margins - np.array(plain)).max()), float(np.std(plain))
    absolute, relative = _TOLERANCES[_dtype(model)]
    tolerance = absolute + relative * spread
    ok = difference <= tolerance  # false for NaN
    how = "shared" if shares else "refused, so candidates are read one by one"
    verdict = "exact" if ok else f"WRONG: at most {tolerance:.1g} is rounding"
    numbers = f"margins of {len(plain)} prompts differ by {difference:.1e} at most"
    return ok, f"{how}; {numbers} (they spread by {spread:.1e}): {verdict}."


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
        long, short = (_ITEMS * 2, _PROFILE), (_ITEMS[:2], "")
        return [builder.build(*one, _ITEMS[-4:]).group for one in (long, short)], labels
    raise problem or ModelError("There is no ranking template; name one with --template.")


def _lora_targets(subject: CheckedModel) -> Result:
    from trsr.train.config import LoraConfig
    from trsr.train.lora import lora_targets

    layers = lora_targets(subject.name, LoraConfig())
    names = sorted({layer.rpartition(".")[2] for layer in layers})
    return True, f"{', '.join(names)}: {len(layers)} layers."


def _generation(subject: CheckedModel) -> Result:
    """Write a line with the engine `transformers`, and compare it with the base model's own `generate`."""
    import torch
    from transformers import GenerationConfig

    from trsr.llm.chat_format import answer_or_error, rendered
    from trsr.llm.generation import TransformersGenerator

    tokenizer = subject.tokenizer
    subject.__dict__.pop("model", None)  # frees the memory
    model = subject.load_base()
    text = rendered(tokenizer, _QUESTION, thinking=False)
    read = tokenizer.hf(text, add_special_tokens=not tokenizer.has_chat_template)["input_ids"]
    check_vocabulary(model.config, tokenizer, read)
    eos = model.generation_config.eos_token_id
    ends = {*(eos if isinstance(eos, list) else [eos]), tokenizer.hf.eos_token_id} - {None}
    greedy = GenerationConfig(
        max_new_tokens=_NEW_TOKENS, do_sample=False, eos_token_id=sorted(ends) or None, pad_token_id=0
    )
    model.generation_config = GenerationConfig()  # else `generate` takes its penalties from there
    ids = torch.tensor([read], device=model.device)
    with torch.inference_mode():
        written = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
    written = written[0, ids.shape[1] :]
    del model
    decoded = str(tokenizer.hf.decode(written, skip_special_tokens=True))
    expected, _ = answer_or_error(decoded, (), whole=len(written) < _NEW_TOKENS)
    generator = TransformersGenerator(subject.name, dtype=subject.dtype, device=subject.device)
    try:
        found = next(iter(generator.generate([_QUESTION], GenerationParams(max_new_tokens=_NEW_TOKENS))))
    finally:
        generator.close()
    if found.error is not None:
        return False, found.error
    if found.text != expected:
        return False, f"{found.text!r} differs from what transformers writes, {expected!r}."
    shown = repr(found.text) if found.text else f"no text in {found.n_generated_tokens} tokens"
    return True, f"{shown}, as transformers writes it."
