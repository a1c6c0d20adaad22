"""`trsr run`, `train`, `rank`, `evaluate`, `plan` and `demo`: an experiment, or its stages one by one."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from trsr.experiment.config import RunConfig
    from trsr.experiment.experiment import Experiment
    from trsr.experiment.run_folder import RunFolder

ConfigFile = Annotated[Path, typer.Argument(help="YAML file; see configs/.", show_default=False)]
Out = Annotated[Path, typer.Option("--out", help="Run folder; made, or resumed.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Change one setting: a.b=value. Can be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
TokensPerSecond = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        help="Tokens that one machine reads and writes in a second, all prompts together "
        "(`trsr bench summarize` measures it).",
    ),
]
PricePerMillion = Annotated[
    float | None, typer.Option(min=0, help="Money for a million tokens, read or written.")
]
Within = Annotated[
    float, typer.Option(min=0.01, help="Hours in which all must be done; determines the number of machines.")
]
Runner = Annotated[str, typer.Option(help="local, or ray: on the workers of a Ray cluster (extra `ray`).")]
Concurrency = Annotated[
    int | None,
    typer.Option(help="Workers of --runner ray, each with an engine; 1 by default.", show_default=False),
]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(help="GPUs of each worker of --runner ray; 0 by default.", show_default=False),
]

# Of the calibration metrics ece is the readable one; logloss and brier are in the report.
SHOWN = ("recall@1", "recall@3", "recall@10", "mrr@5", "mrr@10", "auc", "ece")
N_SHOWN = 6


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Print one row per ranker, best first, each value with its 95 % interval below."""
    rankers = metrics["rankers"]
    chance = metrics["protocol"].get("chance", {})
    names = [name for name in SHOWN if any(name in values for values in rankers.values())][-N_SHOWN:]
    counts = metrics["counts"]
    table = Table(
        title=f"{counts['users']} test users, {counts['candidates']} candidates, 95 % intervals over users",
        title_justify="left",
    )
    table.add_column("ranker", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    if chance:
        table.add_row("[dim]chance[/dim]", *(_number(chance.get(name)) for name in names))
    order = sorted(rankers, key=lambda ranker: -(rankers[ranker]["auc"]["value"] or 0.0))
    for ranker in order:
        table.add_row(ranker, *(_cell(rankers[ranker].get(name)) for name in names))
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    console.print(table)
    if n := counts.get("targets_in_history"):
        from trsr.evaluation.report import targets_note

        console.print(targets_note(n, counts["examples"]), markup=False)


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["value"] is None:
        return ""
    low, high = (_number(bound, 2) for bound in entry["ci95"])
    return f"{_number(entry['value'])}\n[dim]{low}-{high}[/dim]"


def _number(value: float | None, decimals: int = 3) -> str:
    """Return a number without the leading zero, as the field prints metrics."""
    if value is None:
        return ""
    text = f"{value:.{decimals}f}"
    return text.removeprefix("0") if text.startswith("0.") else text


def plan(
    config: ConfigFile,
    changes: Set = None,
    users: Annotated[
        int | None, typer.Option(min=1, help="Plan a shop of this many users, not the experiment.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Count with this model's tokenizer; by default the engine's model.")
    ] = None,
    daily_events: Annotated[
        float | None, typer.Option(min=0, help="New events of a user per day, with --users.")
    ] = None,
    tokens_per_second: TokensPerSecond = None,
    price_per_million: PricePerMillion = None,
    within: Within = 24.0,
    as_json: AsJson = False,
) -> None:
    """Count the calls and tokens of every stage, and the hours, machines, money and disk they take.

    Texts in the configured `store` cost nothing.

    Example: trsr plan configs/demo.yaml --users 10_000_000 --daily-events 0.5 --tokens-per-second 20000
    --price-per-million 0.05
    """
    from trsr.experiment.config import load_config
    from trsr.experiment.cost_plan import Rates, plan_experiment, render

    facts = plan_experiment(
        load_config(config, changes or ()),
        rates=Rates(tokens_per_second, price_per_million, within),
        tokenizer=tokenizer,
        n_users=users,
        events_per_day=daily_events,
    )
    typer.echo(json.dumps(facts) if as_json else render(facts))


def env(as_json: AsJson = False) -> None:
    """Print versions, machine and source commit, for bug reports and result files.

    Example: trsr env --json
    """
    from trsr.experiment.run_folder import environment

    facts = environment()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        typer.echo(f"{name:12} {shown}")


def _open(config: Path, out: Path, changes: list[str] | None) -> Experiment:
    from trsr.errors import ConfigError
    from trsr.experiment.config import load_config
    from trsr.experiment.experiment import Experiment
    from trsr.train import distributed

    if distributed.count() > 1:
        raise ConfigError(
            f"WORLD_SIZE: found {distributed.count()} processes, but only `trsr train` supports several; "
            "start this command without a launcher."
        )
    return Experiment(_open_folder(load_config(config, changes or ()), out))


def _open_folder(chosen: RunConfig, out: Path) -> RunFolder:
    from trsr.experiment.preflight import check_models, check_store
    from trsr.experiment.run_folder import RunFolder
    from trsr.summarize.store_url import hide_password

    if not (out / "config.yaml").exists():
        check_models(chosen)  # an unknown name must not leave a run folder
        check_store(chosen)
    return RunFolder(out, chosen, "trsr " + shlex.join(map(hide_password, sys.argv[1:])))


def _notify(line: str) -> None:
    typer.echo(line, err=True)


def _run(experiment: Experiment, until: str) -> None:
    from trsr.experiment.stages import run_stages

    run_stages(experiment, until, notify=_notify)


def _print_metrics(out: Path, as_json: bool) -> None:
    """Print the metrics of a finished run, and where the report is."""
    from trsr.storage import read_json

    metrics = read_json(out / "metrics.json")
    if as_json:
        typer.echo(json.dumps(metrics, indent=2))
        return
    from trsr.evaluation.statistics import leaderboards

    print_metrics(metrics)
    for board in leaderboards(metrics):
        typer.echo(board.sentence)
    typer.echo(f"Report: {out / 'report.html'}")


def run(
    config: ConfigFile,
    out: Out,
    changes: Set = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            "--seeds",
            min=2,
            help="Run this many seeds, each in OUT/seedN, and pool them.",
            show_default=False,
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            help="Keep summaries in this file or postgresql://USER:$PASSWORD@HOST/DATABASE (setting `store`)."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run every stage of an experiment; finished stages are not repeated.

    Example: trsr run configs/demo.yaml --out out/demo
    """
    if store is not None:
        changes = [*(changes or ()), f"store={json.dumps(store)}"]
    if seeds is None:
        _run(_open(config, out, changes), "evaluate")
    else:
        from trsr.experiment.config import load_config
        from trsr.experiment.seeds import run_seeds

        def open_experiment(seed: int, folder: Path) -> Experiment:
            return _open(config, folder, [*(changes or ()), f"seed={seed}"])

        first = load_config(config, changes or ()).seed  # the configured seed and those after it
        run_seeds(out, open_experiment, range(first, first + seeds), notify=_notify)
    _print_metrics(out, as_json)


def train(config: ConfigFile, out: Out, changes: Set = None, as_json: AsJson = False) -> None:
    """Run an experiment up to the fine-tuned and calibrated model folder.

    A launcher can start several processes that train together; they share the users of each batch.

    Example: trsr train configs/demo.yaml --out out/demo

    Example: accelerate launch --config_file configs/accelerate/ddp.yaml -m trsr train CONFIG --out OUT
    """
    from trsr.experiment.config import load_config
    from trsr.experiment.stages import check_processes, train_distributed
    from trsr.train import distributed

    chosen = load_config(config, changes or ())
    check_processes(chosen)
    if distributed.count() > 1:
        distributed.join(cpu=chosen.recommender.device == "cpu")
    train_distributed(out, lambda: _open_folder(chosen, out), notify=_notify)
    if not distributed.is_main():
        return
    info = (out / "model" / "trsr.json").read_text(encoding="utf-8")
    typer.echo(info if as_json else f"Model: {out / 'model'}")


def rank(
    config: ConfigFile,
    out: Out,
    changes: Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show one prompt with its token counts; no model is loaded.")
    ] = False,
    runner: Runner = "local",
    concurrency: Concurrency = None,
    gpus_per_worker: GpusPerWorker = None,
    as_json: AsJson = False,
) -> None:
    """Run an experiment up to the scores of every ranker.

    Example: trsr rank configs/demo.yaml --out out/demo --dry-run
    """
    from trsr.experiment.ray import choose_runner

    cluster = choose_runner(runner, concurrency, gpus_per_worker)
    experiment = _open(config, out, changes)
    experiment.runner = cluster
    if dry_run:
        from trsr.experiment.ranking import describe_prompt

        _run(experiment, "examples")
        facts = describe_prompt(experiment)
        if as_json:
            typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
            return
        for name, value in facts.items():
            typer.echo(f"{name}: {value}" if not str(value).count("\n") else f"{name}:\n{value}\n")
        return
    _run(experiment, "rank")
    scores = str(out / "scores.parquet")
    typer.echo(json.dumps({"scores": scores}) if as_json else f"Scores: {scores}")


def evaluate(
    out: Annotated[Path, typer.Argument(help="Run folder with scores.parquet.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Compute metrics and report of a run again from its scores.

    Example: trsr evaluate out/demo
    """
    from trsr.errors import DataError
    from trsr.experiment.stages import run_stage

    if not (out / "scores.parquet").is_file():
        raise DataError(f"{out} holds no scores.parquet; rank first with `trsr run CONFIG --out {out}`.")
    experiment = _open(out / "config.yaml", out, None)
    experiment.folder.check_files()
    with experiment.folder.working():
        run_stage(experiment, "evaluate")
    _print_metrics(out, as_json)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("out/demo"),
    as_json: AsJson = False,
) -> None:
    """Show the whole method on synthetic data with the embedded model, in a few minutes, without a network.

    Example: trsr demo
    """
    from trsr.experiment.dataset_profiles import CONFIG_FILE, compare_summarizers, next_steps

    if not as_json:
        typer.echo(
            "Synthetic shop, embedded model: two summarizers, a short LoRA fine-tune, ranking, report.",
            err=True,
        )
    experiment = _open(CONFIG_FILE, out, None)
    _run(experiment, "evaluate")
    both = compare_summarizers(experiment)
    if not as_json:
        typer.echo(f"\nOne user's history read by both summarizers:\n\n{both}\n")
    _print_metrics(out, as_json)
    if not as_json:
        typer.echo(next_steps(out))
