"""The stated rule: each part on text that has it and text that has not, and the order that the sum makes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sla_jax.scoring.candidate import Candidate, Detailed, Scorer
from sla_jax.scoring.rules import WEIGHTS, RuleScorer, finishing, repetition, sanity, topic

QUESTION = "How do I clean a cast-iron pan after cooking?"
GOOD = (
    "Wipe the cast-iron pan while it is warm, rinse it with hot water and a soft brush, and dry it at once on the "
    "stove. Then rub a thin film of oil over the iron so that it does not rust. Avoid soaking the pan: water is what "
    "spoils it after cooking."
)
LOOP = "Clean the cast-iron pan after cooking. " * 12


def candidate(text: str, *, finished: bool = True, question: str = QUESTION) -> Candidate:
    return Candidate([{"role": "user", "content": question}], text, [], finished)


def test_repetition_falls_with_every_repetition() -> None:
    values = [repetition(GOOD), repetition(GOOD * 2), repetition(GOOD * 4), repetition("the sea " * 60)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.95 and values[1] < 0.4 and values[-1] < 0.01
    assert repetition("哈" * 100) < 0.1, "one sign, no spaces: no 4-grams, but it shrinks"


def test_finishing() -> None:
    cases = [("Done.", True), ("Done", True), ("Cut but whole.", False), ("Cut in the", False)]
    assert [finishing(text, finished=finished) for text, finished in cases] == [1.0, 0.6, 0.3, 0.0]


def test_topic_wants_the_questions_words_to_the_end_and_not_the_question() -> None:
    drifting = GOOD[:110] + " Yesterday we went to the theatre and saw a play about two kings and their many daughters."
    assert topic(QUESTION, GOOD) > 0.85
    assert topic(QUESTION, drifting) < 0.7
    assert topic(QUESTION, "I like trains.") == 0.0
    assert topic(QUESTION, f"{QUESTION} {QUESTION}") < 0.2
    assert topic("Why?", "Because.") == 1.0, "a question without content words asks for none"


def test_sanity() -> None:
    assert sanity(QUESTION, GOOD) == 1.0
    assert sanity(QUESTION, "") == sanity(QUESTION, GOOD + "\ufffd") == 0.0
    assert sanity(QUESTION, "Yes.") == 1 / 8
    assert sanity(QUESTION, "x" * 200) == 0.0
    assert sanity(QUESTION, "🎉🎊✨" * 20 + " hello there my good old friend of mine") < 0.1
    russian = "Вымойте сковороду горячей водой и сразу же высушите её"
    assert sanity(QUESTION, russian) == 0.0
    assert sanity(QUESTION + " Answer in Russian.", russian) == 1.0


def test_the_sum_puts_a_good_answer_before_a_loop_before_nothing() -> None:
    scorer = RuleScorer()
    assert isinstance(scorer, Scorer) and isinstance(scorer, Detailed)
    scores = scorer.score([candidate(GOOD), candidate(LOOP, finished=False), candidate("", finished=False)])
    assert scores[0] > 0.95 and scores[0] > scores[1] > scores[2]
    (detailed,) = scorer.detailed([candidate(GOOD)])
    assert detailed.total == pytest.approx(sum(WEIGHTS[name] * value for name, value in detailed.parts.items()))
    assert sum(WEIGHTS.values()) == pytest.approx(1.0)


@given(st.text(max_size=300), st.text(max_size=300), st.booleans())
def test_every_part_of_any_text_is_between_zero_and_one(question: str, text: str, finished: bool) -> None:
    (score,) = RuleScorer().detailed([candidate(text, finished=finished, question=question)])
    assert all(0.0 <= value <= 1.0 for value in (score.total, *score.parts.values())), score
