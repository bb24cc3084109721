"""Diverse verifier tree search (public repo huggingface/search-and-learn): n/width greedy trees beside one another.

In each tree the best of `width` candidates goes on with `width` children; when the best one has ended, so has its tree.
A candidate that has ended and was not the best is an answer all the same: the best of all that have ended is the
answer, one at max_tokens only if none ended by itself. With n = width it is one tree, a step beam search that ends
with its best; with width 1 it is n independent samples, those of Best-of-N.
"""

import dataclasses
import re
from collections.abc import Sequence

from sla_jax.decode.step_search import Child, Leaf, StepOptions

BOX = "\\boxed{"
BRACES = re.compile(r"\\.|[{}]", re.DOTALL)  # a brace behind a backslash is text


@dataclasses.dataclass(frozen=True, kw_only=True)
class DVTS(StepOptions):
    """n/`width` trees, each of `width` candidates; `score` ranks unless a scorer is given."""

    boxed: bool = False
    r"""An answer is complete, too, with the step that completes \boxed{…}."""

    def branches(self, leaves: Sequence[Leaf]) -> list[Child]:
        """Who begins the next step; ties go to the earlier lane."""
        best: dict[int, Leaf] = {}
        for leaf in leaves:
            tree = leaf.lane // self.width
            if tree not in best or leaf.score > best[tree].score:
                best[tree] = leaf
        going = [(tree * self.width, leaf.lane) for tree, leaf in best.items() if not leaf.ended]
        return [Child(first + m, parent, m) for first, parent in going for m in range(self.width)]


def boxed(text: str) -> bool:
    r"""Whether there is a complete \boxed{…} in the text: its braces close."""
    for inside in text.split(BOX)[1:]:
        depth = 1
        for mark in BRACES.findall(inside):
            depth += {"{": 1, "}": -1}.get(mark, 0)
            if depth == 0:
                return True
    return False
