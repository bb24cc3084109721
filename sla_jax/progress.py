"""What a person sees while a program works: a bar on a terminal, a line a minute elsewhere; on stderr, of process 0."""

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sla_jax.escape import printable

Tell = Callable[[int, int, str], None]
EVERY = 60.0  # seconds between lines where there is no terminal


def console() -> Console:
    """The console on stderr (made anew, because tests replace the stream)."""
    return Console(stderr=True, soft_wrap=True, highlight=False, quiet=jax.process_index() != 0)


def say(message: str) -> None:
    """One line on stderr."""
    console().print(printable(message), markup=False)


@contextlib.contextmanager
def bar(title: str) -> Iterator[Tell]:
    """How far something is; call what is yielded with (done, total, note)."""
    shown = console()
    if not shown.is_terminal:
        yield lines(title, say, time.monotonic)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=shown) as progress:
        task = progress.add_task(title, total=None, note="")
        yield lambda done, total, note: progress.update(task, completed=done, total=total, note=printable(note))


def lines(title: str, write: Callable[[str], None], clock: Callable[[], float]) -> Tell:
    """The same as lines for a log: one every EVERY seconds, and one at the end of what took longer than that."""
    began = last = clock()
    first: int | None = None

    def tell(done: int, total: int, note: str) -> None:
        nonlocal first, last
        now = clock()
        first = done if first is None else first
        if now - last < EVERY and (done < total or now - began < EVERY):
            return
        last = now
        left = f", {_span((now - began) * (total - done) / (done - first))} left" if done > first else ""
        write(f"{title}: {done:,} of {total:,} after {_span(now - began)}{left}  {note}".rstrip())

    return tell


def _span(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
