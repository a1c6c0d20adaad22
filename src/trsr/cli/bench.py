"""`trsr bench`: each command measures one thing against the naive way and prints one JSON object.

Measured imports run in fresh processes, so that their memory is theirs alone. What is measured is left to the
modules of `trsr`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from trsr.errors import InputError


def bench_summarize(
    users: Annotated[int, typer.Option(min=1, help="Users, handed over all at once.")] = 16,
    in_flight: Annotated[
        int | None,
        typer.Option(min=1, help="Most calls an engine works on at the same time; its default if left out."),
    ] = None,
    calls: Annotated[int, typer.Option(min=1, max=20, help="Calls of a user, one after the other.")] = 4,
    engines: Annotated[
        str | None,
        typer.Option(help="transformers, llamacpp or both, comma-separated; the installed ones by default."),
    ] = None,
    model: Annotated[str, typer.Option(help="Model of the engines.")] = "smollm2-135m",
    single_users: Annotated[
        int, typer.Option(min=1, help="Users on which one prompt at a time is timed.")
    ] = 2,
    as_json: Annotated[
        bool, typer.Option("--json", help="One line of JSON instead of an indented object.")
    ] = False,
) -> None:
    """Time the summaries of many users at once against one prompt at a time, on each engine.

    Example: trsr bench summarize --users 48 --in-flight 16 --engines transformers,llamacpp
    """
    from trsr.bench.summarizing import bench_summarize as measure

    kinds = [name.strip() for name in engines.split(",")] if engines else None
    with tempfile.TemporaryDirectory(prefix="trsr-bench-") as folder:
        result = measure(
            Path(folder) / "news",
            kinds,
            model,
            users=users,
            blocks=calls,
            single_users=single_users,
            in_flight=in_flight,
        )
    typer.echo(json.dumps(result, indent=None if as_json else 2))


def bench_serve(
    model_or_run: Annotated[Path, typer.Argument(help="Run folder, or model folder.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Dataset folder; a run's own by default.", show_default=False),
    ] = None,
    users: Annotated[int, typer.Option(min=1, help="Users who ask, again and again.")] = 50,
    seconds: Annotated[
        float, typer.Option(min=1, help="Of load: half from one client, half from several.")
    ] = 30,
    clients: Annotated[int, typer.Option(min=2, help="How many are several.")] = 8,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates of a request.")] = 20,
    catalogue: Annotated[
        int, typer.Option(min=0, help="Items of a catalogue into which others are put; 0 for none.")
    ] = 100_000,
    as_json: Annotated[
        bool, typer.Option("--json", help="One line of JSON instead of an indented object.")
    ] = False,
) -> None:
    """Time requests to `trsr serve` in a process of its own against the engine's own time for them.

    Example: trsr bench serve out/demo --users 50 --seconds 30
    """
    from trsr.bench.serving import bench_serve as measure

    result = measure(
        model_or_run,
        data,
        users=users,
        seconds=seconds,
        clients=clients,
        candidates=candidates,
        catalogue=catalogue,
    )
    typer.echo(json.dumps(result, indent=None if as_json else 2))


_Model = Annotated[str, typer.Option(help="The embedded model, a hub id or a local folder.")]
_Prefix = Annotated[int, typer.Option(min=1, help="Tokens that a user's candidates share.")]
_Candidate = Annotated[int, typer.Option(min=1, help="Tokens of each candidate.")]
_Repeats = Annotated[int, typer.Option(min=1, help="Timed runs; medians are reported.")]
_Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
_Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
_Json = Annotated[bool, typer.Option("--json", help="One line of JSON instead of an indented object.")]


def bench_score(
    model: _Model = "smollm2-135m",
    users: Annotated[int, typer.Option(min=1, help="Users scored in one call.")] = 1,
    prefix_tokens: _Prefix = 455,
    candidate_tokens: _Candidate = 50,
    candidates: Annotated[
        str, typer.Option(help="Candidates a user; several counts, comma-separated, measure growth.")
    ] = "21",
    max_batch_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a forward pass.")] = 4096,
    slow_candidates: Annotated[
        int, typer.Option(min=0, help="Candidates on which the slow ways are timed; 0 leaves them out.")
    ] = 5,
    repeats: _Repeats = 5,
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    sharing: Annotated[
        Literal["auto", "rows", "padded", "separate"], typer.Option(help="How prefixes are shared.")
    ] = "auto",
    as_json: _Json = False,
) -> None:
    """Time ranking against the released code's way and against one candidate at a time.

    Example: trsr bench score --prefix-tokens 455 --candidate-tokens 50 --candidates 21
    """
    try:
        counts = [int(count) for count in candidates.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise InputError(f"--candidates: found {candidates!r}, expected numbers from 1, such as 21,84,336.")
    from trsr.bench.models import bench_score as measure

    result = measure(
        model,
        users=users,
        prefix_tokens=prefix_tokens,
        candidate_tokens=candidate_tokens,
        candidates=counts,
        max_batch_tokens=max_batch_tokens,
        repeats=repeats,
        slow_candidates=slow_candidates,
        device=device,
        dtype=dtype,
        sharing=sharing,
    )
    typer.echo(json.dumps(result, indent=None if as_json else 2))


def bench_train(
    model: _Model = "smollm2-135m",
    users: Annotated[int, typer.Option(min=1, help="Users of one forward pass.")] = 1,
    prefix_tokens: _Prefix = 455,
    candidate_tokens: _Candidate = 50,
    candidates: Annotated[int, typer.Option(min=2, help="Candidates a user, the chosen one included.")] = 5,
    repeats: _Repeats = 5,
    device: _Device = "auto",
    dtype: _Dtype = "auto",
    as_json: _Json = False,
) -> None:
    """Time a LoRA training step, packed, against each candidate as a sequence of its own.

    Example: trsr bench train --candidates 5
    """
    from trsr.bench.models import bench_train as measure

    result = measure(
        model,
        users=users,
        prefix_tokens=prefix_tokens,
        candidate_tokens=candidate_tokens,
        candidates=candidates,
        repeats=repeats,
        device=device,
        dtype=dtype,
    )
    typer.echo(json.dumps(result, indent=None if as_json else 2))


def bench_hostile(
    model_or_run: Annotated[Path, typer.Argument(help="Run folder, or model folder.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Dataset folder; a run's own by default.", show_default=False),
    ] = None,
    items: Annotated[int, typer.Option(min=1, help="Items that are made hostile.")] = 50,
    users: Annotated[int, typer.Option(min=1, help="Users for whom, in turn.")] = 10,
    as_json: Annotated[
        bool, typer.Option("--json", help="One line of JSON instead of an indented object.")
    ] = False,
) -> None:
    """Measure how hostile items move scores, beside harmless ones of the same length.

    Example: trsr bench hostile out/demo --items 50
    """
    from trsr.bench.hostile import bench_hostile as measure

    result = measure(model_or_run, data, items=items, users=users)
    typer.echo(json.dumps(result, indent=None if as_json else 2))


app = typer.Typer(name="bench", no_args_is_help=True, help="Measure speed and memory; prints JSON.")
app.command("score")(bench_score)
app.command("train")(bench_train)
app.command("summarize")(bench_summarize)
app.command("serve")(bench_serve)
app.command("hostile")(bench_hostile)

_N_NEWS = 20_000
_N_CANDIDATES = 20
# Runs in the fresh process: TASK, then its seconds and the peak of its memory.
_MEASURED = """
import json, resource, sys, time
{task}
start = time.perf_counter()
result = task(sys.argv[1], sys.argv[2])
seconds = time.perf_counter() - start
try:
    with open("/proc/self/status") as status:  # ru_maxrss would count the parent before exec
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({{"seconds": seconds, "peak_memory_mb": peak / 1024, "events": result}}))
"""
_TRSR = """
from trsr.data.mind import MindImport
def task(source, out):
    return MindImport(source=source).run(out).info.counts["events"]
"""
# What a first script would do: every row a Python object, all in memory, written at the end.
_NAIVE = """
import polars as pl
def task(source, out):
    news = {}
    for line in open(source + "/news.tsv", encoding="utf-8"):
        item_id, *texts = line.rstrip("\\n").split("\\t")
        news[item_id] = texts[:4]
    histories, impressions = {}, []
    for line in open(source + "/behaviors.tsv", encoding="utf-8"):
        number, user, time, history, candidates = line.rstrip("\\n").split("\\t")
        items = history.split()
        shown = [c.rsplit("-", 1) for c in candidates.split()]
        impressions.append((number, user, time, items, [i for i, _ in shown], [c == "1" for _, c in shown]))
        if len(items) > len(histories.get(user, ())):
            histories[user] = items
    events = []
    for user in sorted(histories):
        known = [item for item in histories[user] if item in news]
        events.extend((user, item, position) for position, item in enumerate(known))
    pl.DataFrame(events, orient="row").write_parquet(out + "-events")
    pl.DataFrame(impressions, orient="row").write_parquet(out + "-impressions")
    return len(events)
"""


@app.command("import")
def bench_import(
    rows: Annotated[int, typer.Option(min=1, help="History positions in behaviors.tsv.")] = 1_000_000,
) -> None:
    """Measure `trsr import mind` on synthetic files, in a fresh process, beside a plain Python script.

    Example: trsr bench import --rows 1000000
    """
    with tempfile.TemporaryDirectory(prefix="trsr-bench-") as folder:
        written = write_mind_files(Path(folder), rows)
        megabytes = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
        measured = _measure(_TRSR, folder, written)
        naive = _measure(_NAIVE, folder, written)
    result = {
        "benchmark": "import",
        "rows": written,
        "files_mb": round(megabytes, 1),
        **measured,
        "naive": naive,
        "speedup": round(naive["seconds"] / measured["seconds"], 2),
        "memory_ratio": round(naive["peak_memory_mb"] / measured["peak_memory_mb"], 2),
    }
    typer.echo(json.dumps(result, indent=2))


def write_mind_files(folder: Path, rows: int) -> int:
    """Write news.tsv and behaviors.tsv with at least `rows` history positions; return how many there are.

    A third as many users as impressions, one history a user, 1 to 63 clicks long (mean 32), on 20,000 news of
    which one in twenty has no row. Nothing is drawn: users and news follow from the row number.
    """
    words = ["market", "season", "player", "recipe", "travel", "storm", "budget", "album", "phone", "garden"]
    ids = [f"N{i}" for i in range(_N_NEWS)]
    with (folder / "news.tsv").open("w", encoding="utf-8") as news:
        for i, item_id in enumerate(ids):
            if i % 20:
                text = " ".join(words[(i * k) % len(words)] for k in (1, 3, 5, 7, 11))
                news.write(
                    f"{item_id}\t{words[i % 10]}\t{words[i % 7]}\t{text} {i}\t{text} {text}\t\t[]\t[]\n"
                )
    n_users = max(1, rows // 96)
    written = number = 0
    with (folder / "behaviors.tsv").open("w", encoding="utf-8") as behaviors:
        while written < rows:
            user = number * 7919 % n_users
            length = 1 + user * 40503 % 63
            start = user * 2654435761
            history = " ".join(ids[(start + k * 17) % _N_NEWS] for k in range(length))
            shown = " ".join(
                f"{ids[(start + number + k * 101) % _N_NEWS]}-{int(k == number % _N_CANDIDATES)}"
                for k in range(_N_CANDIDATES)
            )
            time = f"11/{1 + number % 28}/2019 {1 + number % 12}:{number % 60:02}:00 PM"
            behaviors.write(f"{number}\tU{user}\t{time}\t{history}\t{shown}\n")
            written += length
            number += 1
    return written


def _measure(task: str, folder: str, rows: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="trsr-bench-") as out:
        command = [sys.executable, "-c", _MEASURED.format(task=task), folder, f"{out}/dataset"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the measured process failed: {done.stderr.strip().splitlines()[-1]}")
    result = json.loads(done.stdout)
    return {
        "seconds": round(result["seconds"], 3),
        "rows_per_s": round(rows / result["seconds"]),
        "peak_memory_mb": round(result["peak_memory_mb"], 1),
        "events": result["events"],
    }
