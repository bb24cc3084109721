"""One judge's numbers for all methods' answers to a set, prompt by prompt.

The answers to a prompt are judged together, so that a judge that reads with a model reads the prompt once
(`scoring.rows`). An answer that several methods gave is judged once, also when one of them is judged later: the order
in which a device adds up differs from place to place, and equal answers have to tie to the last bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sla_jax.errors import UserError
from sla_jax.evaluation.judges.journal import Journal
from sla_jax.evaluation.judges.protocol import Judge, not_finite
from sla_jax.evaluation.rows import Answer, judgement_line


class Task(NamedTuple):
    """One method's answers to one benchmark, and where a judge's word on them goes."""

    source: Path
    answers: list[Answer]
    baseline: list[Answer] | None  # of a judge of pairs
    journal: Journal

    @property
    def set(self) -> str:
        """The benchmark's name."""
        return self.source.parent.name


class Place(NamedTuple):
    """An answer, and where it stands."""

    task: Task
    number: int

    @property
    def answer(self) -> Answer:
        """It."""
        return self.task.answers[self.number]

    @property
    def line(self) -> str:
        """For errors."""
        return f"{self.task.source}, line {self.number + 1}"


def score_set(judge: Judge, tasks: Sequence[Task], size: int) -> Iterator[int]:
    """Judge what is missing of a set, `size` answers or a prompt's at a time; yields how many have been.

    Raises UserError naming file, line and field, after all that the judge has said was written."""
    known = {
        same(answer): task.journal.lines[answer.id]
        for task in tasks
        for answer in task.answers
        if answer.id in task.journal.lines
    }
    for places in _batches(tasks, size):
        new: dict[tuple[Any, ...], Place] = {}
        for place in places:
            if same(place.answer) not in known:
                new.setdefault(same(place.answer), place)
        lines, fault = _scored(judge, list(new.values()))
        known |= lines
        yield _write(places, known)
        if fault is not None:
            raise fault


def same(answer: Answer) -> tuple[Any, ...]:
    """What a judgement depends on: two answers with one key get one."""
    turns = ((turn.prompt, turn.text, *turn.token_ids, turn.finish_reason) for turn in answer.turns)
    return answer.id, *turns


def _batches(tasks: Sequence[Task], size: int) -> Iterator[list[Place]]:
    by_prompt: dict[str, list[Place]] = {}
    for task in tasks:
        for number in task.journal.missing():
            by_prompt.setdefault(task.answers[number].id, []).append(Place(task, number))
    batch: list[Place] = []
    for places in by_prompt.values():
        batch += places
        if len(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


def _write(places: Sequence[Place], known: Mapping[tuple[Any, ...], str]) -> int:
    """Write what is known of these answers; returns of how many."""
    rows: dict[Path, tuple[Journal, list[tuple[str, str]]]] = {}
    for task, number in places:
        answer = task.answers[number]
        if same(answer) in known:
            rows.setdefault(task.source, (task.journal, []))[1].append((answer.id, known[same(answer)]))
    for journal, found in rows.values():
        journal.append(found)
    return sum(len(found) for _, found in rows.values())


def _scored(judge: Judge, places: Sequence[Place]) -> tuple[dict[tuple[Any, ...], str], UserError | None]:
    """The lines of answers and the first fault; one by one if the judge refuses them, so that it can be named."""
    if not places:
        return {}, None
    try:
        judged = judge.score([place.answer for place in places])
    except UserError as error:
        if len(places) == 1:
            return {}, UserError(f"{places[0].line}: {error}")
        return _one_by_one(judge, places)
    assert [one.id for one in judged] == [place.answer.id for place in places], "one judgement an answer, in order"
    lines, first = {}, None
    for place, one in zip(places, judged, strict=True):
        if fault := not_finite(one):
            first = first or UserError(
                f"{place.line}: the judge gave {one.id!r} no finite number ({fault} of its judgement, scores "
                f"{list(one.scores)}). The others are written to {place.task.journal.path.parent}; run it again after "
                "the cause is mended."
            )
        else:
            lines[same(place.answer)] = judgement_line(one)
    return lines, first


def _one_by_one(judge: Judge, places: Sequence[Place]) -> tuple[dict[tuple[Any, ...], str], UserError | None]:
    lines: dict[tuple[Any, ...], str] = {}
    for place in places:
        found, fault = _scored(judge, [place])
        lines |= found
        if fault is not None:
            return lines, fault
    return lines, None
