"""Step beam search (public repo huggingface/search-and-learn): the best unfinished answers go on, a step at a time.

Of n candidates, those that have ended leave with their score. The n/width best of the others go on, and each gets as
many children as makes n again, the best ones first. After `max_steps` steps, of which the last runs to its end, or when
all have ended, the best of all that have ended is the answer: one at max_tokens only if none ended by itself.

With width 1 nothing branches, and there is nothing to fill up: n independent samples, those of Best-of-N.
"""

import dataclasses
from collections.abc import Sequence

from sla_jax.decode.measures import Terms, terms
from sla_jax.decode.step_search import MAX_STEPS, SEPARATOR, Child, Leaf, check_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepBeam:
    """`n` candidates, of which n/`width` go on after each step; `score` ranks unless a scorer is given."""

    n: int = 8
    width: int = 4
    """Next steps sampled of each that goes on."""
    lookahead: int = 0
    """Greedy steps beyond a step that it is scored with."""
    aggregate: str = "last"
    """What the scores of an answer's steps make: last, min, mean, or prod, if a scorer gives probabilities."""
    separator: str = SEPARATOR
    """What ends a step."""
    max_steps: int = MAX_STEPS
    """The last one runs to its end."""
    filter_duplicates: bool = False
    """Of candidates with the same tokens only the first goes on."""
    chunk: int = 32
    """Tokens between two reports of progress; it changes no answer."""
    score: str = "reward_last"
    """What a step's score is: a measure of its tokens."""

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("n", "width", "chunk", "lookahead", "max_steps", "score")}
        check_steps(**given, aggregate=self.aggregate, separator=self.separator)

    boxed = False

    @property
    def terms(self) -> Terms:
        """What `score` says."""
        return terms(self.score)

    def branches(self, leaves: Sequence[Leaf]) -> list[Child]:
        """Who begins the next step; ties go to the earlier lane."""
        going = [leaf for leaf in leaves if not leaf.ended]
        if self.filter_duplicates:
            going = list({leaf.tokens: leaf for leaf in reversed(going)}.values())
        best = sorted(going, key=lambda leaf: (-leaf.score, leaf.lane))[: self.n // self.width]
        lanes = len(best) if self.width == 1 or not best else self.n
        return [Child(lane, best[lane % len(best)].lane, lane // len(best)) for lane in range(lanes)]
