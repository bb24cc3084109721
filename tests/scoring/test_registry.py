"""Scorers by name, their sums, and functions of the user's own."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from generate import Generate
from sla_jax.config import dump_yaml, load_yaml, parse
from sla_jax.errors import UserError
from sla_jax.scoring.candidate import Candidate, Scorer, detailed
from sla_jax.scoring.function import FunctionScorer
from sla_jax.scoring.registry import ScorerConfig, make_scorer

TWO = [Candidate([{"role": "user", "content": "Say it."}], text, [], True) for text in ("It is said.", "It")]
OWN = """
def length(candidates): return [len(c.text) for c in candidates]
def short(candidates): return [1.0]
def broken(candidates): return [float("nan")] * len(candidates)
number = 7
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "own_scorers.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield "own_scorers"
    sys.modules.pop("own_scorers", None)


def test_rules_are_the_default() -> None:
    scorer = make_scorer(ScorerConfig())
    assert isinstance(scorer, Scorer) and scorer.name == "rules"


def test_a_function_of_the_folder_one_works_in(own: str) -> None:
    scorer = make_scorer(ScorerConfig(kind="python", function=f"{own}:length"))
    assert isinstance(scorer, Scorer) and scorer.name == "own_scorers:length"
    assert scorer.score(TWO) == [11.0, 2.0]
    assert detailed(scorer, TWO)[1] == (2.0, {"own_scorers:length": 2.0})
    assert "" not in sys.path[:1]


def test_a_weighted_sum_keeps_the_parts(own: str) -> None:
    rules, length = ScorerConfig(), ScorerConfig(kind="python", function=f"{own}:length", weight=0.5)
    scorer = make_scorer([rules, length])
    alone = make_scorer(rules).score(TWO)
    assert scorer.name == "1·rules + 0.5·own_scorers:length"
    assert scorer.score(TWO) == [alone[0] + 5.5, alone[1] + 1.0]
    parts = detailed(scorer, TWO)[0].parts
    assert parts["own_scorers:length/own_scorers:length"] == 11.0 and "rules/topic" in parts
    assert make_scorer(ScorerConfig(weight=2.0)).score(TWO) == [2 * value for value in alone]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kind": "rule"}, "no scorer 'rule'.*Did you mean 'rules'"),
        ({"kind": "channel"}, "'channel' needs 'checkpoint'"),
        ({"kind": "verifier"}, "'verifier' needs 'answers'"),
        ({"kind": "rules", "checkpoint": "x"}, "'checkpoint' means nothing to the scorer 'rules'"),
        ({"kind": "python", "function": "f", "answers": "x"}, "'answers' means nothing"),
        ({"kind": "rules", "template": {"a": 1}}, "'template' means nothing to the scorer 'rules'"),
        ({"kind": "channel", "checkpoint": "x", "date": "today"}, "date='today' is no day"),
        ({"kind": "prm"}, "'prm' needs 'checkpoint'"),
        ({"kind": "channel", "checkpoint": "x", "format": "head"}, "'format' means nothing to the scorer 'channel'"),
        ({"kind": "reward_model", "checkpoint": "x", "label_ids": (1, 2)}, "'label_ids' means nothing"),
        ({"kind": "prm", "checkpoint": "x", "format": "quen"}, "no format of PRMs 'quen'.*Did you mean 'qwen'"),
        ({"kind": "prm", "checkpoint": "x", "aggregate": "max"}, "no aggregate 'max'; known: last, min, prod, mean"),
        ({"kind": "prm", "checkpoint": "x", "separator": ""}, "separator is empty"),
    ],
)
def test_a_config_is_refused_by_name(fields: dict, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        ScorerConfig(**fields)


def test_a_scorer_on_the_command_line_and_in_yaml(tmp_path: Path) -> None:
    words = "--scorer.kind prm --scorer.checkpoint x --scorer.format rlhflow --scorer.label-ids 648 387".split()
    given = parse(Generate, ["model", "What?", *words], prog="generate.py", description="").scorer
    assert given == ScorerConfig(kind="prm", checkpoint="x", format="rlhflow", label_ids=(648, 387))
    assert given.options() == {"format": "rlhflow", "label_ids": (648, 387)}
    dump_yaml(given, tmp_path / "scorer.yaml")
    assert load_yaml(ScorerConfig, tmp_path / "scorer.yaml") == given
    assert parse(Generate, ["model", "What?"], prog="generate.py", description="").scorer is None


def test_no_scorer_at_all() -> None:
    with pytest.raises(UserError, match="no scorer"):
        make_scorer([])


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("length", "not MODULE:FUNCTION"),
        ("no_such_module_at_all:f", "cannot be imported"),
        ("own_scorers:lenght", "no function 'lenght'.*Did you mean 'length'"),
        ("own_scorers:number", "no function 'number'"),
    ],
)
def test_a_function_that_is_not_there(own: str, path: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        FunctionScorer(path)


@pytest.mark.parametrize("name", ["short", "broken"])
def test_a_function_that_gives_nonsense(own: str, name: str) -> None:
    with pytest.raises(UserError, match="finite numbers for 2 candidates"):
        FunctionScorer(f"{own}:{name}").score(TWO)
