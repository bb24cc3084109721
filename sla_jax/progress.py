"""What a person sees while a program works: progress bars and messages, all on stderr, from process 0 alone."""

import contextlib
from collections.abc import Callable, Iterator

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Tell = Callable[[int, int, str], None]


def console() -> Console:
    """The console on stderr (made anew, because tests replace the stream)."""
    return Console(stderr=True, soft_wrap=True, highlight=False, quiet=jax.process_index() != 0)


def say(message: str) -> None:
    """One line on stderr."""
    console().print(message, markup=False)


@contextlib.contextmanager
def bar(title: str) -> Iterator[Tell]:
    """A progress bar; call what is yielded with (done, total, note)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console()) as progress:
        task = progress.add_task(title, total=None, note="")
        yield lambda done, total, note: progress.update(task, completed=done, total=total, note=note)
