"""A stated rule that needs no model: five parts in [0, 1], each a pure function, summed by `WEIGHTS`.

    repetition    0.35   nothing is said again and again
    topic         0.25   it takes up the question's words, to its end, and does not copy the question
    finishing     0.15   the answer ends by itself, with a whole sentence
    instructions  0.15   what the question asks for and can be checked is there (see `instructions.py`)
    sanity        0.10   it is text: words of the question's script, neither empty nor garbage

The rule knows nothing of truth or style. It says what a small model most often does wrong, and an answer that it likes
may be bad for other reasons.
"""

import re
import unicodedata
import zlib
from collections.abc import Sequence

from sla_jax.scoring.candidate import Candidate, Score
from sla_jax.scoring.instructions import SCRIPTS, kept, script

WEIGHTS = {"repetition": 0.35, "topic": 0.25, "finishing": 0.15, "instructions": 0.15, "sanity": 0.10}
WORD = re.compile(r"[^\W_]+")
# ends of a sentence, a quotation, a list in brackets, a code block, a table row
CLOSING = (".", "!", "?", "…", "。", "！", "？", '"', "”", "'", ")", "]", "}", "`", "*", "|", ";", ">")
SMALL_WORDS = frozenset(
    "a about above after again all also am an and any are as at be because been before being below between both but by "
    "can could did do does doing down during each few for from further give had has have having he her here hers him "
    "his how i if in into is it its just like make me more most must my no nor not now of off on once only or other "
    "our out over own please same she should so some such tell than that the their them then there these they this "
    "those through to too under until up use using very want was we were what when where which while who whom why "
    "will with would write you your answer response question".split()
)


class RuleScorer:
    """The rule as a scorer."""

    name = "rules"

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Weighted sums in [0, 1]."""
        return [score.total for score in self.detailed(candidates)]

    def detailed(self, candidates: Sequence[Candidate]) -> list[Score]:
        """With the five parts."""
        return [_score(candidate) for candidate in candidates]


def _score(candidate: Candidate) -> Score:
    question, text = candidate.question, candidate.text
    parts = {
        "repetition": repetition(text),
        "topic": topic(question, text),
        "finishing": finishing(text, finished=candidate.finished),
        "instructions": kept(question, text),
        "sanity": sanity(question, text),
    }
    return Score(sum(WEIGHTS[name] * value for name, value in parts.items()), parts)


def repetition(text: str) -> float:
    """1 if nothing is said twice, near 0 in a loop: the smaller of two views.

    The share of different word 4-grams among all of them, squared: where half is said again, a quarter is left. And
    what zlib leaves of the text, which sees repeated signs and scripts without spaces too: 0 at 0.15, 1 from 0.45 on
    (English of this length keeps half of its bytes, a loop a tenth); texts below 200 bytes do not shrink and have 1.
    """
    grams = _grams(_words(text), 4)
    different = len(set(grams)) / len(grams) if grams else 1.0
    raw = text.encode()
    shrunk = len(zlib.compress(raw, 9)) / len(raw) if len(raw) >= 200 else 1.0
    return min(different**2, _ramp(shrunk, 0.15, 0.45))


def finishing(text: str, *, finished: bool) -> float:
    """1: ended by itself after a whole sentence; 0.6: ended by itself; 0.3: cut, but after a whole sentence; else 0."""
    whole = text.rstrip().endswith(CLOSING)
    return (0.6 if finished else 0.0) + (0.4 if finished else 0.3) * whole


def topic(question: str, text: str) -> float:
    """How many of the question's content words come up, less what is copied from it.

    The mean of two shares: in the whole answer 6 of them are asked for, in its second half 3, so that an answer that
    begins well and drifts away has half; fewer if the question has fewer. Words count by their first 5 letters, so
    that "cooking" meets "cooked". Copying is the share of the answer's word 5-grams that stand in the question: up to
    0.2 it costs nothing, from 0.8 on everything.
    """
    asked = {word[:5] for word in _words(question) if word not in SMALL_WORDS and len(word) > 2}
    said = [word[:5] for word in _words(text)]
    overlap = (_share(asked, said, 6) + _share(asked, said[len(said) // 2 :], 3)) / 2
    grams, given = _grams(_words(text), 5), set(_grams(_words(question), 5))
    copied = sum(gram in given for gram in grams) / len(grams) if grams else 0.0
    return overlap * (1 - _ramp(copied, 0.2, 0.8))


def _share(asked: set[str], said: Sequence[str], enough: int) -> float:
    return min(1.0, len(asked.intersection(said)) / min(len(asked), enough)) if asked else 1.0


def sanity(question: str, text: str) -> float:
    """The product of: readable characters (0 at a half, 1 from 0.9 on), words of at most 20 letters, the question's
    script, and words up to 8; an undecodable character is 0."""
    visible = [sign for sign in text if not sign.isspace()]
    if not visible or "\N{REPLACEMENT CHARACTER}" in text:
        return 0.0
    readable = sum(sign.isalnum() or unicodedata.category(sign)[0] in "PM" for sign in visible) / len(visible)
    said = _words(text)
    usual = sum(len(word) <= 20 for word in said) / len(said) if said else 0.0
    return _ramp(readable, 0.5, 0.9) * usual * _same_script(question, text) * min(1.0, len(said) / 8)


def _same_script(question: str, text: str) -> float:
    """The share of letters in scripts that the question uses, or that belong to a language it names."""
    letters = [script(sign) for sign in text if sign.isalpha()]
    used = {script(sign) for sign in question if sign.isalpha()}
    used |= {SCRIPTS[word] for word in _words(question) if word in SCRIPTS}
    return sum(one in used for one in letters) / len(letters) if letters and used else 1.0


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _ramp(value: float, low: float, high: float) -> float:
    """0 at low, 1 at high, straight between."""
    return min(1.0, max(0.0, (value - low) / (high - low)))
