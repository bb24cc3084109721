"""What others wrote is spelled for where it stands: it can be read, and does nothing."""

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from sla_jax import escape

HOSTILE = [
    "=cmd|' /C calc'!A0",
    "a | b",
    "[here](javascript:alert(1))",
    "![x](https://evil.example/x.png)",
    "<img src=x onerror=alert(1)>",
    "https://evil.example www.evil.example",
    "&lt;script&gt;",
    "`code` *bold* _slanted_ ~~gone~~ **x**",
    "a\n\n# heading\n- item",
    "\\",
    "step_beam 4/2, p < 0.05",
    "<!-- end small -->",
]


@given(st.text())
def test_nothing_printable_moves_a_cursor(text):
    shown = escape.printable(text)
    assert len(shown) == len(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
    assert all(one == other for one, other in zip(text, shown, strict=True) if one.isprintable() or one in "\n\t")


def test_escape_sequences_are_shown():
    assert escape.printable("\x1b[2Ja\r\x07\x9b1m\tb\n") == "␛[2Ja␍␇\ufffd1m\tb\n"
    assert escape.line(" a\n\n\tb\x1b ") == "a b␛"


@given(st.text())
def test_no_cell_is_a_formula_and_every_one_can_be_read(text):
    cell = escape.csv_cell(text)
    assert cell.removeprefix("'") == text or cell == text
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r")) or re.fullmatch(r"[+-][\d.eE+%-]+", cell)
    out = io.StringIO()
    csv.writer(out).writerow([cell, "next"])
    assert next(csv.reader(io.StringIO(out.getvalue(), newline=""))) == [cell, "next"]


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("-1.5", "-1.5"),
        ("+3e-4", "+3e-4"),
        ("-1+cmd", "'-1+cmd"),
        ("@x", "'@x"),
        ("＝1", "'＝1"),
        ("a=b", "a=b"),
    ],
)
def test_numbers_are_no_formulas(text, cell):
    assert escape.csv_cell(text) == cell


@given(st.one_of(st.sampled_from(HOSTILE), st.text(alphabet="a_*[]()<>|`\\&~!: /w.#-=+@\n", max_size=30)))
def test_markdown_shows_the_text_and_nothing_else(text):
    line = f"x{escape.markdown(text)}"  # within a line
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(line)
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert {token.type for token in tokens[1].children} <= {"text", "text_special"}
    assert "".join(token.content for token in tokens[1].children) == f"x{escape.line(text)}".rstrip()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_of_a_table_stays_one(text):
    table = f"| a | b |\n| --- | --- |\n| {escape.markdown(text)} | end |"
    tokens = MarkdownIt("commonmark").enable("table").parse(table)
    cells = [tokens[i + 1].children for i, token in enumerate(tokens) if token.type == "td_open"]
    assert ["".join(part.content for part in cell) for cell in cells] == [escape.line(text), "end"]


def test_bare_addresses_are_no_links_on_github():
    assert "https://" not in escape.markdown(HOSTILE[5]) and "www." not in escape.markdown(HOSTILE[5])


@given(st.text(alphabet="a\\{}$&#_%~^ \n"))
def test_latex_has_no_command_of_theirs(text):
    written = escape.latex(text)
    for command in (
        r"\textbackslash{}",
        r"\textasciitilde{}",
        r"\textasciicircum{}",
        *(f"\\{one}" for one in "{}$&#_%"),
    ):
        written = written.replace(command, "")
    assert not set(written) & set("\\{}$&#_%~^\n")
