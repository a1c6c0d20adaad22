"""A configuration is checked as a whole: every mistake in it is reported at once, each in one sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import trsr.experiment
from trsr.errors import ConfigError
from trsr.experiment.config import RunConfig, differences, line_of, load_config, nearest_setting

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob("configs/*.yaml"))


def load(tmp_path: Path, settings: Any, *overrides: str) -> RunConfig:
    file = tmp_path / "config.yaml"
    text = settings if isinstance(settings, str) else yaml.safe_dump(settings)
    file.write_text(text, encoding="utf-8")
    return load_config(file, overrides)


def problems(tmp_path: Path, settings: Any, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, settings, *overrides)
    assert all("\n" not in problem and problem.endswith(".") for problem in caught.value.problems)
    return caught.value.problems


def good(**settings: Any) -> dict[str, Any]:
    return {"name": "test", "data": {"kind": "synthetic"}, **settings}


def test_mistakes_of_every_origin_are_reported_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    settings = good(
        prompt={"n_recent": -1, "n_recents": 3},
        summary={"method": "magic"},
        engine={"kind": "fake", "model": "$NO_SUCH_VARIABLE"},
    )
    found = problems(tmp_path, settings, "seed", "seed.deep=1")
    assert "--set seed: expected the form a.b=value." in found
    assert "prompt.n_recents (line 9): there is no such setting; the nearest is n_recent." in found
    assert "prompt.n_recent: found -1, input should be greater than or equal to 0." in found
    text = "\n".join(found)
    assert "summary.method: found 'magic', input should be 'none', 'counted'" in text
    assert "NO_SUCH_VARIABLE, which is not set; set it." in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "x"}, "data: is missing; give it a value."),
        (good(data={}), "data.kind: is missing; give it a value."),
        (good(data={"kind": "minds"}), "data.kind: found 'minds', expected one of 'folder'"),
        (good(protocol={"kind": "sampled", "min_history": 9, "max_history": 3}), "min_history 9 exceeds"),
        (good(train=None), "use `llm_zero_shot`"),
        (good(rankers=[]), "rankers: the list is empty; name at least one."),
        (good(rankers=["fusion", "bm25"]), "`fusion` joins `llm` with other rankers; name `llm` too."),
        (good(rankers=["fusion_no_llm", "llm"]), "joins the run's baselines; name one, such as bm25."),
        ("name: x\ndata: [1, 2\nseed: 3\n", "config.yaml is not YAML, line 3: "),
        ("", "holds no settings"),
        ("just words", "holds no settings"),
        ("- a\n- list\n", "holds no settings"),
        (
            "name: a\ndata:\n  kind: folder\n  path: d\n  path: e\n",
            "path: is given twice in the same group (lines 4 and 5); keep one.",
        ),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, settings: Any, message: str) -> None:
    (problem,) = problems(tmp_path, settings)
    assert message in problem


def test_a_long_wrong_value_is_shortened(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, good(seed="x" * 5_000))
    assert len(problem) < 200


def test_aliases_are_no_repeated_keys(tmp_path: Path) -> None:
    text = "name: a\ndata: {kind: synthetic}\nvariants:\n  a: &x {train.epochs: 1}\n  b: {<<: *x}\n  c: *x\n"
    assert load(tmp_path, text).variants["b"] == {"train.epochs": 1}


TEXT = """name: a
data: {kind: folder, path: d}
summary:
  method: none
  # a comment
  max_new_token: 3
rankers:
  - random
sumary: {}
"""


def test_an_unknown_key_has_its_line_and_the_nearest_known_one(tmp_path: Path) -> None:
    assert problems(tmp_path, TEXT, "train.epoch=1") == [
        "summary.max_new_token (line 6): there is no such setting; the nearest is max_new_tokens.",
        "train.epoch: there is no such setting; the nearest is epochs.",
        "sumary (line 9): there is no such setting; the nearest is summary.",
    ]


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (("sumary",), 9),
        (("summary", "max_new_token"), 6),
        (("data", "folder", "path"), 2),
        (("rankers", 0), 8),
        (("set", "by", "override"), None),
    ],
)
def test_line_of_a_key(place: Any, line: int | None) -> None:
    assert line_of(TEXT, place) == line


@pytest.mark.parametrize(
    ("name", "near"), [("learning_rat", "learning_rate"), ("user_ids", "user_id"), ("qqqqqq", None)]
)
def test_nearest_setting(name: str, near: str | None) -> None:
    assert nearest_setting(name) == near


def test_set_replaces_one_value_and_reads_it_as_yaml(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        good(prompt={"n_recent": 3, "max_tokens": 99}),
        "prompt.n_recent=0",
        "summary.segmentation={kind: count, block_size: 2}",
        "summary.fan_in=3",
        "rankers=[random]",
        "train=null",
        "name=a=b",
    )
    assert (config.prompt.n_recent, config.prompt.max_tokens) == (0, 99)
    assert config.summary.segmentation.model_dump() == {"kind": "count", "block_size": 2}
    assert config.summary.fan_in == 3
    assert config.rankers == ("random",)
    assert config.train is None
    assert config.name == "a=b"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "expected the form a.b=value"),
        ("=3", "expected the form a.b=value"),
        ("prompt.=3", "expected the form a.b=value"),
        ("name.first=3", "name is not a group of settings"),
        ("name.first.second=3", "name.first is not a group of settings"),
        ("rankers=[random", "'[random' is not a YAML value"),
        ("prompt.recent=3", "prompt.recent: there is no such setting"),
    ],
)
def test_a_wrong_set_says_what_is_wrong(tmp_path: Path, override: str, said: str) -> None:
    assert any(said in problem for problem in problems(tmp_path, good(), override))


def test_environment_variables_stand_for_their_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_FOLDER", "/some/where")
    data = {"kind": "mind", "source": "${SOME_FOLDER}/mind"}
    folder = {"kind": "folder", "path": "$SOME_FOLDER/mind"}
    assert load(tmp_path, good(data=folder)).data.model_dump()["path"] == Path("/some/where/mind")
    monkeypatch.delenv("SOME_FOLDER")
    found = problems(tmp_path, good(data=folder))
    assert found == [
        "'$SOME_FOLDER/mind' names the environment variable SOME_FOLDER, which is not set; set it."
    ]
    assert any("SOME_FOLDER" in problem for problem in problems(tmp_path, good(data=data)))


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "latin.yaml"
    file.write_bytes("name: é".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_config(file)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml cannot be read \(No such file or directory\)"):
        load_config(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_recipe_loads(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in re.findall(r"\$(\w+)", file.read_text(encoding="utf-8")):
        assert variable.startswith("TRSR_")
        monkeypatch.setenv(variable, str(tmp_path))
    config = load_config(file)
    assert config.name.replace("-", "_") == file.stem
    # A configuration must mean the same after it was written into a run folder.
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_recipe_begins_with_its_command(file: Path) -> None:
    comment = "".join(re.findall(r"^#.*\n", file.read_text(encoding="utf-8"), re.MULTILINE))
    assert f"trsr run configs/{file.name} --out" in comment


def test_the_recipes_are_there_and_the_demo_is_packaged() -> None:
    expected = {"demo", "mind_recurrent", "mind_hierarchical"}
    expected |= {"amazon_office_recurrent", "amazon_office_hierarchical"}
    expected |= {"paper_mind", "paper_amazon_m2", "gpu_small"}
    assert expected <= {file.stem for file in CONFIGS}
    demo = Path(trsr.experiment.__path__[0]) / "demo.yaml"
    assert load_config(demo) == load_config(ROOT / "configs/demo.yaml")


def test_differences_name_every_setting_that_differs() -> None:
    old = {"a": 1, "b": {"c": 2, "d": [1, 2]}, "gone": "x"}
    new = {"a": 1, "b": {"c": 3, "d": [1, 2]}, "new": None, "more": 1}
    assert differences(old, new) == ["b.c: 2 -> 3", "gone: 'x' -> None", "more: None -> 1"]
    assert differences(old, old) == []


def test_grounded_summaries_of_a_server_need_its_grammar(tmp_path: Path) -> None:
    server = {"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "m"}
    wanted = (
        "engine.grammar: is missing, and grounded summaries need it; set it to the server's kind, "
        "llama.cpp, vllm or sglang, or summary.grounded to false."
    )
    free = good(engine=server, summary={"method": "recurrent"})
    assert problems(tmp_path, free, "summary.grounded=true") == [wanted]
    assert problems(tmp_path, free, "variants={grounded: {summary.grounded: true}}") == [
        f"variants.grounded: {wanted}"
    ]
    for fine in ("engine.grammar=vllm", "summary.method=counted", "engine={kind: fake}"):
        assert load(tmp_path, free, "summary.grounded=true", fine).summary.grounded
