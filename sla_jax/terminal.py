"""An answer in the terminal: plain text, JSON lines, or two answers side by side with rewards as colour.

Text and JSON go to standard output, everything said about them to standard error. What a model writes moves no cursor
of the terminal (`escape.printable`); into a file or a pipe goes the text as it is.
"""

import contextlib
import dataclasses
import io
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sla_jax.api import Chunk, Search
from sla_jax.decode.beam import BeamSearch
from sla_jax.decode.best_of_n import BestOfN
from sla_jax.decode.dvts import DVTS
from sla_jax.decode.greedy import Greedy
from sla_jax.decode.sla import SLA
from sla_jax.decode.step_beam import StepBeam
from sla_jax.escape import printable
from sla_jax.files import write_text
from sla_jax.text import TextStream

LEGEND = "colour: each token's reward, from the lowest shown (red) to the highest (green)"
COLDEST, WARMEST = (214, 69, 65), (38, 166, 91)  # colours of the lowest and the highest reward shown


@dataclasses.dataclass
class Tally:
    """Speed and cost of one answer, as its chunks come in. Seconds are those spent waiting for this answer alone."""

    first_seconds: float = 0.0  # until the first text, compilation included
    first_tokens: int = 0
    rest_seconds: float = 0.0
    rounds: int = 0
    lanes: int = 0
    chunk: Chunk | None = None

    def add(self, chunk: Chunk, seconds: float) -> None:
        """Count one chunk that took `seconds`."""
        self.rounds, self.lanes, self.chunk = self.rounds + 1, max(self.lanes, chunk.alive), chunk
        if self.first_tokens:
            self.rest_seconds += seconds
        else:
            self.first_seconds += seconds
            self.first_tokens = chunk.usage.completion_tokens

    def line(self) -> str:
        """`48 tokens (stop) · first text after 0.9 s …, then 41.2 tokens/s · …`"""
        assert self.chunk is not None, "an answer has at least one chunk"
        usage = self.chunk.usage
        rest = usage.completion_tokens - self.first_tokens
        speed = f", then {rest / self.rest_seconds:.1f} tokens/s" if rest and self.rest_seconds > 0 else ""
        explored = usage.explored_tokens / max(usage.completion_tokens, 1)
        parts = (
            f"{usage.completion_tokens} tokens ({self.chunk.finish_reason})",
            f"first text after {self.first_seconds:.1f} s with compilation{speed}",
            f"{explored:.1f} tokens explored per token committed",
            f"up to {self.lanes} lanes",
            f"{self.rounds} rounds",
        )
        return " · ".join(parts)


def timed(chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, float]]:
    """Each chunk with the seconds that its round took."""
    going = iter(chunks)
    while True:
        began = time.perf_counter()
        chunk = next(going, None)
        if chunk is None:
            return
        yield chunk, time.perf_counter() - began


def describe(decoder: Search) -> str:
    """`look-ahead 2/10/2` (width/chunk/depth), `greedy`, `beam search 4`, `best of 8`, `speculative rejection of 9`,
    `step beam search 8/4` (candidates/next steps of each), `DVTS 8/4`."""
    if isinstance(decoder, SLA):
        return f"look-ahead {decoder.width}/{decoder.chunk}/{decoder.depth}"
    if isinstance(decoder, Greedy):
        return "greedy"
    if isinstance(decoder, BeamSearch):
        return f"beam search {decoder.beams}"
    if isinstance(decoder, StepBeam | DVTS):
        return f"{'DVTS' if isinstance(decoder, DVTS) else 'step beam search'} {decoder.n}/{decoder.width}"
    return f"best of {decoder.n}" if isinstance(decoder, BestOfN) else f"speculative rejection of {decoder.n}"


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner on standard error while something slow happens."""
    with Console(file=sys.stderr).status(what):
        yield


def print_stream(chunks: Iterable[Chunk], column: "Column | None" = None) -> None:
    """Text as it is committed, then the tally; a column, if given, takes the chunks too.

    While a decoder that samples whole answers has none, a line on standard error says how far it is."""
    tally = Tally()
    with Console(file=sys.stderr).status("searching") as status:
        for chunk, seconds in timed(chunks):
            tally.add(chunk, seconds)
            if column is not None:
                column.add(chunk, seconds)
            if chunk.text:
                status.stop()
            status.update(f"{chunk.alive} candidates alive, {chunk.usage.explored_tokens} tokens explored")
            print(printable(chunk.text) if sys.stdout.isatty() else chunk.text, end="", flush=True)
    print(flush=True)
    Console(file=sys.stderr).print(tally.line(), style="dim", highlight=False, soft_wrap=True)


def print_json(chunks: Iterable[Chunk]) -> None:
    """One object per committed chunk, then `{"done": true, …}`."""
    ids: list[int] = []
    text = ""
    last: Chunk | None = None
    for last in chunks:
        ids += last.token_ids
        text += last.text
        if last.phase is not None:
            print(json.dumps(_progress(last)), flush=True)
        if last.token_ids:
            names = ("round", "token_ids", "text", "rewards", "score", "margin")
            print(json.dumps({name: getattr(last, name) for name in names}), flush=True)
    assert last is not None, "a stream has at least one chunk"
    end: dict[str, Any] = {"done": True, "finish_reason": last.finish_reason, "token_ids": ids, "text": text}
    end |= {"usage": dataclasses.asdict(last.usage), "cost": dataclasses.asdict(last.cost)}
    print(json.dumps(end), flush=True)


def _progress(chunk: Chunk) -> dict[str, Any]:
    """How far a search is that has no text yet, and the candidates whose fate is known."""
    counts = {"alive": chunk.alive, "explored_tokens": chunk.usage.explored_tokens}
    return {"round": chunk.round, "phase": chunk.phase, **counts, "candidates": [one._asdict() for one in chunk.ended]}


def print_beside(
    answers: Mapping[str, Iterable[Chunk]], tokenizer: Any, before: Sequence[int] = ()
) -> dict[str, "Column"]:
    """Several answers at once, a column each, their rounds taken in turn; one after the other if not on a terminal.

    `before` are the tokens of a text that the answers go on from."""
    console = Console()
    columns = {name: Column(name, tokenizer, before) for name in answers}
    if not console.is_terminal:
        for name, chunks in answers.items():
            print(f"\n── {name} ──", flush=True)
            print_stream(chunks, columns[name])
        return columns
    going = {name: timed(chunks) for name, chunks in answers.items()}
    with Live(_table(columns), console=console, refresh_per_second=12) as live:
        while going:
            for name in list(going):
                item = next(going[name], None)
                if item is None:
                    del going[name]
                else:
                    columns[name].add(*item)
                live.update(_table(columns))
    console.print(LEGEND, style="dim")
    return columns


def save_picture(columns: Mapping[str, "Column"], path: Path, *, title: str) -> None:
    """The columns as an SVG file that loads nothing: rich's link to a web font is taken out."""
    console = Console(record=True, width=120, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(_table(columns))
    console.print(LEGEND, style="dim")
    picture = console.export_svg(title=printable(title))
    write_text(path, re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL))


class Column:
    """One answer's text, token by token, with rewards."""

    def __init__(self, name: str, tokenizer: Any, before: Sequence[int] = ()):
        self.name, self.tally = name, Tally()
        self.stream = TextStream(tokenizer, before)
        self.pieces: list[tuple[str, float]] = []
        self.done = False

    def add(self, chunk: Chunk, seconds: float) -> None:
        """Take one chunk that took `seconds`."""
        self.tally.add(chunk, seconds)
        pairs = zip(chunk.token_ids, chunk.rewards, strict=True)
        self.pieces += [(self.stream.push([token]), reward) for token, reward in pairs]
        self.done = chunk.finish_reason is not None
        if self.done and self.pieces:
            self.pieces.append((self.stream.finish(), self.pieces[-1][1]))

    def render(self, low: float, high: float) -> Panel:
        """The panel, coloured on the scale low…high."""
        text = Text()
        for piece, reward in self.pieces:
            text.append(printable(piece), style=_colour(reward, low, high))
        rewards = [reward for _, reward in self.pieces]
        mean = f"mean reward {sum(rewards) / len(rewards):+.3f}" if rewards else "…"
        return Panel(
            text,
            title=Text(printable(self.name)),
            subtitle=mean + (f" · {self.tally.rounds} rounds" if self.done else " …"),
        )


def _table(columns: Mapping[str, Column]) -> Table:
    rewards = [reward for column in columns.values() for _, reward in column.pieces] or [0.0]
    grid = Table.grid(expand=True, padding=(0, 1))
    for _ in columns:
        grid.add_column(ratio=1)
    grid.add_row(*(column.render(min(rewards), max(rewards)) for column in columns.values()))
    grid.add_row(*(Text(c.tally.line() if c.done else "", style="dim") for c in columns.values()))
    return grid


def _colour(reward: float, low: float, high: float) -> str:
    share = (reward - low) / (high - low) if high > low else 0.5
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(COLDEST, WARMEST, strict=True))
    return f"rgb({red},{green},{blue})"
