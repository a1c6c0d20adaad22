"""`trsr run`, `train`, `rank`, `evaluate` and `demo`: a whole experiment, or its stages one by one."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trsr.cli.options import Concurrency, GpusPerWorker, Runner

if TYPE_CHECKING:
    from trsr.config import RunConfig
    from trsr.pipeline.folder import RunFolder
    from trsr.pipeline.workbench import Workbench

ConfigFile = Annotated[Path, typer.Argument(help="YAML file; see configs/.", show_default=False)]
Out = Annotated[Path, typer.Option("--out", help="Run folder; made, or taken up where it was left.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Change one setting: a.b=value. Can be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def _open(config: Path, out: Path, changes: list[str] | None) -> Workbench:
    from trsr.config import load_config
    from trsr.errors import ConfigError
    from trsr.pipeline.workbench import Workbench
    from trsr.train import processes

    if processes.count() > 1:
        raise ConfigError(
            f"WORLD_SIZE: found {processes.count()} processes, but only `trsr train` is done by several; "
            "launch that, and this command without a launcher."
        )
    return Workbench(_open_folder(load_config(config, changes or ()), out))


def _open_folder(chosen: RunConfig, out: Path) -> RunFolder:
    from trsr.pipeline.folder import RunFolder
    from trsr.pipeline.preflight import check_models, check_store
    from trsr.summarize.places import redacted

    if not (out / "config.yaml").exists():
        check_models(chosen)  # a name that nobody knows must not cost a run folder
        check_store(chosen)
    return RunFolder(out, chosen, "trsr " + shlex.join(map(redacted, sys.argv[1:])))


def _run(bench: Workbench, until: str) -> None:
    from trsr.pipeline.stages import run_stages

    run_stages(bench, until, say=lambda line: typer.echo(line, err=True))


def _print_metrics(out: Path, as_json: bool) -> None:
    """Print the metrics of a finished run, and where the report is."""
    from trsr.data.files import read_json

    metrics = read_json(out / "metrics.json")
    if as_json:
        typer.echo(json.dumps(metrics, indent=2))
        return
    from trsr.cli.tables import print_metrics
    from trsr.evaluate.standings import standings

    print_metrics(metrics)
    for standing in standings(metrics):
        typer.echo(standing.sentence)
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
        _run_seeds(config, out, changes, seeds)
    _print_metrics(out, as_json)


def _run_seeds(config: Path, out: Path, changes: list[str] | None, n_seeds: int) -> None:
    """Run the configured seed and those after it."""
    from trsr.config import load_config
    from trsr.pipeline.seeds import run_seeds

    def open_bench(seed: int, folder: Path) -> Workbench:
        return _open(config, folder, [*(changes or ()), f"seed={seed}"])

    first = load_config(config, changes or ()).seed
    run_seeds(out, open_bench, range(first, first + n_seeds), say=lambda line: typer.echo(line, err=True))


def train(config: ConfigFile, out: Out, changes: Set = None, as_json: AsJson = False) -> None:
    """Run an experiment up to the fine-tuned and calibrated model folder.

    Several processes train together where a launcher starts them; `batch_size` stays users a step of all.

    Example: trsr train configs/demo.yaml --out out/demo

    Example: accelerate launch --config_file configs/accelerate/ddp.yaml -m trsr train CONFIG --out OUT
    """
    from trsr.config import load_config
    from trsr.pipeline.together import check_processes, train_together
    from trsr.train import processes

    chosen = load_config(config, changes or ())
    check_processes(chosen)
    if processes.count() > 1:
        processes.join(cpu=chosen.recommender.device == "cpu")
    train_together(out, lambda: _open_folder(chosen, out), say=lambda line: typer.echo(line, err=True))
    if not processes.is_main():
        return
    info = (out / "model" / "trsr.json").read_text(encoding="utf-8")
    typer.echo(info if as_json else f"Model: {out / 'model'}")


def rank(
    config: ConfigFile,
    out: Out,
    changes: Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show one prompt with its token counts; load no model.")
    ] = False,
    runner: Runner = "local",
    concurrency: Concurrency = None,
    gpus_per_worker: GpusPerWorker = None,
    as_json: AsJson = False,
) -> None:
    """Run an experiment up to the scores of every ranker.

    Example: trsr rank configs/demo.yaml --out out/demo --dry-run
    """
    from trsr.batch.runner import choose_runner

    cluster = choose_runner(runner, concurrency, gpus_per_worker)
    bench = _open(config, out, changes)
    bench.runner = cluster
    if dry_run:
        from trsr.pipeline.dry_run import describe_prompt

        _run(bench, "examples")
        facts = describe_prompt(bench)
        if as_json:
            typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
            return
        for name, value in facts.items():
            typer.echo(f"{name}: {value}" if not str(value).count("\n") else f"{name}:\n{value}\n")
        return
    _run(bench, "rank")
    typer.echo(
        json.dumps({"scores": str(out / "scores.parquet")})
        if as_json
        else f"Scores: {out / 'scores.parquet'}"
    )


def evaluate(
    out: Annotated[Path, typer.Argument(help="Run folder with scores.parquet.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Compute metrics and report of a run anew from its scores.

    Example: trsr evaluate out/demo
    """
    from trsr.errors import DataError
    from trsr.pipeline.stages import run_stage

    if not (out / "scores.parquet").is_file():
        raise DataError(f"{out} holds no scores.parquet; rank first with `trsr run CONFIG --out {out}`.")
    bench = _open(out / "config.yaml", out, None)
    bench.folder.check_files()
    with bench.folder.working():
        run_stage(bench, "evaluate")
    _print_metrics(out, as_json)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("out/demo"),
    as_json: AsJson = False,
) -> None:
    """Show the whole method on synthetic data with the embedded model, in a few minutes, without a network.

    Example: trsr demo
    """
    from trsr.pipeline.demo import CONFIG_FILE, compare_summarisers, next_steps

    if not as_json:
        typer.echo(
            "Synthetic shop, embedded model: two summarisers, a short LoRA fine-tune, ranking, report.",
            err=True,
        )
    bench = _open(CONFIG_FILE, out, None)
    _run(bench, "evaluate")
    both = compare_summarisers(bench)
    if not as_json:
        typer.echo(f"\nOne user's history read by both summarisers:\n\n{both}\n")
    _print_metrics(out, as_json)
    if not as_json:
        typer.echo(next_steps(out))
