"""Files for alpaca_eval and back."""

import json
from pathlib import Path
from typing import Any

import pytest

from sla_jax.errors import UserError
from sla_jax.evaluation.judges.alpaca import read_annotations, write_pair
from sla_jax.evaluation.judges.config import JudgeConfig, JudgeRun
from sla_jax.evaluation.judges.run import run_judges
from tests.evaluation.answers import answer, judged, read, write_run

METHOD = [answer(name, f"sla says {name}", method="sla", category="koala") for name in "abcd"]
BASELINE = [answer(name, f"greedy says {name}") for name in "abcd"]


def annotation(number: int, preference: Any) -> dict[str, Any]:
    """A row as alpaca_eval writes it: the reference is 1, the model 2."""
    return {
        "instruction": METHOD[number].turns[0].prompt,
        "output_1": BASELINE[number].turns[0].text,
        "generator_1": "greedy",
        "output_2": METHOD[number].turns[0].text,
        "generator_2": "sla",
        "annotator": "weighted_alpaca_eval_gpt4_turbo",
        "preference": preference,
    }


def write(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_its_cli_takes_what_is_written(tmp_path: Path) -> None:
    words = write_pair(tmp_path / "pair", METHOD, BASELINE)
    assert words[:2] == ["alpaca_eval", "--model_outputs"] and words[3] == "--reference_outputs"
    model, reference = (json.loads(Path(words[i]).read_text(encoding="utf-8")) for i in (2, 4))
    assert [row["instruction"] for row in model] == [row["instruction"] for row in reference]
    assert model[0] == {
        "instruction": "Question 0 of a?",
        "output": "sla says a",
        "generator": "sla",
        "dataset": "koala",
    }
    assert reference[0]["dataset"] == "bench"
    with pytest.raises(UserError, match="line 1: 'id' is 'a'"):
        write_pair(tmp_path / "pair", METHOD, BASELINE[1:])


def test_annotations_come_back_in_the_answers_order(tmp_path: Path) -> None:
    path = write(tmp_path / "annotations.json", [annotation(i, p) for i, p in ((3, 1.5), (0, 2), (2, 0), (1, 1.01))])
    found = read_annotations(path, METHOD, BASELINE)
    assert [one.id for one in found] == ["a", "b", "c", "d"]
    assert [one.winner for one in found] == ["method", "baseline", "tie", "tie"]
    assert found[1].baseline == "greedy" and found[1].details == {"preference": 1.01}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([annotation(0, None)], "row 1: 'preference' is None"),
        ([annotation(0, 3)], "row 1: 'preference' is 3"),
        ([annotation(0, 2)], r"lacks the annotation of 'b' \(3 in all\)"),
        ([annotation(0, 2) | {"output_2": "other"}], "row 1: 'output_2' answers no prompt"),
        ([annotation(0, 2) | {"output_1": 7}], "row 1: 'output_1' is 7"),
        ({}, "a list of annotations"),
    ],
)
def test_annotations_that_do_not_fit_are_named(tmp_path: Path, rows: Any, message: str) -> None:
    path = write(tmp_path / "annotations.json", rows)
    with pytest.raises(UserError, match=f"annotations.json.*{message}"):
        read_annotations(path, METHOD, BASELINE)


def test_a_run_writes_its_files_and_then_takes_what_it_said(tmp_path: Path) -> None:
    answers = [one._replace(benchmark="alpaca_eval") for one in (*METHOD, *BASELINE)]
    out = write_run(tmp_path / "run", *answers, answer("a", "x"))
    run = JudgeRun(out=str(out), judges=(JudgeConfig(kind="alpaca_eval", baseline="greedy"),))
    (said,) = run_judges(run)
    path = judged(out, "alpaca_eval", "sla.vs.greedy", "alpaca_eval")
    assert "alpaca_eval --model_outputs" in said and str(path.with_suffix("")) in said and not path.exists()
    theirs = path.with_suffix("") / "some_annotator"
    theirs.mkdir()
    write(theirs / "annotations.json", [annotation(i, 2) for i in range(4)])
    assert run_judges(run) == [f"alpaca_eval (language model): 4 judgements taken from {theirs / 'annotations.json'}"]
    assert [(row["id"], row["winner"]) for row in read(path)] == [(name, "method") for name in "abcd"]
    write(path.with_suffix("") / "annotations.json", [])
    with pytest.raises(UserError, match="2 files annotations.json"):
        run_judges(run)
