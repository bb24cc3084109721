"""What every benchmark does with its figures: a table on the screen, JSON in a file, the table in a page of docs/.

A page holds its table between two markers, so that `--write-docs` replaces the figures and nothing else.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sla_jax import escape
from sla_jax.machine import machine

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- begin {name} -->", "<!-- end {name} -->"
WIDTH = 140  # characters that the widest table needs
Rows = Sequence[Mapping[str, str]]


def show(title: str, rows: Rows) -> None:
    """Print rows (column → text) as a table."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for i, column in enumerate(rows[0]):
        table.add_column(Text(column), justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        table.add_row(*(Text(escape.printable(cell)) for cell in row.values()))
    Console(width=max(Console().width, WIDTH)).print(table)


def markdown(title: str, rows: Rows) -> str:
    """The same table for a page."""
    columns = list(rows[0])
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *([row[c] for c in columns] for row in rows)]
    body = "\n".join("| " + " | ".join(map(escape.markdown, line)) + " |" for line in lines)
    return f"**{escape.markdown(title)}**\n\n{body}"


def write_json(path: Path, figures: Mapping[str, Any]) -> None:
    """Figures with the machine they were measured on; keys in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n", encoding="utf-8")


def write_page(path: Path, name: str, text: str) -> None:
    """Replace what stands between the markers called `name`; a page without them is an error of ours."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    page = path.read_text(encoding="utf-8")
    head, found, rest = page.partition(begin)
    _, closed, tail = rest.partition(end)
    assert found and closed, f"{path} has no markers {begin} … {end}"
    path.write_text(f"{head}{begin}\n\n{text.strip()}\n\n{end}{tail}", encoding="utf-8")
