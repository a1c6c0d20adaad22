"""Ranks examples and writes the scores, in parts that survive a kill.

Parts hold sigmoid(margin); the calibration of the fine-tuned model is applied when they are merged.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from trsr.baselines.fusion import Fusion, fit_fusion
from trsr.baselines.simple import BM25, Popularity, RandomRanker, Recency
from trsr.data.dataset import Dataset
from trsr.errors import ConfigError, DataError
from trsr.experiment.baselines import check_baselines, make_baseline
from trsr.experiment.config import FUSIONS, OWN_MODEL, RankerName, RunConfig, joinable, variants_of
from trsr.experiment.experiment import Experiment
from trsr.experiment.ray import run_pieces
from trsr.experiment.variants import variant_scores
from trsr.progress import Bar, bar
from trsr.recommend.calibration import Calibration
from trsr.recommend.catalogue import Catalogue
from trsr.recommend.loading import open_scorer
from trsr.recommend.model_folder import read_adapter_info
from trsr.recommend.prompt import check_context
from trsr.recommend.ranker import ExampleScores, Ranker, score_table, sigmoid, without_llm
from trsr.recommend.recommender import Recommender
from trsr.storage import atomic_write, read_table
from trsr.types import RankingExample

EXAMPLES_A_PART = 10
PROBABILISTIC = frozenset({*OWN_MODEL, "llm_zero_shot"})


def rank_candidates(experiment: Experiment) -> dict[str, Any]:
    """Score the test examples with every configured ranker.

    Raises:
        OutputError: the run folder cannot be written; finished parts are kept.
    """
    check_baselines(experiment)
    examples, rankers = experiment.splits.test, experiment.config.rankers
    calibration = model_calibration(experiment) if OWN_MODEL.keys() & set(rankers) else None
    file = experiment.folder.path / "scores.parquet"
    _take_apart(file, rankers, examples)
    with bar("Ranking") as shown:
        score_in_parts(experiment, rankers, examples, file, shown, calibration, variant_scores(experiment))
    if PROBABILISTIC & set(rankers):
        n_recent = experiment.config.prompt.n_recent
        shown_items = {item for example in examples for item in example.candidates}
        shown_items |= {item for e in examples if n_recent for item in e.history[-n_recent:]}
        experiment.record_cuts("prompt", shown_items)
    return {"rankers": len(rankers), "examples": len(examples)}


def probabilistic_rankers(config: RunConfig) -> frozenset[str]:
    """Return the rankers whose score is a probability."""
    return PROBABILISTIC | set(variants_of(config))


def _take_apart(file: Path, rankers: Sequence[str], examples: Sequence[RankingExample]) -> None:
    """Split finished scores into parts again, for a run that has more rankers now."""
    if not file.exists():
        return
    scores, folder = read_table(file), file.with_suffix(".parts")
    starts = range(0, len(examples), EXAMPLES_A_PART)
    for name in rankers:
        if name in FUSIONS:  # there may be more to combine now
            continue
        rows = scores.filter(pl.col("ranker") == name)
        if rows.is_empty():
            continue
        if name in PROBABILISTIC:  # they may have been calibrated
            rows = rows.with_columns(score=pl.Series(sigmoid(rows["margin"].to_numpy())))
        for start, part in zip(starts, _parts(folder, name, examples), strict=True):
            ids = [example.example_id for example in examples[start : start + EXAMPLES_A_PART]]
            if not part.exists():
                atomic_write(part, rows.filter(pl.col("example_id").is_in(ids)).write_parquet)


def model_calibration(experiment: Experiment) -> Calibration | None:
    """Return the calibration that the run's model folder holds.

    Raises:
        RunMismatchError: the model folder cannot be read.
    """
    return read_adapter_info(experiment.folder.path / "model").calibration


def score_in_parts(
    experiment: Experiment,
    rankers: Sequence[RankerName],
    examples: Sequence[RankingExample],
    file: Path,
    shown: Bar,
    calibration: Calibration | None = None,
    more: Sequence[pl.DataFrame] = (),
    *,
    served: bool = True,
) -> None:
    """Score examples with some rankers into one file, in the order of rankers, examples and candidates.

    Finished parts are kept in a folder `*.parts` until the file is complete, and are not computed again.

    Args:
        experiment: The run.
        rankers: Their names.
        examples: Of one split.
        file: Columns as in `SCORES`.
        shown: Progress.
        calibration: Applied to the scores of the fine-tuned model; its margins are not changed.
        more: Scores of variants, appended.
        served: As for `make_ranker`.
    """
    parts = file.with_suffix(".parts")
    for number, name in enumerate(sorted(rankers, key=lambda name: name in FUSIONS)):  # they read the others
        show = partial(_show, shown, rankers, number, len(examples))
        _rank(experiment, name, examples, parts, show, served=served)
    frames = [read_table(part) for name in rankers for part in _parts(parts, name, examples)]
    atomic_write(file, pl.concat([_calibrated(pl.concat(frames), calibration), *more]).write_parquet)
    shutil.rmtree(parts, ignore_errors=True)


def _calibrated(scores: pl.DataFrame, calibration: Calibration | None) -> pl.DataFrame:
    """Replace the scores of the fine-tuned model by calibrated ones."""
    if calibration is None:
        return scores
    values = pl.Series(calibration.apply(scores["margin"].to_numpy()))
    return scores.with_columns(
        score=pl.when(pl.col("ranker").is_in(list(OWN_MODEL))).then(values).otherwise(pl.col("score"))
    )


def _show(shown: Bar, rankers: Sequence[str], number: int, n_examples: int, done: int) -> None:
    shown.update(number * n_examples + done, len(rankers) * n_examples, rankers[number])


def _parts(folder: Path, name: str, examples: Sequence[RankingExample]) -> list[Path]:
    """Return the files of a ranker's parts, in order."""
    return [folder / f"{name}-{start:06d}.parquet" for start in range(0, len(examples), EXAMPLES_A_PART)]


def _rank(
    experiment: Experiment,
    name: RankerName,
    examples: Sequence[RankingExample],
    folder: Path,
    on_progress: Callable[[int], None],
    *,
    served: bool,
) -> None:
    """Write the missing parts of one ranker."""
    files = _parts(folder, name, examples)
    missing = [i for i, file in enumerate(files) if not file.exists()]
    if not missing:
        return
    parts = {i: examples[i * EXAMPLES_A_PART : (i + 1) * EXAMPLES_A_PART] for i in missing}
    if experiment.runner is not None and name in PROBABILISTIC:  # the others cost less than a worker's start
        pieces = [(files[i].resolve(), part) for i, part in parts.items()]
        n_done = 0
        for _, n_examples in run_pieces(
            pieces, partial(PartWriter, experiment, name, served=served), experiment.runner
        ):
            n_done += n_examples
            on_progress(n_done)
        return
    ranker = make_ranker(experiment, name, served=served)
    for i, part in parts.items():
        write_part(files[i], ranker, part, name)
        on_progress(i * EXAMPLES_A_PART + len(part))


class PartWriter:
    """Writes parts on a Ray worker, with one ranker for all of them."""

    def __init__(self, experiment: Experiment, name: RankerName, *, served: bool) -> None:
        self._ranker = make_ranker(experiment, name, served=served)

    def __call__(self, part: tuple[Path, Sequence[RankingExample]]) -> int:
        """Write a part unless it exists, and return its number of examples."""
        file, examples = part
        if not file.exists():  # a worker may have died just after writing it
            write_part(file, self._ranker, examples)
        return len(examples)


def write_part(
    file: Path, ranker: Ranker, examples: Sequence[RankingExample], name: str | None = None
) -> None:
    """Score some examples into a file of their own."""
    atomic_write(file, score_table(ranker, examples, name).write_parquet)


def own_ranker(path: str, dataset: Dataset) -> Ranker:
    """Import a user's own ranker and make it with a dataset; the working directory is searched too.

    Raises:
        ConfigError: there is no such class, a dataset does not make one, or it lacks a member of `Ranker`.
    """
    module, _, name = path.rpartition(".")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        made: Ranker = getattr(import_module(module), name)(dataset)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"rankers: {path} cannot be imported ({error}); check its spelling.") from error
    except TypeError as error:
        raise ConfigError(
            f"rankers: {path} cannot be made with a dataset as its only argument: {error}."
        ) from error
    if missing := [member for member in ("name", "probabilistic", "rank") if not hasattr(made, member)]:
        raise ConfigError(f"rankers: {path} lacks `{missing[0]}`, which every ranker must have; add it.")
    return made


def _fitted(ranker: Ranker, experiment: Experiment) -> Ranker:
    if fit := getattr(ranker, "fit", None):
        fit(experiment.splits)
    return ranker


def make_ranker(  # noqa: PLR0911 - one per name
    experiment: Experiment, name: RankerName, *, served: bool = True
) -> Ranker:
    """Make the ranker called `name`, fitted on the training data.

    Args:
        experiment: The run.
        name: A built-in name or an import path.
        served: Whether a language model may rank on the server that the configuration names for it.
    """
    match name:
        case "random":
            return RandomRanker(experiment.config.seed)
        case "popularity":
            return _fitted(Popularity(experiment.dataset), experiment)
        case "recency":
            return Recency(experiment.dataset)
        case "bm25":
            return BM25(experiment.bm25_index, profiles=experiment.profiles)
        case "popularity_decayed" | "embedding" | "bag_of_words" | "ncf" | "gru4rec" | "bert4rec" | "sasrec":
            if name not in experiment.fitted:
                experiment.fitted[name] = make_baseline(experiment, name)
            return experiment.fitted[name]
        case "llm_zero_shot" | "llm" | "llm_no_profile" | "llm_counted":
            return _llm_ranker(experiment, name, served=served)
        case "fusion" | "fusion_all" | "fusion_no_llm":
            return make_fusion(experiment, name)
        case _:
            if name not in experiment.fitted:
                ranker = own_ranker(name, experiment.dataset)
                experiment.fitted[name] = _fitted(ranker, experiment)
            return experiment.fitted[name]


def _llm_ranker(experiment: Experiment, name: RankerName, *, served: bool) -> Ranker:
    """Open the base model, or for rankers of `OWN_MODEL` the fine-tuned one, here or on its server."""
    adapter = experiment.folder.path / "model" if name in OWN_MODEL else None
    recommender, template = experiment.config.recommender, experiment.ranking_template.hash
    version = experiment.tokenizer.prompt_version
    server = recommender.servers.get("llm" if adapter else "llm_zero_shot") if served else None
    check_context(recommender.model, experiment.config.prompt)
    scorer, info = open_scorer(recommender, adapter, template, version, server=server)
    profiles = experiment.profiles_as(OWN_MODEL.get(name, "own"))
    return Recommender(
        scorer,
        experiment.builder,
        info.labels if info else experiment.labels,
        Catalogue(experiment.dataset.catalogue(), experiment.dataset.info.text_fields),
        name=name,
        profiles=profiles,
        n_field_cut=experiment.n_field_cut,
    )


Features = npt.NDArray[np.float64]


class FusionRanker:
    """Combines stored margins of `llm`, None if it is left out, with the margins of other rankers."""

    probabilistic = False

    def __init__(self, name: str, fusion: Fusion, llm: pl.DataFrame | None, others: Sequence[Ranker]) -> None:
        self.name = name
        self._fusion = fusion
        self._llm = llm
        self._others = others

    def rank(self, examples: Sequence[RankingExample]) -> Iterator[ExampleScores]:
        """Yield one answer per example.

        Raises:
            DataError: `llm` has not ranked one of them.
        """
        for example, features in zip(examples, _features(examples, self._llm, self._others), strict=True):
            yield without_llm(example, self._fusion.margins(features))


def make_fusion(experiment: Experiment, name: RankerName = "fusion") -> FusionRanker:
    """Fit the weights on the validation examples, write them to `NAME.json`, and return the ranker.

    Raises:
        DataError: validation examples or margins of `llm` are missing, or too few users can be learned from.
    """
    examples = experiment.splits.valid
    if not examples:
        raise DataError(
            f"There are no validation examples, from which {name} learns; set n_valid of the protocol, or"
            f" take {name} out of `rankers`."
        )
    valid_margins, test_margins = (None, None) if name == "fusion_no_llm" else _llm_margins(experiment, name)
    others = [make_ranker(experiment, other) for other in _joined(experiment, name)]
    fusion = fit_fusion(
        _features(examples, valid_margins, others),
        [np.asarray(example.labels) for example in examples],
        [example.user_id for example in examples],
        [*(() if valid_margins is None else ("llm",)), *(ranker.name for ranker in others)],
        seed=experiment.config.seed,
    )
    experiment.folder.write_json(f"{name}.json", fusion.to_json())
    return FusionRanker(name, fusion, test_margins, others)


def _joined(experiment: Experiment, name: RankerName) -> list[RankerName]:
    """Return the rankers that are combined, without `llm`."""
    if name != "fusion":
        return joinable(experiment.config.rankers)
    timed = experiment.splits.training_events["timestamp"].is_not_null().any()
    names: list[RankerName] = ["popularity", "popularity_decayed", "recency", "bm25"]
    return [one for one in names if timed or one != "popularity_decayed"]


def _llm_margins(experiment: Experiment, name: RankerName) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the margins of `llm` for the validation and the test candidates."""
    folder = experiment.folder.path
    valid_file = folder / "valid_scores.parquet"
    if not valid_file.exists():
        raise DataError(
            f"{valid_file} is missing, from which {name} learns: it needs a trained model and validation"
            f" examples (n_valid of the protocol); run in a new folder, or take {name} out of `rankers`."
        )
    parts = sorted((folder / "scores.parts").glob("llm-*.parquet"))
    if not parts:
        raise DataError(f"{folder} holds no scores of `llm` to join; rank again with `llm` in `rankers`.")
    return read_table(valid_file), pl.concat([read_table(part) for part in parts])


def _features(
    examples: Sequence[RankingExample], llm: pl.DataFrame | None, others: Sequence[Ranker]
) -> list[Features]:
    """Return the margins of all rankers, `llm` first, for each example: shape (n_candidates, n_rankers)."""
    known = {} if llm is None else _by_item(llm)
    answers = [{answer.example_id: answer.margins for answer in r.rank(examples)} for r in others]
    table = []
    for example in examples:
        columns = [answer[example.example_id].tolist() for answer in answers]
        if llm is not None:
            found = known.get(example.example_id, {})
            if missing := [item for item in example.candidates if item not in found]:
                raise DataError(
                    f"`llm` has not ranked the item {missing[0]!r} of the example {example.example_id!r};"
                    " rank again in a new run folder."
                )
            columns.insert(0, [found[item] for item in example.candidates])
        table.append(np.asarray(columns, dtype=np.float64).T)
    return table


def _by_item(llm: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Return margins by example and item."""
    return {
        str(example_id): dict(zip(items, margins, strict=True))
        for example_id, items, margins in llm.group_by("example_id")
        .agg("item_id", "margin")
        .select("example_id", "item_id", "margin")
        .iter_rows()
    }


def describe_prompt(experiment: Experiment) -> dict[str, Any]:
    """Render the first test example's prompt for its first candidate.

    Returns:
        The prompt's text, its token counts, and how much was cut to fit the budget. Without a finished stage
        `summarize` the prompt has no profile, and `profile` says this.
    """
    example = experiment.splits.test[0]
    written = "summarize" in experiment.folder.stages()
    profile = experiment.profiles.get(example.example_id, "") if written else ""
    prompt = experiment.builder.build(example.history, profile, example.candidates)
    suffix = prompt.group.suffixes[0]
    labels = experiment.labels
    decode = experiment.tokenizer.decode
    answers = [f"{decode([token])!r} ({token})" for token in (labels.positive, labels.negative)]
    return {
        "user": example.user_id,
        "profile": "written" if written else "not written yet; the prompt below has none",
        "prompt": decode(prompt.group.prefix + suffix),
        "prefix_tokens": len(prompt.group.prefix),
        "candidate_tokens": len(suffix),
        "candidates": len(example.candidates),
        "max_tokens": experiment.config.prompt.max_tokens,
        "recent_items_cut": prompt.n_recent_cut,
        "tokens_cut": prompt.n_tokens_cut,
        "answers": ", ".join(answers),
    }
