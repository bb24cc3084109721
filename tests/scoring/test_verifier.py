"""Exact answers by GSM8K's rule."""

import gzip
import json
from fractions import Fraction
from pathlib import Path

import pytest

from sla_jax.errors import UserError
from sla_jax.scoring.candidate import Candidate
from sla_jax.scoring.verifier import Verifier, last_number

QUESTION = "Tom has 3 boxes of 4 pens. How many pens?"


def candidate(text: str, question: str = QUESTION) -> Candidate:
    return Candidate([{"role": "user", "content": question}], text, [], True)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("He has 3 * 4 = 12 pens.", Fraction(12)),
        ("It costs $1,250.50.", Fraction(2501, 2)),
        ("So x = -7", Fraction(-7)),
        ("about 3/4 of them", Fraction(3, 4)),
        ("The answer is 5.\n#### 6", Fraction(6)),
        ("12 #### nothing", Fraction(12)),
        (r"\boxed{\frac{10}{2}}", Fraction(5)),
        (r"-\dfrac{1}{2} in all", Fraction(-1, 2)),
        ("#### −5 in 3 days", Fraction(-5)),
        ("2/0", None),
        ("no number", None),
    ],
)
def test_the_last_number(text: str, number: Fraction | None) -> None:
    assert last_number(text) == number


def test_scores_against_a_file_of_references(tmp_path: Path) -> None:
    path = tmp_path / "gsm.jsonl.gz"
    row = {"question": QUESTION, "answer": "3 * 4 = <<3*4=12>>12\n#### 12"}
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    verifier = Verifier.read(str(path))
    right, wrong, cut = "So 12 pens.", "It is 13.", "Tom has"
    assert verifier.score([candidate(text) for text in (right, wrong, cut, "12.00")]) == [1.0, 0.0, 0.0, 1.0]
    assert verifier.score([candidate(right, QUESTION.replace(" ", "\n"))]) == [1.0]
    with pytest.raises(UserError, match="no answer to the question 'Why"):
        verifier.score([candidate("12", "Why?")])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "a"}, "line 1: expected the texts question"),
        ({"answer": "#### 1"}, "line 1: expected the texts question"),
        ({"question": "a", "answer": "Paris"}, "'Paris' of the question 'a' is no number"),
        ({"question": "a", "answer": "It is 4."}, "is no number"),
    ],
)
def test_bad_references_are_named(row: dict, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(UserError, match=reason):
        Verifier.read(str(path))
