"""Makes and checks the CRC-32 that a text of ours holds of itself, so that damage to it is seen when it is read.

A JSON object, whether a file or a line of one, has it as its last member, `"sla_jax_crc32": "1c291ca3"`; a YAML text
has it in its last line, a comment. It is taken of all the text in front of it. A text without one comes from somebody
else, or from an older release, and is taken as it is. Folders have their sums in a file: `checkpoint.staging`.

CRC-32 (zlib's) notices every flipped bit and every damaged run of up to 32 bits; it keeps nobody from deceiving.
"""

import re
import zlib
from collections.abc import Mapping
from typing import Any

NAME = "sla_jax_crc32"
MEMBER = re.compile(rf',\s*"{NAME}":\s*"(.{{8}})"\s*\}}\s*\Z')
TAIL = 100  # characters that hold a MEMBER, whatever its indentation here


def crc32(text: str) -> str:
    """Eight hexadecimal digits."""
    return f"{zlib.crc32(text.encode()):08x}"


def with_member(text: str) -> str:
    """A JSON object's text, which has a member already, with its sum as one more, on a line of its own if they are."""
    body = text.rstrip()
    assert body.startswith("{") and body.endswith("}"), "an object"
    inside = body[:-1].rstrip()
    first, last = re.match(r"\{(\s*)", body), body[len(inside) : -1]
    assert first is not None and inside != "{", "a member"
    return f'{inside},{first[1] or " "}"{NAME}": "{crc32(inside)}"{last}}}' + text[len(body) :]


def wrong_member(value: Mapping[str, Any], text: str) -> str | None:
    """What is wrong with the text of the object `value`: None if it is as its sum says, or has none."""
    last = next(reversed(value), "") if isinstance(value, dict) else ""
    if not _resembles(last, NAME) and NAME not in value:
        return None
    found = MEMBER.search(text[-TAIL:])
    if found is None:
        return f'it is damaged: {NAME} is not its last member, "{NAME}": and eight digits; {_way_out(NAME)}'
    return _compared(text[: len(text) - len(text[-TAIL:]) + found.start()], found[1])


def with_comment(text: str) -> str:
    """A YAML text with its sum in one more line."""
    return f"{text}# {NAME}: {crc32(text)}\n"


def wrong_comment(text: str) -> str | None:
    """What is wrong with a YAML text: None if it is as its sum says, or has none."""
    begin, end = f"\n# {NAME}: ", "\n"
    last = text[-len(begin) - 8 - len(end) :]
    fixed, digits = last[: len(begin)] + last[-len(end) :], last[len(begin) : -len(end)]
    if not _resembles(fixed, begin + end):
        return None
    if fixed != begin + end:
        return f"it is damaged: its last line is not {begin.strip()!r} and eight digits; {_way_out('that line')}"
    return _compared(text[: -len(last) + 1], digits)


def _compared(body: str, digits: str) -> str | None:
    found = crc32(body)
    if found == digits:
        return None
    return f"it is damaged: its CRC-32 is {found}, and was {digits} when it was written; {_way_out(NAME)}"


def _way_out(what: str) -> str:
    return f"take it from a copy or have it made anew, or remove {what} from it if you changed it yourself"


def _resembles(text: str, other: str) -> bool:
    """Whether at most one character differs, as it does after one bit has flipped."""
    return len(text) == len(other) and sum(a != b for a, b in zip(text, other, strict=True)) <= 1
