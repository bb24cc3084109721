"""What happens to files: a bit flips, or somebody edits them."""

import re
from pathlib import Path

from sla_jax import sums

MEMBER = re.compile(rf',\s*"{sums.NAME}": "\w{{8}}"')


def flip(path: Path, place: int | None = None) -> None:
    """Change one bit of a file, in the middle unless told where."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 if place is None else place] ^= 16
    path.write_bytes(raw)


def unsummed(text: str) -> str:
    """JSON as others write it, and who edits a line of ours has to: without its sums."""
    return MEMBER.sub("", text)
