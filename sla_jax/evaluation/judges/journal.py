"""A file of what a judge said, one line an answer, that grows while the judge works and loses nothing.

What is judged is written at once, whatever becomes of the rest: a judge that fails on one answer of a batch leaves the
others' lines. When all answers are judged the lines stand in the answers' order, so an interrupted run ends with the
same bytes as one that was not.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from sla_jax.errors import UserError, nearest
from sla_jax.evaluation.rows import Field, lines_of, mend, write_whole


class Journal:
    """The lines of one file, by id."""

    def __init__(self, path: Path, source: Path, ids: Sequence[str]):
        """Read what is there. Raises UserError for a line about an answer that `source` does not have."""
        self.path, self.ids = path, list(ids)
        self.lines: dict[str, str] = {}
        mend(path)
        if path.exists():
            texts = path.read_text(encoding="utf-8").split("\n")
            for number, row in lines_of(path):
                field = Field(f"{path}, line {number}", row if isinstance(row, dict) else {})
                self._add(field.text("id"), f"{texts[number - 1]}\n", f"{path}, line {number}", source)

    def _add(self, name: str, text: str, where: str, source: Path) -> None:
        if name in self.lines:
            raise UserError(f"{where}: 'id' {name!r} is there twice; every answer has one line.")
        if name not in self.ids:
            raise UserError(f"{where}: 'id' {name!r} is not in {source}.{nearest(name, self.ids)}")
        self.lines[name] = text

    def missing(self) -> list[int]:
        """The numbers of the answers that are not judged yet."""
        return [number for number, name in enumerate(self.ids) if name not in self.lines]

    def append(self, rows: Iterable[tuple[str, str]]) -> None:
        """Write (id, line) pairs, on disk before this returns."""
        new = dict(rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.writelines(new.values())
            file.flush()
            os.fsync(file.fileno())
        self.lines |= new

    def settle(self) -> None:
        """Put the lines into the answers' order, once all are there."""
        ordered = [name for name in self.ids if name in self.lines]
        if len(ordered) < len(self.ids) or list(self.lines) == ordered:
            return
        write_whole(self.path, "".join(self.lines[name] for name in ordered))
        self.lines = {name: self.lines[name] for name in ordered}
