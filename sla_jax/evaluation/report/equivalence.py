"""Whether two answers are the same mathematics, by math-verify, which gives up on each after a few seconds.

What cannot be read in time, or at all, equals nothing but the same text. math-verify counts its seconds by a signal, so
this works in the main thread only.
"""

from typing import Any

from sla_jax.errors import UserError
from sla_jax.scoring.final import marked, marked_word, plain, reference_answer


class Equivalence:
    """Reads final answers out of texts and compares them. Remembers what it has read and compared."""

    def __init__(self, timeout: int = 5):
        try:
            import math_verify
        except ModuleNotFoundError:
            raise UserError(
                "comparing answers as mathematics takes math-verify: pip install 'sla-jax[eval]'."
            ) from None
        self._library, self._timeout = math_verify, timeout
        self._texts: dict[str, str] = {}
        self._parsed: dict[str, list[Any]] = {}
        self._same: dict[tuple[str, str], bool] = {}

    def final(self, text: str) -> str:
        """The final answer of a text: what it marks as that (`scoring.final`), else the last expression; "" if none."""
        if text not in self._texts:
            said = marked(text) or marked_word(text)
            parsed = (self._read(_boxed(said)) if said else []) or self._read(plain(text))
            self._texts[text] = self._kept(str(parsed[-1]), parsed) if parsed else ""
        return self._texts[text]

    def reference(self, text: str) -> str:
        """What a reference says (`scoring.final`); of prose with formulas in it, its final answer."""
        answer = reference_answer(text)
        prose = self.final(text) if "$" in answer else ""
        return prose or self._kept(answer, self._read(_boxed(answer)) or [answer])

    def same(self, gold: str, answer: str) -> bool:
        """Whether a final answer equals another one, or a reference; no answer ("") equals nothing."""
        if not gold or not answer:
            return False
        if (gold, answer) not in self._same:
            sides = self._parsed[gold], self._parsed[answer]
            self._same[gold, answer] = self._library.verify(*sides, timeout_seconds=self._timeout)
        return self._same[gold, answer]

    def _read(self, text: str) -> list[Any]:
        return list(self._library.parse(text, parsing_timeout=self._timeout))

    def _kept(self, name: str, parsed: list[Any]) -> str:
        self._parsed.setdefault(name, parsed)
        return name


def _boxed(answer: str) -> str:
    """An answer as math-verify takes it for one, whatever stands in it."""
    return f"$\\boxed{{{plain(answer)}}}$"
