r"""Reads the final answer that a text marks as such, and what a reference says: one rule for every judge and scorer.

A text marks its answer by `\boxed{…}` or by GSM8K's `#### NUMBER`; the last mark counts, a box before a number, and
what stands behind it is talk. A heading (`#### Step 2`) is no mark. A reference is the answer that it marks, or all of
it: LaTeX (`\$18.90`, `\frac12`, `5 \text{ cm}`) or plain (`$36`, `1,000`), bare or in `$`, `\(`, `\[` or `**`.
Signs of money, and what LaTeX writes between the digits of long numbers, are not part of the mathematics.
"""

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?|-?\.\d+")
SAID = r"(?:(?:the )?(?:final )?answer(?: is)?|[a-z](?= ?=))"  # "#### Answer: 5", "#### x = 5"
MARK = re.compile(rf"####[ \t]*+{SAID}?[ \t$€£¥₹\\(*=:+~≈]*?({NUMBER.pattern})", re.IGNORECASE)
JOINT = re.compile(r"[\s$]*(?:,|,?\s*(?:and|or)\b)[\s$]*")
BOX = re.compile(r"\\f?box(?:ed)?\s*\{")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped one is a character like any other
WORD = re.compile(r"\banswer(?: is|:)[ \t*]*\(?([A-Za-z]+)\)?[ \t*.]*$", re.IGNORECASE | re.MULTILINE)
MONEY = re.compile(r"\\\$|[€£¥₹]|(?<![^-\s])\$(?=[\d.][^$]*$)")  # a lone $ before a number begins no formula
THOUSANDS = re.compile(r"(?<=\d)(?:,\\!|\{,\}|\\[,!])(?=\d{3}(?!\d))")
WRAPPED = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (r"\$\$([^$]+)\$\$", r"\$((?:[^$\\]|\\.)+)\$", r"\\\((.+)\\\)", r"\\\[(.+)\\\]", r"\*\*([^*]+)\*\*")
)


def marked(text: str) -> str | None:
    r"""What stands in a text's last `\boxed{…}`, else the number of its last `#### NUMBER`; None without a mark."""
    boxes = list(_boxes(text))
    if not boxes:
        numbers = MARK.findall(_spelled(text))
        return numbers[-1] if numbers else None
    found = [boxes[-1].inside]
    for before, behind in reversed(list(itertools.pairwise(boxes))):
        if not JOINT.fullmatch(text, before.end, behind.begin):
            break
        found.insert(0, before.inside)
    return ", ".join(found)


def marked_word(text: str) -> str | None:
    """The word or letter that a line ends with as the answer: "The answer is (C)."; None without one."""
    words = WORD.findall(text)
    return words[-1] if words else None


def reference_answer(text: str) -> str:
    """What a reference says, as LaTeX without delimiters."""
    found = marked(text)
    return plain(_unwrapped(text.strip()) if found is None else found)


def plain(text: str) -> str:
    r"""A text without what is written around numbers: `\$32,\!348` is 32,348."""
    return MONEY.sub("", _spelled(text)).strip()


def _spelled(text: str) -> str:
    """A text with its numbers as NUMBER has them: `32{,}348` is 32,348 and `−5` is -5."""
    return THOUSANDS.sub(",", text).replace("−", "-")


def _unwrapped(text: str) -> str:
    while found := next(filter(None, (pattern.fullmatch(text) for pattern in WRAPPED)), None):
        text = found[1].strip()
    return text


class _Box(NamedTuple):
    begin: int
    inside: str
    end: int


def _boxes(text: str) -> Iterator[_Box]:
    """Every box that is closed and has something in it, and where it is; in one pass, however many are open."""
    begins = {box.end() - 1: box.start() for box in BOX.finditer(text)}  # by the place of the brace
    opened, found = list[int](), list[_Box]()
    for brace in BRACE.finditer(text) if begins else ():
        if brace[0] == "{":
            opened.append(brace.start())
        elif brace[0] == "}" and opened:
            place = opened.pop()
            if place in begins and (inside := text[place + 1 : brace.start()].strip()):
                found.append(_Box(begins[place], inside, brace.end()))
    return iter(sorted(found))
