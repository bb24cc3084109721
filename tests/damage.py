"""What happens to files: a bit flips, or somebody edits them."""

import re
from pathlib import Path

from sla_jax import sums
from sla_jax.checkpoint.staging import SUMS

MEMBER = re.compile(rf',\s*"{sums.NAME}": "\w{{8}}"')


def flip(path: Path, place: int | None = None) -> None:
    """Change one bit of a file, in the middle unless told where."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 if place is None else place] ^= 16
    path.write_bytes(raw)


def edit(folder: Path, name: str, text: str) -> None:
    """Write a file of a folder of ours, as its user does: its line in the list of sums goes."""
    (folder / name).write_text(text, encoding="utf-8")
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not line.endswith(f"  {name}\n")]
    (folder / SUMS).write_text("".join(kept), encoding="utf-8")


def unsummed(text: str) -> str:
    """JSON as others write it, and who edits a line of ours has to: without its sums."""
    return MEMBER.sub("", text)
