"""Step beam search (public repo huggingface/search-and-learn): the best unfinished answers go on, a step at a time.

Of n candidates, those that have ended leave with their score. The n/width best of the others go on, and each gets as
many children as makes n again, the best ones first. After `max_steps` steps, of which the last runs to its end, or when
all have ended, the best of all that have ended is the answer: one at max_tokens only if none ended by itself.

With width 1 nothing branches, and there is nothing to fill up: n independent samples, those of Best-of-N.
"""

import dataclasses
from collections.abc import Sequence

from sla_jax.decode.step_search import Child, Leaf, StepOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepBeam(StepOptions):
    """`n` candidates, of which n/`width` go on after each step; `score` ranks unless a scorer is given."""

    filter_duplicates: bool = False
    """Of candidates with the same tokens only the first goes on."""

    def branches(self, leaves: Sequence[Leaf]) -> list[Child]:
        """Who begins the next step; ties go to the earlier lane."""
        going = [leaf for leaf in leaves if not leaf.ended]
        if self.filter_duplicates:
            going = list({leaf.tokens: leaf for leaf in reversed(going)}.values())
        best = sorted(going, key=lambda leaf: (-leaf.score, leaf.lane))[: self.n // self.width]
        lanes = len(best) if self.width == 1 or not best else self.n
        return [Child(lane, best[lane % len(best)].lane, lane // len(best)) for lane in range(lanes)]
