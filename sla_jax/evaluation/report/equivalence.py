"""Whether two answers are the same mathematics, by math-verify, which gives up on each after a few seconds.

What cannot be read in time, or at all, equals nothing but the same text. math-verify counts its seconds by a signal, so
this works in the main thread only.
"""

from typing import Any

from sla_jax.errors import UserError


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
        """The final answer of a text as math-verify finds it (what is boxed, else the last expression); "" if none."""
        if text not in self._texts:
            parsed = self._library.parse(text, parsing_timeout=self._timeout)
            self._texts[text] = self._kept(str(parsed[-1]), parsed) if parsed else ""
        return self._texts[text]

    def reference(self, text: str) -> str:
        """The same for a reference in LaTeX; of GSM8K's solutions the number behind "#### "."""
        _, found, number = text.rpartition("####")
        plain = number.replace(",", "").strip() if found else text.strip()
        marked = plain if "$" in plain or "\\boxed" in plain else f"${plain}$"
        return self._kept(plain, self._library.parse(marked, parsing_timeout=self._timeout) or [plain])

    def same(self, gold: str, answer: str) -> bool:
        """Whether a final answer equals another one, or a reference; no answer ("") equals nothing."""
        if not gold or not answer:
            return False
        if (gold, answer) not in self._same:
            sides = self._parsed[gold], self._parsed[answer]
            self._same[gold, answer] = self._library.verify(*sides, timeout_seconds=self._timeout)
        return self._same[gold, answer]

    def _kept(self, name: str, parsed: list[Any]) -> str:
        self._parsed.setdefault(name, parsed)
        return name
