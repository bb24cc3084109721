"""What is a loop and what is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sla_jax.scoring.loops import LONGEST_UNIT, SHORTEST_TAIL, falls_into_loop

WORDS = st.lists(st.sampled_from("the sea is wide and old men sail on it by night under stars".split()), max_size=60)
UNIT = st.lists(st.text("abcdefgh", min_size=1, max_size=4), min_size=1, max_size=LONGEST_UNIT)
POEM = """The river runs, the river sings,
    oh carry me home again.
The night is full of little wings,
    oh carry me home again.
The moon lies down among the reeds,
    oh carry me home again.
And nobody knows where it leads."""
CODE = """def area(width, height):
    return width * height

def volume(width, height, depth):
    return area(width, height) * depth

print(area(2, 3))
print(volume(2, 3, 4))
"""
LOOPS = {
    "phrase": "The sea is blue and " * 8,
    "phrase behind a sound start": "Here is a poem. " + "the waves are high, " * 6,
    "one word": "very " * 12,
    "cut inside the unit": "It begins here: " + "a b c d e f g h i " * 3 + "a b c",
    "cut inside a word": "#DASH\n\n" * 20 + "#D",
    "numbered sentences": "1. The sea is the best place.\n2. The sea is the best place.\n3. The sea is the best place.",
    "sentence, then something else": "I am glad to help you. " * 3 + "What else may I do?",
    "a sentence that keeps coming back": "".join(f"Word {n} here. I am glad to help. " for n in "abcde"),
}
SOUND = {
    "empty": "",
    "short emphasis": "No, no, no!",
    "poem with a refrain": POEM,
    "list": "\n".join(f"{n}. Buy {what} at the market." for n, what in enumerate(("milk", "bread", "salt", "tea"), 1)),
    "code": CODE,
    "twice": "The sea is blue and wide. The sea is blue and wide.",
    "counting": " ".join(map(str, range(60))),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops(name: str) -> None:
    assert falls_into_loop(LOOPS[name])


@pytest.mark.parametrize("name", SOUND)
def test_no_loops(name: str) -> None:
    assert not falls_into_loop(SOUND[name])


@given(WORDS, UNIT)
def test_any_text_that_ends_in_a_loop_is_one(before: list[str], unit: list[str]) -> None:
    times = max(3, -(-SHORTEST_TAIL // len(unit)))
    assert falls_into_loop(" ".join([*before, *unit * times]))


@given(st.integers(1, LONGEST_UNIT), st.integers(0, 200))
def test_a_unit_said_less_than_three_times_is_no_loop(length: int, before: int) -> None:
    """All words differ within the unit and before it."""
    unit = [f"u{i}" for i in range(length)]
    said = [f"b{i}" for i in range(before)] + unit * 2 + unit[: length - 1]
    assert not falls_into_loop(" ".join(said))
