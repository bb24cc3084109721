"""A run's folder as data: answers and judgements by name, aligned prompt by prompt, or an error that names the line.

The layout is that of `eval.py generate` and `eval.py judge` (docs/evaluation.md). All methods of a set must have
answered the same prompts in the same order, and a judgement file must judge exactly the answers of its method.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sla_jax.errors import UserError, nearest
from sla_jax.evaluation.machines import read_machines
from sla_jax.evaluation.rows import (
    ANSWERS,
    Answer,
    Judgement,
    check_ids,
    read_answers,
    read_judgements,
    rows_of,
)
from sla_jax.evaluation.settings import VERSUS
from sla_jax.files import read_object

CREDITS = {"method": 1.0, "tie": 0.5, "baseline": 0.0}  # by a judgement's winner


class Judge(NamedTuple):
    """One judge's word on everything. Tables by (benchmark, method)."""

    name: str
    label: str  # "teacher's proxy", "independent", "rule", …
    scores: Mapping[tuple[str, str], tuple[Judgement, ...]]
    credits: Mapping[tuple[str, str], np.ndarray]  # of a judge of pairs, against the baseline: one a prompt, [N]

    @property
    def title(self) -> str:
        """Its name and what it is."""
        return f"{self.name} ({self.label})"


class Run(NamedTuple):
    """Everything that a report is made of."""

    answers: Mapping[tuple[str, str], tuple[Answer, ...]]
    judges: tuple[Judge, ...]
    settings: Mapping[str, object]
    machines: tuple[Mapping[str, object], ...] = ()  # where seconds were measured

    @property
    def benchmarks(self) -> list[str]:
        """All sets, by name."""
        return sorted({benchmark for benchmark, _ in self.answers})

    @property
    def methods(self) -> list[str]:
        """All methods, in the order of the settings, then by name."""
        found = {method for _, method in self.answers}
        listed = self.settings.get("methods")
        known = [name for name in listed if name in found] if isinstance(listed, dict) else []
        return [*known, *sorted(found - set(known))]

    def judge(self, name: str | None, label: str) -> Judge | None:
        """The judge of that name; without one the judge with that label, None if there is none. Raises UserError."""
        known = [judge.name for judge in self.judges]
        if name is None:
            labelled = [judge for judge in self.judges if judge.label == label]
            if len(labelled) > 1:
                names = ", ".join(judge.name for judge in labelled)
                raise UserError(f"several judges are labelled {label!r}: {names}. Choose with --proxy and --gold.")
            return labelled[0] if labelled else None
        if name not in known:
            raise UserError(f"this run has no judge {name!r}; it has {', '.join(known)}.{nearest(name, known)}")
        return self.judges[known.index(name)]

    def ranking(self, method: str) -> tuple[object, ...]:
        """What a method ranks its candidates by: scores of two methods are on one scale if this is the same."""
        methods = self.settings.get("methods")
        one = methods.get(method) if isinstance(methods, dict) else None
        told = one if isinstance(one, dict) else {}
        options = told.get("options") or {}
        return told.get("scorer"), options.get("score"), options.get("aggregate")

    def layout(self, benchmark: str) -> str | None:
        """What kind of rows a set has, as its settings say."""
        sets = self.settings.get("benchmarks")
        one = sets.get(benchmark) if isinstance(sets, dict) else None
        return str(one["layout"]) if isinstance(one, dict) and "layout" in one else None


def gather(folder: Path, baseline: str) -> Run:
    """Read a run's folder; judgements of pairs are those against `baseline`. Raises UserError."""
    files = sorted((folder / ANSWERS).glob("*/*.jsonl"))
    if not files:
        raise UserError(f"there are no answers under {folder / ANSWERS}; eval.py generate writes them.")
    answers = {(path.parent.name, path.stem): tuple(read_answers(path)) for path in files}
    for path in files:
        if not answers[path.parent.name, path.stem]:
            raise UserError(f"{path} is empty; run eval.py generate again, which goes on there.")
        same_set = (other for other in files if other.parent == path.parent)
        longest = max(same_set, key=lambda other: len(answers[other.parent.name, other.stem]))
        mine, theirs = ([one.id for one in answers[file.parent.name, file.stem]] for file in (path, longest))
        check_ids(path, mine, longest, theirs)
        _check_turns(path, answers[path.parent.name, path.stem], longest, answers[longest.parent.name, longest.stem])
    methods = sorted({method for _, method in answers})
    if baseline not in methods:
        raise UserError(
            f"no answers by the baseline {baseline!r}; methods: {', '.join(methods)}.{nearest(baseline, methods)}"
        )
    folders = sorted(path.parent for path in (folder / "judgements").glob("*/judge.json"))
    judges = tuple(_judge(path, answers, baseline) for path in folders)
    return Run(answers, judges, read_object(folder / "settings.json"), read_machines(folder))


def _check_turns(path: Path, answers: Sequence[Answer], other: Path, wanted: Sequence[Answer]) -> None:
    for line, (mine, theirs) in enumerate(zip(answers, wanted, strict=True), 1):
        if len(mine.turns) != len(theirs.turns):
            counts = f"{len(mine.turns)} turns of {mine.id!r}, and {other} has {len(theirs.turns)}"
            raise UserError(f"{path}, line {line}: 'turns' has {counts}; methods are compared turn by turn.")


def _judge(folder: Path, answers: Mapping[tuple[str, str], tuple[Answer, ...]], baseline: str) -> Judge:
    label = read_object(folder / "judge.json").get("label")
    if not isinstance(label, str):
        raise UserError(f"{folder / 'judge.json'}: 'label' is {label!r}; it has to say in words what this judge is.")
    scores, pairs = {}, {}
    for path in sorted(folder.glob("*/*.jsonl")):
        method, versus, other = path.stem.partition(VERSUS)
        name = (path.parent.name, method)
        source = folder.parent.parent / ANSWERS / name[0] / f"{method}.jsonl"
        if name not in answers:
            raise UserError(f"{path} judges answers that are not there: {source} is missing.")
        if not versus:
            scores[name] = _scores(path, source, answers[name])
        elif other == baseline:
            pairs[name] = _credits(path, source, answers[name])
    return Judge(folder.name, label, scores, pairs)


def _scores(path: Path, source: Path, answers: Sequence[Answer]) -> tuple[Judgement, ...]:
    found = tuple(read_judgements(path))
    check_ids(path, [one.id for one in found], source, [one.id for one in answers])
    for line, (one, answer) in enumerate(zip(found, answers, strict=True), 1):
        if len(one.scores) != len(answer.turns):
            counts = f"{len(one.scores)} numbers for {len(answer.turns)} turns"
            raise UserError(f"{path}, line {line}: 'scores' has {counts} of {one.id!r}; it needs one a turn.")
    return found


def _credits(path: Path, source: Path, answers: Sequence[Answer]) -> np.ndarray:
    ids, credits = [], []
    for field, _ in rows_of(path):
        ids.append(field.text("id"))
        if field.text("winner") not in CREDITS:
            raise field.wrong("winner", f"one of {', '.join(CREDITS)}")
        credits.append(CREDITS[field.text("winner")])
    check_ids(path, ids, source, [one.id for one in answers])
    return np.array(credits, np.float64)
