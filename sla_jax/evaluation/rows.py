"""Rows of a run's files: answers and judgements, read strictly, written the same way every time.

OUT/answers/BENCHMARK/METHOD.jsonl           one answer a prompt, in the benchmark's order
OUT/seconds/BENCHMARK/METHOD.jsonl           {id, seconds, scorer_seconds}, one a turn each: the clock is kept apart, so
                                             that answers are the same bytes whenever and however often a run was begun
OUT/judgements/JUDGE/BENCHMARK/METHOD.jsonl  one judgement an answer

Every defect is a UserError that names file, line and field. Reading answers puts the seconds back into their costs.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sla_jax.errors import UserError
from sla_jax.files import own_line, read_rows
from sla_jax.scoring.candidate import Candidate, Message

ANSWERS, SECONDS = "answers", "seconds"
CLOCK = ("seconds", "scorer_seconds")  # of a cost: what is no function of the settings
KINDS = {str: "a text", int: "a whole number", float: "a number", list: "a list", dict: "an object"}


class Turn(NamedTuple):
    """What was asked and what was answered."""

    prompt: str
    text: str
    token_ids: list[int]  # none of a server that does not tell
    finish_reason: str
    rewards: list[float]  # one a token, or none
    cost: dict[str, Any]  # the fields of `decode.cost.Cost` that are known
    candidates: list[dict[str, Any]] | None  # text, score, step_scores, finish, n_tokens; of methods that have them


class Answer(NamedTuple):
    """One prompt's answers, turn by turn."""

    id: str
    benchmark: str
    method: str
    category: str | None
    level: str | None
    reference: str | None  # a text; JSON where a benchmark has more than that (see `benchmarks`)
    turns: tuple[Turn, ...]
    history: tuple[Message, ...] = ()  # what stands in front of the first turn

    def messages(self, turn: int) -> list[Message]:
        """The conversation up to the prompt of this turn."""
        found = [dict(message) for message in self.history]
        for before in self.turns[:turn]:
            found += [{"role": "user", "content": before.prompt}, {"role": "assistant", "content": before.text}]
        return [*found, {"role": "user", "content": self.turns[turn].prompt}]

    def candidates(self) -> list[Candidate]:
        """Every turn as scorers see it."""
        return [
            Candidate(self.messages(number), turn.text, turn.token_ids, turn.finish_reason == "stop")
            for number, turn in enumerate(self.turns)
        ]


class Judgement(NamedTuple):
    """What a judge says of one answer."""

    id: str
    scores: tuple[float, ...]  # one a turn
    score: float  # their mean
    details: dict[str, Any]


# ---- reading ----


def read_answers(path: Path) -> list[Answer]:
    """All answers of a file, with the seconds that they took where these are known. Raises UserError."""
    clock = read_seconds(seconds_path(path))
    answers = [_timed(_answer(field, row), clock, seconds_path(path)) for field, row in rows_of(path)]
    _no_doubles(path, [answer.id for answer in answers])
    return answers


def read_judgements(path: Path) -> list[Judgement]:
    """All judgements of a file. Raises UserError."""
    found = [_judgement(field, row) for field, row in rows_of(path)]
    _no_doubles(path, [one.id for one in found])
    return found


def read_seconds(path: Path) -> dict[str, dict[str, list[float]]]:
    """Id → the clock's fields, one number a turn; nothing of a file that is not there. Raises UserError."""
    if not path.exists():
        return {}
    return {field.text("id"): {name: field.numbers(name) for name in CLOCK} for field, _ in rows_of(path)}


def seconds_path(answers: Path) -> Path:
    """Where the seconds of a file of answers are."""
    return answers.parents[2] / SECONDS / answers.parent.name / answers.name


def check_ids(path: Path, ids: Sequence[str], other: Path, wanted: Sequence[str]) -> None:
    """Raise UserError unless two files are about the same prompts in the same order; the first difference is named."""
    for line, (one, two) in enumerate(zip(ids, wanted, strict=False), 1):
        if one != two:
            raise UserError(
                f"{path}, line {line}: 'id' is {one!r}, and {other} has {two!r} there; both need one order."
            )
    if len(ids) < len(wanted):
        raise UserError(f"{path} ends before {wanted[len(ids)]!r}, line {len(ids) + 1} of {other}; finish it first.")
    if len(ids) > len(wanted):
        raise UserError(f"{path}, line {len(wanted) + 1}: 'id' {ids[len(wanted)]!r} is not in {other}.")


class Field:
    """The fields of one line, each of the kind that it has to be."""

    def __init__(self, place: str, row: Mapping[str, Any], prefix: str = ""):
        self.place, self.row, self.prefix = place, row, prefix

    def wrong(self, name: str, wanted: str) -> UserError:
        """The error for a field."""
        there = name in self.row
        shown = json.dumps(self.row[name], ensure_ascii=False)[:80] if there else "missing"
        return UserError(f"{self.place}: {self.prefix + name!r} is {shown}; it has to be {wanted}.")

    def of(self, name: str, kind: type) -> Any:
        """The field; True is no number."""
        value = self.row.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.wrong(name, KINDS[kind])
        return value

    def text(self, name: str) -> str:
        """A text."""
        return str(self.of(name, str))

    def maybe(self, name: str) -> str | None:
        """A text or null."""
        return None if name in self.row and self.row[name] is None else self.text(name)

    def number(self, name: str) -> float:
        """A number that is one: neither NaN nor infinite."""
        if not _is_number(self.row.get(name)):
            raise self.wrong(name, "a finite number")
        return float(self.row[name])

    def numbers(self, name: str) -> list[float]:
        """A list of numbers."""
        for place, value in enumerate(self.of(name, list)):
            if not _is_number(value):
                raise Field(self.place, {f"{name}[{place}]": value}, self.prefix).wrong(
                    f"{name}[{place}]", "a finite number"
                )
        return [float(value) for value in self.row[name]]

    def objects(self, name: str) -> list["Field"]:
        """A list of objects."""
        found = []
        for place, value in enumerate(self.of(name, list)):
            here = f"{name}[{place}]"
            if not isinstance(value, dict):
                raise Field(self.place, {here: value}, self.prefix).wrong(here, KINDS[dict])
            found.append(Field(self.place, value, f"{self.prefix}{here}."))
        return found


def rows_of(path: Path) -> Iterator[tuple[Field, dict[str, Any]]]:
    """Every row of a file, which has to be an object. Raises UserError, also for a line that was cut off."""
    if not path.is_file():
        raise UserError(f"there is no file {path}; the step that writes it has not run.")
    for place, row in read_rows(path):
        if not isinstance(row, dict):
            raise UserError(f"{place}: {json.dumps(row)[:80]} is no object.")
        yield Field(place, row), row


# ---- writing ----


def as_line(answer: Answer) -> str:
    """One line, its end included; without the clock's fields."""
    row = answer._asdict() | {"turns": [_plain(turn) for turn in answer.turns]}
    if not answer.history:
        row.pop("history")
    return own_line(row)


def seconds_line(answer: Answer) -> str:
    """The line of the clock's fields."""
    row = {name: [float(turn.cost.get(name, 0.0)) for turn in answer.turns] for name in CLOCK}
    return own_line({"id": answer.id, **row})


def judgement_line(judgement: Judgement) -> str:
    """One line, its end included. Raises ValueError for a number that is none."""
    return own_line(judgement._asdict())


# ---- the insides ----


def _answer(field: Field, row: dict[str, Any]) -> Answer:
    turns = tuple(_turn(one) for one in field.objects("turns"))
    if not turns:
        raise field.wrong("turns", "a list of at least one turn")
    history = field.objects("history") if "history" in row else []
    return Answer(
        id=field.text("id"),
        benchmark=field.text("benchmark"),
        method=field.text("method"),
        category=field.maybe("category"),
        level=field.maybe("level"),
        reference=field.maybe("reference"),
        turns=turns,
        history=tuple({"role": one.text("role"), "content": one.text("content")} for one in history),
    )


def _turn(field: Field) -> Turn:
    ids = field.of("token_ids", list)
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise field.wrong("token_ids", "a list of whole numbers")
    rewards = field.numbers("rewards")
    if rewards and len(rewards) != len(ids):
        raise field.wrong("rewards", f"one number for each of the {len(ids)} tokens, or none at all")
    candidates = None
    if "candidates" not in field.row or field.row["candidates"] is not None:
        candidates = [_candidate(one) for one in field.objects("candidates")]
    return Turn(
        prompt=field.text("prompt"),
        text=field.text("text"),
        token_ids=ids,
        finish_reason=field.text("finish_reason"),
        rewards=rewards,
        cost=dict(field.of("cost", dict)),
        candidates=candidates,
    )


def _candidate(field: Field) -> dict[str, Any]:
    """A score may be null: of beam search's beams that never ended, say."""
    for name, kind in (("text", str), ("finish", str), ("n_tokens", int), ("step_scores", list)):
        field.of(name, kind)
    if "score" not in field.row or field.row["score"] is not None:
        field.number("score")
    return dict(field.row)


def _judgement(field: Field, row: dict[str, Any]) -> Judgement:
    return Judgement(field.text("id"), tuple(field.numbers("scores")), field.number("score"), field.of("details", dict))


def _timed(answer: Answer, clock: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> Answer:
    found = clock.get(answer.id)
    if found is None:
        return answer
    if any(len(found[name]) != len(answer.turns) for name in CLOCK):
        raise UserError(f"{path}: {answer.id!r} has not one number for each of its {len(answer.turns)} turns.")
    turns = [
        turn._replace(cost={**turn.cost, **{name: found[name][number] for name in CLOCK}})
        for number, turn in enumerate(answer.turns)
    ]
    return answer._replace(turns=tuple(turns))


def _plain(turn: Turn) -> dict[str, Any]:
    return turn._asdict() | {"cost": {name: value for name, value in turn.cost.items() if name not in CLOCK}}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _no_doubles(path: Path, ids: Sequence[str]) -> None:
    seen = set[str]()
    for line, one in enumerate(ids, 1):
        if one in seen:
            raise UserError(f"{path}, line {line}: 'id' {one!r} is there twice; every prompt has one line.")
        seen.add(one)
