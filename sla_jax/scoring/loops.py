"""Does an answer fall into a loop? The measure by which searches are compared; no scorer reads it.

Words are runs of letters and digits, without regard to case; punctuation does not count. An answer has fallen into a
loop if at least one of these is true:

- *its tail is periodic*: the last max(3·p, 12) words repeat with a period of p words, for some p from 1 to 40 (so a
  unit of up to 40 words stands there at least three times in a row, wherever the unit is taken to begin). The very
  last word, which the limit may have cut, may be left out;
- *a sentence comes back*: a sentence of at least 4 words stands three times in a row, or five times in all. Sentences
  end at . ! ? and at line breaks; those without a letter (list numbers) are not counted, and a list's bullets and
  numbers in front of one are not part of it.

A refrain that returns after other lines, a list whose items differ and a word said thrice for emphasis are no loops.
"""

import re
from collections import Counter
from itertools import groupby

LONGEST_UNIT = 40  # words
TIMES = 3  # a unit stands this often
SHORTEST_TAIL = 12  # words that a periodic tail covers at least
SENTENCE_WORDS = 4
TIMES_IN_ALL = 5
WORD = re.compile(r"[^\W_]+")
SENTENCE_END = re.compile(r"[.!?\n]+")
NUMBERING = re.compile(r"^[\W\d_]+")


def falls_into_loop(text: str) -> bool:
    """Whether the text ends in a loop or keeps saying one sentence, as defined above."""
    said = words(text)
    return _periodic_tail(said) or _periodic_tail(said[:-1]) or _sentence_returns(text)


def words(text: str) -> list[str]:
    """Runs of letters and digits, case folded."""
    return WORD.findall(text.casefold())


def _periodic_tail(said: list[str]) -> bool:
    for period in range(1, LONGEST_UNIT + 1):
        tail = said[-max(TIMES * period, SHORTEST_TAIL) :]
        if len(tail) < max(TIMES * period, SHORTEST_TAIL):
            return False
        if tail[period:] == tail[:-period]:
            return True
    return False


def _sentence_returns(text: str) -> bool:
    pieces = [NUMBERING.sub("", piece) for piece in SENTENCE_END.split(text.casefold())]
    said = [" ".join(words(piece)) for piece in pieces if piece]
    telling = [sentence for sentence in said if len(sentence.split()) >= SENTENCE_WORDS]
    in_a_row = max((len(list(run)) for sentence, run in groupby(said) if sentence in telling), default=0)
    return in_a_row >= TIMES or max(Counter(telling).values(), default=0) >= TIMES_IN_ALL
