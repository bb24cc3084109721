"""Spells texts for a reader that takes some characters for commands: one function a format, for whatever is not ours.

What a model, a server, a checkpoint or a file's name says is shown as it is, and does nothing: it moves no cursor of a
terminal, is no formula in a spreadsheet, no link or markup on a page, no command of LaTeX.
"""

import re

# pictures of control characters, and U+FFFD for those that have none; line ends and tabs stay
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
CONTROLS |= {127: 0x2421, **dict.fromkeys(range(128, 160), 0xFFFD)}
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?%?")
MARKDOWN = re.compile(r"[\\`*|<>\[\]&~]|(?<![^\W_])_|_(?![^\W_])|(?<=[a-z]):(?=//)|(?<=www)\.", re.IGNORECASE)
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{one: f"\\{one}" for one in "{}$&#_%"},
}


def printable(text: str) -> str:
    """Spell a text for a terminal or a log: control characters but line ends and tabs as their pictures, ESC as ␛."""
    return text.translate(CONTROLS)


def line(text: str) -> str:
    """Spell a text as one line: `printable`, and every run of blanks and line ends as one blank."""
    return " ".join(printable(text).split())


def csv_cell(text: str) -> str:
    """Spell a text for a spreadsheet, which takes what begins like a formula for one: an apostrophe goes before it."""
    return f"'{text}" if text.startswith(FORMULA) and not NUMBER.fullmatch(text) else text


def markdown(text: str) -> str:
    """Spell a text within a line of Markdown, in a table too: no markup, no HTML, no link."""
    return MARKDOWN.sub(lambda found: "\\" + found[0], line(text))


def latex(text: str) -> str:
    """Spell a text within a line of LaTeX."""
    return "".join(LATEX.get(one, one) for one in line(text))
