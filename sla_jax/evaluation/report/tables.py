"""Tables as data, and as Markdown, CSV and cells of text. A figure that does not exist is "–", or nothing in a CSV."""

import csv
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

from sla_jax import escape
from sla_jax.evaluation.report.statistics import Estimate

NONE = "–"
Cell = str | int | float | Estimate | None


class Column(NamedTuple):
    """A heading, and how a number below it is written."""

    name: str
    form: str = ".1f"


class Table(NamedTuple):
    """`name` is its CSV's; `note` says in a sentence or two what the columns are. All texts are plain, no markup."""

    name: str
    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def texts(self) -> list[list[str]]:
        """Every cell as it is shown."""
        return [[text(cell, column.form) for cell, column in zip(row, self.columns, strict=True)] for row in self.rows]


def text(cell: Cell, form: str) -> str:
    """A cell as it is shown: an estimate with its interval in brackets."""
    if isinstance(cell, Estimate):
        value = _number(cell.value, form)
        known = math.isfinite(cell.low) and math.isfinite(cell.high)
        return f"{value} [{_number(cell.low, form)}, {_number(cell.high, form)}]" if known else value
    if isinstance(cell, float):
        return _number(cell, form)
    return NONE if cell is None else str(cell)


def markdown(table: Table) -> str:
    """Heading, table and note."""
    aligned = ["---" if isinstance(cell, str) else "---:" for cell in (table.rows[0] if table.rows else ())]
    names = [escape.markdown(column.name) for column in table.columns]
    rows = [
        [escape.markdown(cell) if isinstance(cell, str) else shown for cell, shown in zip(row, texts, strict=True)]
        for row, texts in zip(table.rows, table.texts, strict=True)
    ]
    lines = [names, aligned or ["---"] * len(names), *rows]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"### {escape.markdown(table.title)}\n\n{body}\n\n{escape.markdown(table.note)}\n"


def as_csv(table: Table) -> str:
    """Full precision; an estimate takes three columns: the figure, and its interval as `… low` and `… high`."""
    split = [any(isinstance(row[i], Estimate) for row in table.rows) for i in range(len(table.columns))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [column.name for column in table.columns]
    writer.writerow([name for i, one in enumerate(names) for name in _spread(one, split[i])])
    for row in table.rows:
        writer.writerow([value for i, cell in enumerate(row) for value in _values(cell, split[i])])
    return out.getvalue()


def _spread(name: str, split: bool) -> list[str]:
    name = escape.csv_cell(name)
    return [name, f"{name} low", f"{name} high"] if split else [name]


def _values(cell: Cell, split: bool) -> Sequence[object]:
    if isinstance(cell, Estimate):
        return [_plain(part) for part in cell[:3]]
    return [_plain(cell), *(["", ""] if split else [])]


def _plain(cell: str | int | float | None) -> object:
    if isinstance(cell, str):
        return escape.csv_cell(cell)
    return "" if cell is None or (isinstance(cell, float) and math.isnan(cell)) else cell


def _number(value: float, form: str) -> str:
    return NONE if math.isnan(value) else format(value, form)
