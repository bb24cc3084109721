"""Where a step ends: a table over the vocabulary, made once a tokenizer, that finds a separator while tokens come.

A separator may stand inside one token or be spread over several. Row s of the table says what a token makes of a text
whose end holds the first s bytes of the separator: how many bytes its end holds then, or the separator's length: it
was in there. Bytes and not characters are matched, so that tokens that split a character are no exception.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from sla_jax.errors import UserError

MAX_BYTES = 64


def separator_table(pieces: Sequence[bytes], separator: bytes) -> UInt8[np.ndarray, "S V"]:
    """`pieces` are the bytes of every token id; b"" (special tokens) keeps halves of a separator apart."""
    if not 1 <= len(separator) <= MAX_BYTES:
        what = "empty" if not separator else f"{len(separator)} bytes long"
        raise UserError(f"the separator is {what}; it has to have 1 to {MAX_BYTES} bytes, such as {chr(10) * 2!r}.")
    beginnings = [separator[:n] for n in range(len(separator))]
    found = [[_after(start, piece, separator) if piece else 0 for piece in pieces] for start in beginnings]
    return np.array(found, np.uint8)


def _after(start: bytes, piece: bytes, separator: bytes) -> int:
    """Bytes of the separator that `start` + `piece` ends with; all of them if it holds the separator anywhere."""
    text = start + piece
    if separator in text:
        return len(separator)
    return next(n for n in range(min(len(separator) - 1, len(text)), -1, -1) if text.endswith(separator[:n]))
