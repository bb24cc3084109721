"""One answer out of n: naive, weighted and majority @k, and pass@k, by the formulas of search-and-learn.

Candidates come as numbers of their classes of equivalent answers: equal number, equal answer. The first k candidates
are what "@k" sees. Ties go to what came first: the first of the best scores, the class seen first.
Weighted voting adds scores up, so it means something for scores that are not negative (a PRM's probabilities).
"""

from collections.abc import Callable, Sequence

import numpy as np


def classes(answers: Sequence[str], same: Callable[[str, str], bool]) -> list[int]:
    """Numbers of classes in the order in which they are first seen; an answer joins the first class that it equals.

    `same` is asked about the class's first answer only.
    """
    heads: list[str] = []
    found = []
    for answer in answers:
        number = next((i for i, head in enumerate(heads) if head == answer or same(head, answer)), len(heads))
        if number == len(heads):
            heads.append(answer)
        found.append(number)
    return found


def naive(groups: Sequence[int], scores: Sequence[float]) -> int:
    """The class of the candidate that scores best."""
    return groups[int(np.argmax(scores))]


def weighted(groups: Sequence[int], scores: Sequence[float]) -> int:
    """The class whose scores add up to most."""
    sums: dict[int, float] = {}
    for group, score in zip(groups, scores, strict=True):
        sums[group] = sums.get(group, 0.0) + score
    return max(sums, key=lambda group: sums[group])


def majority(groups: Sequence[int], scores: Sequence[float]) -> int:
    """The class with most candidates; scores do not count."""
    return weighted(groups, [1.0] * len(groups))


VOTES: dict[str, Callable[[Sequence[int], Sequence[float]], int]] = {
    "naive": naive,
    "weighted": weighted,
    "majority": majority,
}


def pass_at_k(n: int, right: int, k: int) -> float:
    """1 − C(n−c, k) / C(n, k): the unbiased estimate of P(one of k is right) from n candidates of which c are."""
    assert 0 <= right <= n and 1 <= k <= n, f"pass@{k} of {right} right ones among {n}"
    if n - right < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - right + 1, n + 1)))


def powers(n: int) -> list[int]:
    """1, 2, 4, … up to n."""
    return [2**i for i in range(n.bit_length())] if n else []
