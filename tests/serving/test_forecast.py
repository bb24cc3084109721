"""What is foreseen of slots and answers, against their definitions: shares counted, slots handed over one by one."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sla_jax.serving.forecast import LATEST, ROUNDS, AnswerLength, Pace, Survival, seconds_to_slot

LONGER = math.pi / 10  # which no share of counts is
SECONDS = st.integers(0, 9).map(float)
LENGTHS = st.lists(st.builds(AnswerLength, st.integers(1, 12), st.booleans()), max_size=8)


def share(lengths: list[AnswerLength], tokens: int) -> Fraction:
    """Kaplan and Meier, token by token: of those that reach a token, how many go on beyond it."""
    longest = max((length.tokens for length in lengths), default=0)
    if tokens >= 2 * longest:
        return Fraction(0)
    found = Fraction(1)
    for token in range(1, min(tokens, longest) + 1):
        reach = [length for length in lengths if length.tokens >= token]
        end = [length for length in reach if length.tokens == token and length.ended]
        found *= 1 - Fraction(len(end), len(reach))
    return found


@settings(deadline=None)
@given(LENGTHS, st.integers(0, 26), st.integers(0, 26))
def test_survival_is_kaplan_and_meier_s(lengths, limit, said):
    found, here = Survival(lengths), share(lengths, said)
    assert found.share(said) == pytest.approx(float(here))
    if here:
        # every further token comes with the probability that the answer is longer than those before it
        to_come = sum(share(lengths, token) for token in range(said, limit)) / here
        assert found.mean(limit, said) == pytest.approx(float(to_come))
    else:
        assert found.mean(limit, said) == max(0, min(said, limit - said)), "half through"
    ends = [token for token in range(25) if share(lengths, token) <= LONGER]
    assert found.most(None, LONGER) == min(ends) and found.most(limit, LONGER) == min(limit, *ends)
    assert found.mean(None, 0) == pytest.approx(float(sum(share(lengths, token) for token in range(25))))


def test_answers_that_are_cut_are_longer_than_they_look():
    """Of four that were cut at 10 tokens nobody knows the end; the mean of what was seen would say 10 to all."""
    cut = [AnswerLength(10, False)] * 4
    ended = [AnswerLength(100, True)] * 4
    assert Survival([*cut, *ended]).mean() == 100
    assert Survival(cut).mean() == 20, "none was seen to its end"
    assert Survival([*cut, AnswerLength(5, True), AnswerLength(100, True)]).mean() == pytest.approx(
        5 / 6 * 100 + 1 / 6 * 5
    )


@settings(deadline=None)
@given(st.lists(SECONDS, max_size=4), st.lists(SECONDS, max_size=8), st.integers(0, 3))
def test_slots_are_foreseen_as_they_are_handed_over(busy, ahead, more):
    slots = max(1, len(busy) + more)
    free = sorted([*busy, *[0.0] * (slots - len(busy))])  # when each slot is free next
    for seconds in ahead:
        free = sorted([free[0] + seconds, *free[1:]])
    assert seconds_to_slot(busy, ahead, slots) == free[0]


def test_a_pace_is_that_of_the_latest():
    pace = Pace()
    assert pace.most(100, 0.0, 100) == pace.mean(100, 100) == pace.left(100, 0) == 0.0, "nothing was measured"
    pace.round(100.0, [0, 0])
    pace.answer(20, True)
    assert pace.mean() == 100.0, "a round that brought nothing says nothing of the time for a token"
    for _ in range(ROUNDS):
        pace.round(2.0, [6, 2])  # 4 tokens of each in 2 seconds
    for _ in range(LATEST):
        pace.prompt(3.0, 30)
    pace.answer(40, True)
    assert pace.mean(30) == 3.0 + 2.0 + (20 + 30) / 2 / 2, "the prompt, the round by which results are late, tokens"
    assert pace.mean(30, 10) == 1.0 + 2.0 + (20 + 30) / 2 / 2
    assert pace.most(None, 0.1) == 3.0 + 2.0 + 40 / 2
    assert pace.most(8, 0.1, 0) == 2.0 + 8 / 2 and pace.most(None, 0.5, 0) == 2.0 + 20 / 2
    assert pace.left(100, 20) == (40 - 20) / 2
    assert pace.left(100, 60) == (100 - 60) / 2


def test_the_best_pace_is_remembered_and_who_is_late_at_it_is_late_anyway():
    pace = Pace()
    assert pace.late_anyway(1.0, 100) == pace.late_anyway(1.0, None) == 0.0, "nothing was measured"
    for tokens in (10, 30, 50):
        pace.answer(tokens, True)
    for seconds in (1.0, 4.0):  # alone, and with others
        for _ in range(ROUNDS):
            pace.round(seconds, [2])
    assert [pace.late_anyway(10.0, limit) for limit in (None, 21, 20)] == [
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
        0.0,
    ]
    assert pace.late_anyway(25.0, None) == 0.0
    assert pace.most(None, 0.0) == 4.0 + 50 * 2
