"""Fine-tune a model on examples and profiles, and open its folder as a `Recommender`."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from trsr.errors import ConfigError, DataError, LeakageError
from trsr.llm import models
from trsr.recommend.calibration import fit_calibration
from trsr.recommend.model_folder import Origin, read_adapter_info, write_adapter_info
from trsr.recommend.prompt import PromptBuilder, PromptConfig, load_ranking_template
from trsr.recommend.recommender import Recommender
from trsr.splitting.split import Split, split_of
from trsr.summarize.summarizer import Profiles
from trsr.train.config import TrainConfig
from trsr.train.dataset import EpochGroups, TrainingGroup, training_groups
from trsr.types import Profile, RankingExample


def fine_tune(
    model: str,
    train: Sequence[RankingExample],
    profiles: Profiles | Mapping[str, Profile] | None = None,
    *,
    out: str | Path,
    valid: Sequence[RankingExample] = (),
    prompt: PromptConfig | Mapping[str, Any] | None = None,
    device: str = "auto",
    seed: int = 0,
    **settings: Any,
) -> Recommender:
    """Fine-tune a LoRA adapter that answers yes or no for a user and a candidate.

    An equal call that was killed is resumed from its newest checkpoint.

    Args:
        model: The base model: `smollm2-135m`, a folder or a hub id.
        train: Training examples, `split.train`.
        profiles: The result of `Summarizer.summarize`: each example is shown with the profile of its history
            before the target, which is written if the store lacks it. Or a mapping from user id to
            profile; or None to train without profiles.
        out: The model folder to write; an older one is replaced.
        valid: Validation examples: they choose the best checkpoint, and fit the calibration.
        prompt: Settings of the ranking prompt (`n_recent`, `max_tokens`, ...).
        device: `auto`, `cpu`, `cuda`, ...
        seed: Order of the examples and initial weights.
        settings: Of training, such as `epochs`, `learning_rate`, `batch_size` or `loss`.

    Returns:
        The fine-tuned recommender.

    Raises:
        ConfigError: a setting is unknown or out of range.
        DataError: a user has no profile, or `train` is a plain list, which has no split.
        LeakageError: a given profile has seen the target of its example.
        ModelError: the model cannot be loaded.
        OutputError: the folder cannot be written.
    """
    from trsr.llm.transformers import HfTokenizer
    from trsr.train.model_card import save_model_folder
    from trsr.train.trainer import train as train_adapter

    split, out = split_of(train), Path(out)
    data = split.dataset
    try:
        config = TrainConfig.model_validate(settings)
        shown = prompt if isinstance(prompt, PromptConfig) else PromptConfig.model_validate(prompt or {})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}.") from error
    if config.profiles.none or config.profiles.counted:
        raise ConfigError("profiles: shares of users without their profile are a setting of runs only.")
    data.check_fields(shown.fields)
    texts = _profiles_before([*train, *valid], profiles, split)
    tokenizer = HfTokenizer(models.hf_folder(model))
    template = load_ranking_template(shown.template, data.info.domain)
    items = data.item_texts(shown.fields, shown.max_field_tokens, tokenizer)
    builder = PromptBuilder(template, shown, tokenizer, items)

    def groups(epoch: int) -> list[TrainingGroup]:
        return training_groups(split.resample(epoch) if epoch else train, texts, builder)

    facts = [model, seed, config.model_dump(mode="json"), shown.model_dump(mode="json"), data.info.sha256]
    facts += [split.description, sorted(texts.items()), [e.example_id for e in (*train, *valid)]]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    checkpoints = out.with_name(f".{out.name}.training-{digest}")
    adapter, report = train_adapter(
        EpochGroups(groups(0), groups if config.resample_negatives else None),
        training_groups(valid, texts, builder),
        model=model,
        labels=builder.labels(),
        config=config,
        checkpoints=checkpoints,
        seed=seed,
        device=device,
    )
    save_model_folder(
        out,
        adapter,
        report,
        model=model,
        labels=builder.labels(),
        template=template,
        prompt=shown,
        config=config,
        dataset=data.info.name,
        command="trsr.fine_tune",
    )
    summarizer = profiles.summarizer.arguments() if isinstance(profiles, Profiles) else None
    origin = Origin(data=str(data.path.resolve()), summarizer=summarizer)
    write_adapter_info(out, read_adapter_info(out).model_copy(update={"origin": origin}))
    shutil.rmtree(checkpoints, ignore_errors=True)
    return _calibrated(Recommender.from_pretrained(out, data, device=device), valid, texts, seed)


def _profiles_before(
    examples: Sequence[RankingExample],
    profiles: Profiles | Mapping[str, Profile] | None,
    split: Split,
) -> dict[str, str]:
    """Return profile texts by example id, none of which has seen its target."""
    if profiles is None:
        return {}
    if isinstance(profiles, Profiles):
        return profiles.before(examples)
    if missing := [example.user_id for example in examples if example.user_id not in profiles]:
        raise DataError(
            f"There is no profile of the user {missing[0]!r} (missing for {len(missing)} examples); "
            "give one for each user, or the result of Summarizer.summarize."
        )
    data, users = split.dataset, {example.user_id for example in examples}
    # A profile counts only the items it can read, so they are counted here too.
    read = {one.user_id: data.readable(one).item_ids for one in data.histories() if one.user_id in users}
    found = {}
    for example in examples:
        profile = profiles[example.user_id]
        chosen = {item for item, label in zip(example.candidates, example.labels, strict=True) if label}
        items = read.get(example.user_id, ())
        places = [place for place, item in enumerate(items) if item in chosen]
        if places and profile.n_items > max(places):
            raise LeakageError(
                f"The profile of the user {example.user_id!r} has read {profile.n_items} items; the target "
                f"is item {max(places) + 1}; give the result of Summarizer.summarize, or profiles of the "
                "history before the target."
            )
        found[example.example_id] = profile.text
    return found


def _calibrated(
    recommender: Recommender, valid: Sequence[RankingExample], profiles: Mapping[str, str], seed: int
) -> Recommender:
    """Fit the calibration on the validation examples, and save it in the model folder."""
    if not valid or recommender.folder is None:
        return recommender
    own, recommender.profiles = recommender.profiles, profiles
    answers = {answer.example_id: answer.margins for answer in recommender.rank(valid)}
    recommender.profiles = own
    fit = fit_calibration(
        np.concatenate([answers[e.example_id] for e in valid]),
        np.concatenate([e.labels for e in valid]),
        [e.user_id for e in valid for _ in e.candidates],
        seed=seed,
    )
    recommender.calibration = fit.calibration
    info = read_adapter_info(recommender.folder)
    write_adapter_info(recommender.folder, info.model_copy(update={"calibration": fit.calibration}))
    return recommender
