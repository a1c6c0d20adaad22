"""`trsr models`: lists, resolves, caches and checks language models."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

models_app = typer.Typer(
    name="models", no_args_is_help=True, help="List, resolve and cache language models: `trsr models list`."
)

Name = Annotated[
    str, typer.Argument(help="smollm2-135m, a .gguf file, a model folder, or a hub id.", show_default=False)
]
_ENGINE_HELP = (
    "llm or llm_zero_shot (the run's own model, here), transformers[:MODEL], llamacpp[:GGUF], "
    "openai:MODEL@URL, or the settings of an engine as '{kind: openai, ...}'."
)
_CHECKED_HELP = "As for `resolve`, or the folder of a fine-tuned model or its run; of two engines, the first."
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@models_app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """Show the embedded model, what is cached, and which engines are installed.

    Example: trsr models list
    """
    from trsr.llm import models
    from trsr.llm.engines import REQUIRED_PACKAGES

    folder = models.cache_dir() / "models"
    cached = sorted(path for path in folder.glob("[!.]*") if path.is_dir()) if folder.is_dir() else []
    sizes = {path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in cached}
    ready = {
        kind: needs is None or importlib.util.find_spec(needs[0]) is not None
        for kind, needs in REQUIRED_PACKAGES.items()
    }
    kind = models.locate(models.EMBEDDED_MODEL).kind
    if as_json:
        listed = [{"path": str(path), "bytes": size} for path, size in sizes.items()]
        found = {"embedded": {models.EMBEDDED_MODEL: kind}, "cached": listed, "engines": ready}
        typer.echo(json.dumps(found))
        return
    where = "installed" if kind == "gguf" else "on the Hugging Face hub"
    typer.echo(f"embedded  {models.EMBEDDED_MODEL}  ({where})")
    for path, size in sizes.items():
        typer.echo(f"cached    {path}  ({size / 2**20:.0f} MiB)")
    for name, needs in REQUIRED_PACKAGES.items():
        note = "ready" if ready[name] or needs is None else f"pip install 'trsr[{needs[1]}]'"
        typer.echo(f"engine    {name:12}  {note}")


@models_app.command("resolve")
def resolve_model(name: Name, as_json: AsJson = False) -> None:
    """Print a model's id, revision and local files; nothing is downloaded.

    Example: trsr models resolve smollm2-135m
    """
    from trsr.llm import models

    identity = models.model_id(name)
    files = models.model_files(name)
    _show(
        {
            "name": name,
            "kind": models.locate(name).kind,
            "model_id": identity,
            "revision": identity.rpartition("@")[2],
            "files": [str(file) for file in files],
        },
        as_json,
    )


@models_app.command("cache")
def cache_model(name: Name, as_json: AsJson = False) -> None:
    """Prepare a model for the engine `transformers`: download it, or de-quantise its GGUF file once.

    Example: trsr models cache smollm2-135m
    """
    from trsr.llm import models

    folder = models.hf_folder(name)
    _show({"name": name, "model_id": models.model_id(name), "folder": str(folder)}, as_json)


@models_app.command("check")
def check(
    first: Annotated[str, typer.Argument(metavar="MODEL", help=_CHECKED_HELP, show_default=False)],
    second: Annotated[
        str | None, typer.Argument(metavar="[ENGINE_B]", help=_ENGINE_HELP, show_default=False)
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Two engines: run folder with the prompts.", show_default=False)
    ] = None,
    prompts: Annotated[int, typer.Option(min=2, help="Two engines: prompts of its test users.")] = 20,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0.0, help="Two engines: largest difference of margins at which they agree, in logits."
        ),
    ] = 0.5,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="Ranking template; can be repeated. All built-in ones by default.",
            show_default=False,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=32, help="Tokens of the longest prompt.", show_default=False)
    ] = None,
    dtype: Annotated[str, typer.Option(help="Precision of the model.")] = "auto",
    device: Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, ...")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Check whether a model can rank and write here; or, with two engines, whether they agree on a run.

    Exit code 1 if a check fails. Nothing is written.

    Example: trsr models check meta-llama/Llama-2-7b-hf
    Example: trsr models check llm openai:tuned@http://127.0.0.1:8000/v1 --run out/demo
    """
    from trsr.errors import ConfigError

    if second is not None:
        if run is None:
            raise ConfigError("--run is missing; two engines are compared on the prompts of a run folder.")
        _check_engines(first, second, run, prompts, tolerance, as_json)
        return
    if run is not None:
        raise ConfigError("--run compares two engines; name the second, or leave --run out to check a model.")
    from trsr.experiment.model_check import CheckedModel, check_model

    templates = tuple(template or ())
    checked = CheckedModel(first, templates=templates, max_tokens=max_tokens, dtype=dtype, device=device)
    found = list(check_model(checked))
    if as_json:
        ok = all(finding.ok for finding in found)
        typer.echo(json.dumps({"model": first, "ok": ok, "checks": list(map(asdict, found))}))
    else:
        width = max(len(finding.check) for finding in found)
        for finding in found:
            typer.echo(f"{finding.check:{width}}  {'ok  ' if finding.ok else 'FAIL'}  {finding.message}")
    if not all(finding.ok for finding in found):
        raise typer.Exit(1)


def _check_engines(first: str, second: str, run: Path, prompts: int, tolerance: float, as_json: bool) -> None:
    """Score prompts of a run on two engines and compare margins and ranks."""
    from trsr.experiment.engine_check import compare_engines, parse_engine
    from trsr.experiment.experiment import open_run

    engines = parse_engine(first), parse_engine(second)
    found = compare_engines(open_run(run), *engines, n_prompts=prompts, tolerance=tolerance)
    if as_json:
        typer.echo(json.dumps({"first": first, "second": second, **asdict(found), "tolerance": tolerance}))
    else:
        tau = "undefined" if found.kendall_tau is None else f"{found.kendall_tau:.3f}"
        verdict = "agree" if found.agrees else "DISAGREE"
        lines = {
            "prompts": f"{found.n_prompts} of {found.n_users} users, {found.same_tokens:.0%} same tokens",
            "difference": f"max {found.max_difference:.4f}, mean {found.mean_difference:.4f} logits",
            "shift": f"{found.mean_shift:+.4f} (margins within a user spread by {found.spread:.4f})",
            "ranks": f"Kendall's tau {tau}, same best candidate for {found.same_top:.0%} of users",
            "verdict": f"{verdict}: no margin may differ by more than {tolerance:g}",
        }
        _show(lines, as_json=False)
    if not found.agrees:
        raise typer.Exit(1)


def _show(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        lines = value if isinstance(value, list) else [value]
        for line in lines or ["none here"]:
            typer.echo(f"{key:{width}}  {line}")
