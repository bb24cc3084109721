"""A file of what a judge said, one line an answer, that grows while the judge works and loses nothing.

What is judged is written at once, whatever becomes of the rest: a judge that fails on one answer of a batch leaves the
others' lines. When all answers are judged the lines stand in the answers' order, so an interrupted run ends with the
same bytes as one that was not.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from sla_jax.errors import UserError, nearest
from sla_jax.evaluation.rows import rows_of
from sla_jax.files import append_lines, drop_cut_line, own_line, write_text


class Journal:
    """The lines of one file, by id."""

    def __init__(self, path: Path, source: Path, ids: Sequence[str]):
        """Read what is there. Raises UserError for a line about an answer that `source` does not have."""
        self.path, self.ids = path, list(ids)
        self.lines: dict[str, str] = {}
        drop_cut_line(path)
        if path.exists():
            for field, row in rows_of(path):
                self._add(field.text("id"), own_line(row), field.place, source)

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
        append_lines(self.path, new.values())
        self.lines |= new

    def settle(self) -> None:
        """Put the lines into the answers' order, once all are there."""
        ordered = [name for name in self.ids if name in self.lines]
        if len(ordered) < len(self.ids) or list(self.lines) == ordered:
            return
        write_text(self.path, "".join(self.lines[name] for name in ordered))
        self.lines = {name: self.lines[name] for name in ordered}
