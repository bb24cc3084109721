"""`eval.py judge`: every judge on every method's answers, into OUT/judgements, as often as it takes.

OUT/judgements/JUDGE/.lock                                    held by the program that writes here, while it does
OUT/judgements/JUDGE/judge.json                               kind, label, what its judgements depend on
OUT/judgements/JUDGE/BENCHMARK/METHOD.jsonl                   {id, scores, score, details}
OUT/judgements/JUDGE/BENCHMARK/METHOD.vs.BASELINE.jsonl       {id, baseline, winner, details} of judges of pairs

Answers already judged are skipped; other settings of a judge of the same name, or answers of other settings, are
refused by the first difference. A number that is none stops the judge with the line of the answer and the field, after
all that it said has been written.
"""

import hashlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sla_jax.checkpoint import store
from sla_jax.errors import UserError, nearest
from sla_jax.evaluation.generate import read_settings
from sla_jax.evaluation.judges import alpaca
from sla_jax.evaluation.judges.config import JudgeConfig, JudgeRun
from sla_jax.evaluation.judges.journal import Journal
from sla_jax.evaluation.judges.make import make_judge
from sla_jax.evaluation.judges.protocol import Judge, PairJudge
from sla_jax.evaluation.judges.scoring import Task, score_set
from sla_jax.evaluation.rows import ANSWERS, check_ids, read_answers
from sla_jax.evaluation.settings import VERSUS, completed, first_difference, joined
from sla_jax.files import own_line, read_object, write_object, write_text
from sla_jax.locks import one_writer
from sla_jax.progress import bar

JUDGEMENTS, DESCRIPTION = "judgements", "judge.json"
Make = Callable[[JudgeConfig], Judge | PairJudge]


def run_judges(run: JudgeRun, make: Make = make_judge) -> list[str]:
    """Judge what is not judged yet; returns a line a judge. Raises UserError; what was judged before is on disk."""
    out = Path(run.out)
    settings, files = read_settings(out), answer_files(out, run.methods)
    said = []
    for config in run.judges:
        folder = out / JUDGEMENTS / config.folder
        mine = [path for path in files if config.judges(path.parent.name) and path.stem != config.baseline]
        if not mine:
            sets = sorted({path.parent.name for path in files})
            raise UserError(f"the judge {config.folder!r} has no answers to judge; the run's sets: {', '.join(sets)}.")
        with one_writer(folder):
            describe(folder, config, settings)
            said += _run_judge(config, [_task(config, path, folder) for path in mine], run.batch, make)
    return said


def _run_judge(config: JudgeConfig, tasks: Sequence[Task], batch: int, make: Make) -> list[str]:
    if config.kind == "alpaca_eval":
        return [line for task in tasks for line in _exchange(config, task)]
    todo, total = (sum(count(task) for task in tasks) for count in (_missing, _all))
    judge = make(config) if todo else None
    done = total - todo
    with bar(config.folder) as tell:
        for note, judged in _judge(judge, tasks, batch) if judge is not None else ():
            done += judged
            tell(done, total, note)
    for task in tasks:
        task.journal.settle()
    return [f"{config.folder} ({config.said}): {todo} judged now, {total} in all"]


def _exchange(config: JudgeConfig, task: Task) -> list[str]:
    """Write what alpaca_eval's CLI reads, or take what it has said; a line that says which."""
    assert task.baseline is not None, "a judge of pairs has a baseline"
    folder = task.journal.path.with_suffix("")
    words = alpaca.write_pair(folder, task.answers, task.baseline)
    annotations = alpaca.annotations_in(folder)
    if annotations is None:
        return [f"{config.folder}: now run {shlex.join(words)} --annotators_config NAME, then this again"]
    found = alpaca.read_annotations(annotations, task.answers, task.baseline)
    write_text(task.journal.path, "".join(own_line(one._asdict()) for one in found))
    return [f"{config.folder} ({config.said}): {len(found)} judgements taken from {annotations}"]


def answer_files(out: Path, methods: Sequence[str]) -> list[Path]:
    """The files of answers, by benchmark and method. Raises UserError if a method has none."""
    files = sorted((out / ANSWERS).glob("*/*.jsonl"))
    known = sorted({path.stem for path in files})
    if not files:
        raise UserError(f"there are no answers under {out / ANSWERS}; `eval.py generate` writes them.")
    for name in methods:
        if name not in known:
            raise UserError(f"no answers by the method {name!r}; methods: {', '.join(known)}.{nearest(name, known)}")
    return [path for path in files if path.stem in (methods or known)]


def describe(folder: Path, config: JudgeConfig, answers: dict[str, Any]) -> None:
    """Write judge.json, or check it. Raises UserError for judgements of other settings or of other answers."""
    path, settings = folder / DESCRIPTION, config.settings() | _digests(config)
    if path.exists():
        old = _read(path)
        given = ("judge", old["settings"], settings), ("answers", completed(old["answers"]), completed(answers))
        for what, before, now in given:
            if difference := first_difference(before, now):
                raise UserError(
                    f"{folder} holds judgements of other settings of the {what} ({difference}). Give the judge another "
                    "name, or delete the folder to judge anew."
                )
        answers = joined(old["answers"], answers)
    new = {"kind": config.kind, "label": config.said, "settings": settings, "answers": answers}
    write_object(path, new)


def _read(path: Path) -> dict[str, Any]:
    found = read_object(path)
    for name in ("settings", "answers"):
        if not isinstance(found.get(name), dict):
            raise UserError(f"{path}: {name!r} is no object; delete the folder to judge anew.")
    return found


def _digests(config: JudgeConfig) -> dict[str, str]:
    """What stands for a checkpoint's contents: its marker, written anew at every import and after every training."""
    directory = config.checkpoint or (config.scorer.checkpoint if config.scorer else None)
    if directory is None:
        return {}
    marker = Path(directory) / store.MARKER
    channel = store.info(Path(directory)).channel  # a directory that is none is refused by name
    return {"channel": channel, "checkpoint_sha256": hashlib.sha256(marker.read_bytes()).hexdigest()}


def _task(config: JudgeConfig, path: Path, folder: Path) -> Task:
    answers, baseline, name = read_answers(path), None, path.stem
    ids = [answer.id for answer in answers]
    if config.baseline is not None:
        other = path.with_stem(config.baseline)
        baseline, name = read_answers(other), f"{path.stem}{VERSUS}{config.baseline}"
        check_ids(path, ids, other, [answer.id for answer in baseline])
    return Task(path, answers, baseline, Journal(folder / path.parent.name / f"{name}.jsonl", path, ids))


def _missing(task: Task) -> int:
    return len(task.journal.missing())


def _all(task: Task) -> int:
    return len(task.answers)


def _judge(judge: Judge | PairJudge, tasks: Sequence[Task], batch: int) -> Iterator[tuple[str, int]]:
    """Judge what is missing; yields where it is and how many have been, each time some have."""
    if isinstance(judge, Judge):
        for name in dict.fromkeys(task.set for task in tasks):
            mine = [task for task in tasks if task.set == name]
            yield from ((name, count) for count in score_set(judge, mine, batch))
        return
    for task in tasks:
        for number in task.journal.missing():  # a pair costs requests: each is written as soon as it is judged
            _compare(judge, task, number)
            yield f"{task.source.stem} on {task.set}", 1


def _compare(judge: PairJudge, task: Task, number: int) -> None:
    assert task.baseline is not None, "a judge of pairs has a baseline"
    try:
        found = judge.compare(task.answers[number], task.baseline[number])
    except UserError as error:
        raise UserError(f"{task.source}, line {number + 1}: {error}") from None
    task.journal.append([(found.id, own_line(found._asdict()))])
