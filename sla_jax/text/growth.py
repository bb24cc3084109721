"""How much longer a tokenizer can make a text: a few replacements by long texts, one after the other, fill any memory.

A tokenizer.json is a stranger's. Its steps are data and run no code, but `a` → `aaaaaaaaaa`, ten times over, makes ten
thousand million letters of one. Added tokens are normalized while the file is loaded, so that it is looked at before.
"""

import base64
import binascii
import math
from collections.abc import Iterator, Mapping
from typing import Any

from sla_jax.errors import UserError

MOST = 32  # bytes that may stand for one; Llama 2's ▁ for a space are three, normal form KC up to 18
LONGEST = 1000  # bytes of a fixed text that is put before, behind or between
LISTS = ("normalizers", "decoders", "processors")  # of the steps that a Sequence is
FIXED = ("prepend", "continuing_subword_prefix", "end_of_word_suffix", "prefix", "suffix")


def check_growth(described: Mapping[str, Any], where: str) -> None:
    """Raise UserError for a tokenizer.json by which a text can become more than `MOST` times as long."""
    for name in ("normalizer", "decoder"):
        growth = math.prod(_growth(step) for step in _steps(described.get(name)))
        if growth > MOST:
            raise UserError(
                f"{where}: its {name} can make a text {growth:.3g} times as long; tokenizers that make it up to {MOST} "
                "times as long are read. Is the file the model's own?"
            )
    for name in ("normalizer", "decoder", "post_processor", "model"):
        for step in _steps(described.get(name)):
            said = [step[field] for field in FIXED if isinstance(step.get(field), str)]
            pieces = [step[field] for field in ("single", "pair") if isinstance(step.get(field), list)]
            if any(len(part) > LONGEST for part in (*said, *pieces)):
                raise UserError(f"{where}: its {name} adds more than {LONGEST} characters or tokens to a text.")


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a part of tokenizer.json, those of its Sequences one by one; `read_object` bounds how deep it is."""
    if not isinstance(part, Mapping):
        return
    inner = [step for name in LISTS if isinstance(part.get(name), list) for step in part[name]]
    if not inner:
        yield part
    for step in inner:
        yield from _steps(step)


def _growth(step: Mapping[str, Any]) -> float:
    """How many bytes a step may write for one; 1 of a step that is not known to write more."""
    if step.get("type") == "Replace" and isinstance(step.get("content"), str):
        content, pattern = len(step["content"].encode("utf-8", "surrogatepass")), step.get("pattern")
        if isinstance(pattern, Mapping) and isinstance(pattern.get("String"), str):
            return max(1.0, content / max(1, len(pattern["String"].encode("utf-8", "surrogatepass"))))
        return 1.0 + content  # an expression can match between any two letters
    if step.get("type") == "Precompiled" and isinstance(step.get("precompiled_charsmap"), str):
        return max(1.0, float(_longest(step["precompiled_charsmap"])))
    return 1.0


def _longest(charsmap: str) -> int:
    """The longest replacement of SentencePiece's table: the size of an index, the index, texts that end with 0."""
    try:
        raw = base64.b64decode(charsmap)
    except (binascii.Error, ValueError):
        return 1  # the tokenizer's own reader says what is wrong
    texts = raw[4 + int.from_bytes(raw[:4], "little") :]
    return max(map(len, texts.split(b"\0")), default=1)
