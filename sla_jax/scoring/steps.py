"""Answers in steps: where one ends, what the scores of all make, and the formats in which models read them."""

from sla_jax.decode.aggregate import AGGREGATES
from sla_jax.errors import UserError, nearest

SEPARATOR = "\n\n"
FORMATS = ("math_shepherd", "rlhflow", "skywork", "qwen", "head", "channel")


def split(text: str, separator: str) -> list[str]:
    """The steps of an answer, without separators; nothing but white space is no step. An empty answer is one step."""
    return [step for step in text.split(separator) if step.strip()] or [""]


def check_steps(format: str | None, aggregate: str | None, separator: str | None) -> None:
    """Raise UserError unless what is given exists."""
    for what, given, known in (("format of PRMs", format, FORMATS), ("aggregate", aggregate, tuple(AGGREGATES))):
        if given is not None and given not in known:
            raise UserError(f"there is no {what} {given!r}; known: {', '.join(known)}.{nearest(given, known)}")
    if separator == "":
        raise UserError("the separator is empty; give what stands between two steps, or leave it out.")
