"""Answers of every method to every prompt of every benchmark, prompt by prompt, in a folder that can be gone on with.

OUT/.lock           held by the program that writes answers here, while it does
OUT/settings.json   everything that decides the answers; a run with others is refused
OUT/answers, OUT/seconds, OUT/formats   see `rows`, `machines` and `formats`

An answer is a function of the settings, the benchmark, the prompt and the method; files are in the benchmark's order
and grow by whole lines. So a run that was interrupted anywhere and begun again leaves the same bytes in OUT/answers and
OUT/formats as one that was not; only OUT/seconds tells the clock's time.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from sla_jax.errors import UserError
from sla_jax.evaluation.answering import Answerer, Ask, seed_of
from sla_jax.evaluation.benchmarks import Benchmark, Prompt, load_benchmark
from sla_jax.evaluation.formats import write_format
from sla_jax.evaluation.machines import note_machine
from sla_jax.evaluation.rows import (
    ANSWERS,
    Answer,
    Turn,
    as_line,
    read_answers,
    read_seconds,
    seconds_line,
    seconds_path,
)
from sla_jax.evaluation.settings import GenerateConfig, MethodConfig, completed, first_difference, joined, resolved
from sla_jax.files import append_lines, drop_cut_line, own_line, read_object, write_object, write_text
from sla_jax.locks import contents, one_writer
from sla_jax.progress import bar

SETTINGS = "settings.json"


class Task(NamedTuple):
    """One method's answers to one benchmark."""

    method: MethodConfig
    benchmark: Benchmark
    path: Path
    there: int  # answers that it has

    @property
    def missing(self) -> tuple[Prompt, ...]:
        """The prompts that wait."""
        return self.benchmark.prompts[self.there :]


def generate(config: GenerateConfig, answerer: Answerer) -> Path:
    """Make what is missing of the run's answers, then every benchmark's own files; returns OUT. Raises UserError."""
    benchmarks = [load_benchmark(one) for one in config.benchmarks]
    check_prompts(config, benchmarks, answerer)
    with one_writer(config.folder):
        return _generate(config, benchmarks, answerer)


def _generate(config: GenerateConfig, benchmarks: Sequence[Benchmark], answerer: Answerer) -> Path:
    out = open_run(config, benchmarks, answerer)
    tasks = [_task(out, method, benchmark) for benchmark in benchmarks for method in config.methods]
    if config.server is None:
        note_machine(out)
    done, total = sum(task.there for task in tasks), sum(len(task.benchmark.prompts) for task in tasks)
    with bar("answers") as tell:
        for task in tasks:
            note = f"{task.method.name} on {task.benchmark.name}"
            tell(done, total, note)
            for answer in _answers(config, task, answerer):
                append_lines(seconds_path(task.path), [seconds_line(answer)])  # first: no answer lacks its seconds
                append_lines(task.path, [as_line(answer)])
                done += 1
                tell(done, total, note)
    for task in tasks:
        write_format(out, task.benchmark.layout, read_answers(task.path))
    return out


# ---- the run's folder ----


def open_run(config: GenerateConfig, benchmarks: Sequence[Benchmark], answerer: Answerer) -> Path:
    """OUT, made or checked. Raises UserError for answers of other settings, naming the first that differs."""
    out, file = config.folder, config.folder / SETTINGS
    digests = {one.name: (one.digest, len(one.prompts)) for one in benchmarks}
    new = resolved(config, digests, answerer.about, answerer.options)
    if file.exists() and any((out / ANSWERS).glob("*/*.jsonl")):
        old = read_settings(out)
        difference = first_difference(completed(old), new)
        if difference is not None:
            raise UserError(
                f"{out} holds answers of other settings ({difference}). Give --out another folder, or go on with the "
                f"settings of {file}; new benchmarks and methods may be added to it."
            )
        new = joined(old, new)
    elif out.exists() and not file.exists() and (not out.is_dir() or contents(out)):
        raise UserError(f"{out} exists and is no run of this program (no {SETTINGS}); give --out another folder.")
    write_object(file, new)
    return out


def read_settings(out: Path) -> dict[str, Any]:
    """OUT's settings. Raises UserError."""
    file = out / SETTINGS
    if not file.is_file():
        raise UserError(f"{out} is no run: it has no {SETTINGS}; `eval.py generate` makes one.")
    found = read_object(file)
    if not all(isinstance(found.get(name), dict) for name in ("benchmarks", "methods")):
        raise UserError(f"{file} lacks 'benchmarks' or 'methods'; it was not written by `eval.py generate`.")
    return found


def _task(out: Path, method: MethodConfig, benchmark: Benchmark) -> Task:
    """What is there already; lines that a kill cut short are dropped."""
    path = out / ANSWERS / benchmark.name / f"{method.name}.jsonl"
    clock = seconds_path(path)
    drop_cut_line(path)
    drop_cut_line(clock)
    ids = [answer.id for answer in read_answers(path)] if path.exists() else []
    _check_order(path, ids, benchmark)
    if clock.exists():
        kept = [{"id": id_, **row} for id_, row in read_seconds(clock).items() if id_ in ids]
        write_text(clock, "".join(map(own_line, kept)))
    return Task(method, benchmark, path, len(ids))


def _check_order(path: Path, ids: Sequence[str], benchmark: Benchmark) -> None:
    wanted = [prompt.id for prompt in benchmark.prompts]
    for line, (one, two) in enumerate(zip(ids, wanted, strict=False), 1):
        if one != two:
            raise UserError(f"{path}, line {line}: 'id' is {one!r}, and {benchmark.name} has {two!r} there.")
    if len(ids) > len(wanted):
        raise UserError(f"{path}, line {len(wanted) + 1}: {benchmark.name} has {len(wanted)} prompts and no more.")


# ---- answering ----


def check_prompts(config: GenerateConfig, benchmarks: Sequence[Benchmark], answerer: Answerer) -> None:
    """Raise UserError for all prompts that have no answer, as far as that is known before the first one is made."""
    for benchmark in benchmarks:
        refused = dict(_refusals(config, benchmark, answerer))
        if refused:
            first = next(iter(refused))
            raise UserError(
                f"{len(refused)} of {len(benchmark.prompts)} prompts of {benchmark.name} cannot be answered; the "
                f"first, {first!r}: {refused[first]} Lower max_tokens, or leave them out with exclude: "
                f"{json.dumps(list(refused))}."
            )


def _refusals(config: GenerateConfig, benchmark: Benchmark, answerer: Answerer) -> Iterator[tuple[str, UserError]]:
    """A later turn is checked as if the answers before it had max_tokens each."""
    for prompt in benchmark.prompts:
        turns = [Turn(text, "", [], "", [], {}, None) for text in prompt.turns]
        last = len(turns) - 1
        messages = _row(benchmark, config.methods[0], prompt, turns).messages(last)
        try:
            answerer.check(Ask(messages, config.methods[0], config.max_tokens * (last + 1), 0))
        except UserError as error:
            yield prompt.id, error


def _answers(config: GenerateConfig, task: Task, answerer: Answerer) -> Iterator[Answer]:
    """The missing answers in order, as many at a time as the answerer takes."""

    def one(prompt: Prompt) -> Answer:
        return _answer(config, task, prompt, answerer)

    if answerer.parallel == 1:
        yield from map(one, task.missing)
        return
    pool = ThreadPoolExecutor(answerer.parallel)
    try:
        yield from pool.map(one, task.missing)
    finally:
        pool.shutdown(cancel_futures=True)


def _answer(config: GenerateConfig, task: Task, prompt: Prompt, answerer: Answerer) -> Answer:
    """All turns of one prompt, each behind the answers to those before it."""
    turns: list[Turn] = []
    for number, text in enumerate(prompt.turns):
        asked = _row(task.benchmark, task.method, prompt, [*turns, Turn(text, "", [], "", [], {}, None)])
        seed = seed_of(config.seed, task.benchmark.name, prompt.id, number)
        try:
            reply = answerer.answer(Ask(asked.messages(number), task.method, config.max_tokens, seed))
        except UserError as error:
            raise UserError(
                f"{task.benchmark.name}, prompt {prompt.id!r}, turn {number + 1}, method {task.method.name}: {error} "
                f"What was answered before is in {task.path}; the same command goes on there."
            ) from None
        turns.append(Turn(text, **reply._asdict()))
    return _row(task.benchmark, task.method, prompt, turns)


def _row(benchmark: Benchmark, method: MethodConfig, prompt: Prompt, turns: Sequence[Turn]) -> Answer:
    return Answer(
        id=prompt.id,
        benchmark=benchmark.name,
        method=method.name,
        category=prompt.category,
        level=prompt.level,
        reference=prompt.reference,
        turns=tuple(turns),
        history=prompt.history,
    )
