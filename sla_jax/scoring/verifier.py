"""Exact answers: 1 if the number that an answer marks, else its last number, is the reference's, else 0.

References are GSM8K's: the number behind "#### ", or the whole text if it is a number (`scoring.final` reads both).
Numbers are compared by value:
"1,000", "$1000" and "1000.00" are one number, "3/4", "\\frac{3}{4}" and "0.75" too.
"""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from sla_jax.errors import UserError
from sla_jax.files import read_rows
from sla_jax.scoring.candidate import Candidate
from sla_jax.scoring.final import NUMBER, marked, plain, reference_answer

FRACTION = re.compile(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")
LONGEST = 1000  # characters of a number; Python reads no more than 4300 digits
QUESTIONS = ("question", "prompt", "problem", "instruction")


class Verifier:
    """Compares each answer with the reference of its question."""

    name = "verifier"

    def __init__(self, references: Mapping[str, str]):
        self.references = {_key(question): _reference(question, text) for question, text in references.items()}

    @classmethod
    def read(cls, path: str) -> "Verifier":
        """From a file of {question | prompt | problem | instruction, answer} rows. Raises UserError."""
        return cls(dict(_pair(where, row) for where, row in read_rows(path)))

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """1.0 or 0.0 a candidate. Raises UserError for a question without a reference."""
        return [self._score(candidate) for candidate in candidates]

    def _score(self, candidate: Candidate) -> float:
        reference = self.references.get(_key(candidate.question))
        if reference is None:
            raise UserError(
                f"the verifier has no answer to the question {candidate.question[:80]!r}; its file needs one for every "
                "prompt (same text)."
            )
        return float(last_number(candidate.text) == reference)


def last_number(text: str) -> Fraction | None:
    """The last number in what a text marks as its answer, else in the text, by value; None if there is none, it divides
    by zero, or it is longer than any answer."""
    found = _numbers(marked(text) or "") or _numbers(text)
    return _value(found[-1]) if found else None


def _numbers(text: str) -> list[str]:
    return NUMBER.findall(FRACTION.sub(r" \1\2/\3", plain(text)))


def _value(number: str) -> Fraction | None:
    above, _, below = number.replace(",", "").partition("/")
    if len(number) > LONGEST or (below and not int(below)):
        return None
    return Fraction(above) / (int(below) if below else 1)


def _reference(question: str, text: str) -> Fraction:
    value = last_number(text) if marked(text) or NUMBER.fullmatch(reference_answer(text)) else None
    if value is None:
        raise UserError(
            f"the reference {text[-60:]!r} of the question {question[:60]!r} is no number and does not end in "
            '"#### NUMBER".'
        )
    return value


def _pair(where: str, row: Any) -> tuple[str, str]:
    names = [name for name in QUESTIONS if isinstance(row, Mapping) and isinstance(row.get(name), str)]
    if not names or not isinstance(row.get("answer"), str):
        raise UserError(f"{where}: expected the texts {' or '.join(QUESTIONS)}, and answer.")
    return row[names[0]], row["answer"]


def _key(question: str) -> str:
    return " ".join(question.split())
