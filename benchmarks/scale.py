"""Measure how the framework's own cost grows with the number of users: synthetic data, the fake engine.

    python benchmarks/scale.py --work FOLDER [--sizes 1000 10000 100000 1000000] [--postgres URL]

Every stage of every size runs in its own process, to measure its memory. Results are written immediately
to `benchmarks/results/scale.json` and not measured again (except with `--again`), so the
script can be killed and started again. Data and stores are kept in FOLDER.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trsr.data.dataset import Dataset
from trsr.data.synthetic import SyntheticConfig, generate
from trsr.experiment.cost_plan import forecast
from trsr.experiment.dataset_profiles import histories_with_text
from trsr.llm.base import Generation, GenerationParams, LabelTokens, Prompt, ScoringGroup
from trsr.llm.fake import FakeGenerator, FakeTokenizer, n_words
from trsr.recommend.catalogue import Catalogue
from trsr.recommend.prompt import PromptBuilder, PromptConfig, load_ranking_template
from trsr.recommend.recommender import Recommender
from trsr.summarize.executor import SummaryProgress, summarize_each
from trsr.summarize.plan import SummaryConfig
from trsr.summarize.store import open_store
from trsr.summarize.user_plan import bind_summarizer, profile
from trsr.types import RankingExample

Facts = dict[str, Any]
RESULT = Path(__file__).parent / "results" / "scale.json"
SIZES = (1_000, 10_000, 100_000, 1_000_000)
# Short histories: the cost per call is measured, and a million users must take less than an hour.
DATA = {
    "n_items": 20_000,
    "min_history": 3,
    "mean_history": 4.5,
    "max_history": 6,
    "shift_length": 1,
    "n_impression_candidates": 0,
}
CANDIDATES = 20
MOST_RANKED, MOST_IN_POSTGRES = 20_000, 100_000
USERS_AT_ONCE, ROWS_AT_ONCE = 4096, 500


class TimedEngine(FakeGenerator):
    """The fake engine, which notes the CPU time that it takes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu_s = 0.0

    def generate(self, prompts: Sequence[Prompt], params: GenerationParams) -> Iterator[Generation]:
        """Answer, and note the time from each question to its answer."""
        answers = super().generate(prompts, params)
        while True:
            begun = time.thread_time()
            answer = next(answers, None)
            self.cpu_s += time.thread_time() - begun
            if answer is None:
                return
            yield answer


class NoScorer:
    """A `LabelScorer` that answers 0: what remains is the cost of asking."""

    def score(
        self, groups: Sequence[ScoringGroup], labels: LabelTokens
    ) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Yield zeros of shape (n_suffixes,)."""
        del labels
        for index, group in enumerate(groups):
            yield index, np.zeros(len(group.suffixes), dtype=np.float32)


class Clock:
    """Seconds of CPU and of the wall since it was made."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def cpu(self) -> float:
        """Return seconds of CPU, of this process."""
        return time.process_time() - self._cpu

    def facts(self, n: int, of: str) -> Facts:
        """Return what was used so far, by each of `n`."""
        cpu, wall = self.cpu(), time.perf_counter() - self._wall
        return {
            f"{of}s": n,
            "cpu_s": round(cpu, 3),
            "wall_s": round(wall, 3),
            f"cpu_us_a_{of}": round(1e6 * cpu / max(1, n), 1),
            f"{of}s_a_second": round(n / wall),
        }


def dataset(work: Path, n: int) -> Dataset:
    """Open the data of `n` users; made where it is not there."""
    folder = work / f"data-{n}"
    if folder.is_dir():
        return Dataset.open(folder)
    return generate(SyntheticConfig.model_validate({**DATA, "n_users": n}), folder)


def store_file(work: Path, n: int) -> Path:
    """Return where the summaries of `n` users are."""
    return work / f"store-{n}.sqlite"


def memory_mb() -> float:
    """Return the most memory that this process had."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def measure_plan(work: Path, n: int, _: str | None) -> Facts:
    """Count calls and tokens of all users, as `trsr summarize --dry-run` does."""
    data = dataset(work, n)
    summarizer, requested = bind_summarizer(data, SummaryConfig()), set[str]()
    users, clock = histories_with_text(data), Clock()
    calls = to_make = tokens = 0
    while some := list(itertools.islice(users, USERS_AT_ONCE)):
        total = forecast(some, summarizer, model_id="fake@1", n_tokens=n_words, requested=requested)
        calls, to_make, tokens = (
            calls + total.n_calls,
            to_make + total.n_to_make,
            tokens + total.prompt_tokens,
        )
    return {**clock.facts(calls, "call"), "to_make": to_make, "tokens_at_most": tokens}


def summarized(work: Path, n: int, engine: TimedEngine) -> tuple[Facts, SummaryProgress]:
    """Write the profiles of all users, or read them from the store."""
    data, last = dataset(work, n), SummaryProgress()

    def note(progress: SummaryProgress) -> None:
        nonlocal last
        last = progress

    summarizer, letters = bind_summarizer(data, SummaryConfig()), 0
    with open_store(store_file(work, n)) as store:
        clock = Clock()
        for fold in summarize_each(histories_with_text(data), summarizer, engine, store, note):
            letters += len(profile(fold, summarizer).text)
    return {**clock.facts(last.n_calls, "call"), "profile_letters": letters}, last


def measure_summarize(work: Path, n: int, _: str | None) -> Facts:
    """Write the profiles of all users into a new store; the fake engine's own cost is taken off."""
    for file in work.glob(f"{store_file(work, n).name}*"):
        file.unlink()
    engine = TimedEngine()
    facts, progress = summarized(work, n, engine)
    made = progress.n_calls_made
    return {
        **facts,
        "made": made,
        "read_tokens": progress.n_prompt_tokens,
        "engine_cpu_us_a_call": round(1e6 * engine.cpu_s / made, 1),
        "own_cpu_us_a_call": round(1e6 * (facts["cpu_s"] - engine.cpu_s) / made, 1),
        "store_bytes": store_file(work, n).stat().st_size,
    }


def measure_known(work: Path, n: int, _: str | None) -> Facts:
    """Do it again: the store knows every text."""
    facts, progress = summarized(work, n, TimedEngine())
    assert progress.n_calls_made == 0
    return facts


def measure_store(work: Path, n: int, _: str | None) -> Facts:
    """Read every row of the store in the order of keys, and write all into another."""
    copy = work / f"copy-{n}.sqlite"
    with open_store(store_file(work, n)) as store, open_store(copy) as other:
        clock = Clock()
        n_rows = sum(1 for _row in store.rows())
        read = clock.facts(n_rows, "row")
        clock = Clock()
        written = other.add(store.rows())
        facts = {"read": read, "copied": clock.facts(written, "row")}
    for file in work.glob(f"{copy.name}*"):
        file.unlink()
    return facts


def measure_postgres(work: Path, n: int, url: str | None) -> Facts:
    """Write results one by one into a PostgreSQL, look them up, and copy a whole store into it."""
    n_rows = min(n, MOST_IN_POSTGRES)
    with open_store(store_file(work, n)) as store:
        rows = list(itertools.islice(store.rows(), n_rows))
        calls = list(store.calls([row.key for row in rows]).values())
    keys, singles = [row.key for row in rows], calls[: max(1000, n_rows // 10)]
    with open_store(str(url)) as other:
        clock = Clock()
        for call in singles:
            other.put(call)
        facts = {"put": clock.facts(len(singles), "row")}
        clock = Clock()
        other.add(rows)
        facts["copied"] = clock.facts(len(rows), "row")
        clock = Clock()
        found = sum(
            len(other.texts(keys[start : start + ROWS_AT_ONCE]))
            for start in range(0, len(keys), ROWS_AT_ONCE)
        )
        return {**facts, "looked_up": clock.facts(found, "row")}


def measure_rank(work: Path, n: int, _: str | None) -> Facts:
    """Build prompts and take answers for a list of candidates a user, ten users at a time; no model."""
    data, tokenizer = dataset(work, n), FakeTokenizer()
    config = PromptConfig()
    texts = data.item_texts(config.fields, config.max_field_tokens, tokenizer)
    template = load_ranking_template(config.template, data.info.domain)
    builder, ids = PromptBuilder(template, config, tokenizer, texts), list(data.catalogue())
    rng, profiles = np.random.default_rng(0), dict[str, str]()
    items = Catalogue(data.catalogue(), data.info.text_fields)
    ranker = Recommender(NoScorer(), builder, builder.labels(), items, name="llm", profiles=profiles)
    users, done, clock = itertools.islice(histories_with_text(data), MOST_RANKED), 0, Clock()
    while some := list(itertools.islice(users, 10)):
        examples = []
        for user in some:
            shown = tuple(ids[i] for i in rng.integers(len(ids), size=CANDIDATES))
            labels = (1,) + (0,) * (CANDIDATES - 1)
            profiles[user.user_id] = "This person likes lamps, desks, chairs and paper of all kinds."
            examples.append(RankingExample(user.user_id, user.user_id, user.item_ids, shown, labels))
        done += sum(1 for _answer in ranker.rank(examples))
        profiles.clear()
    return {**clock.facts(done, "user"), "candidates": CANDIDATES}


STAGES: dict[str, Callable[[Path, int, str | None], Facts]] = {
    "plan": measure_plan,
    "summarize": measure_summarize,
    "known": measure_known,
    "store": measure_store,
    "rank": measure_rank,
    "postgres": measure_postgres,
}


def commit() -> str:
    """Return the commit that is measured, with a mark where the package differs from it."""
    root = Path(__file__).parents[1]
    said = subprocess.run(
        ["git", "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=True, cwd=root
    )
    same = (
        subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "src"], check=False, cwd=root).returncode == 0
    )
    return said.stdout.strip() + ("" if same else "-dirty")


def in_own_process(stage: str, work: Path, n: int, url: str | None) -> Facts:
    """Run one stage in a new process and return what it measured."""
    command = [sys.executable, __file__, "--work", str(work), "--one", stage, "--sizes", str(n)]
    done = subprocess.run(
        [*command, *(["--postgres", url] if url else [])], stdout=subprocess.PIPE, text=True, check=True
    )
    facts: Facts = json.loads(done.stdout.splitlines()[-1])
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--postgres", help="URL of an empty database; without it that stage is left out.")
    parser.add_argument("--machine", default="2-core x86 VM")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--one", choices=STAGES, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        facts = STAGES[chosen.one](chosen.work, chosen.sizes[0], chosen.postgres)
        print(json.dumps({"memory_mb": memory_mb(), **facts}))
        return
    chosen.work.mkdir(parents=True, exist_ok=True)
    found: Facts = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    recorded: Facts = found.get("results", {})
    for n, stage in itertools.product(chosen.sizes, chosen.stages):
        of_size = recorded.setdefault(str(n), {})
        if (stage in of_size and not chosen.again) or (stage == "postgres" and not chosen.postgres):
            continue
        dataset(chosen.work, n)
        of_size[stage] = {**in_own_process(stage, chosen.work, n, chosen.postgres), "commit": commit()}
        print(n, stage, json.dumps(of_size[stage]), flush=True)
        content = {
            "command": "python benchmarks/scale.py --work out/scale --postgres URL",
            "machine": chosen.machine,
            "data": {**DATA, "seed": 0, "summary": "recurrent, blocks of 5"},
            "results": dict(sorted(recorded.items(), key=lambda pair: int(pair[0]))),
        }
        RESULT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
