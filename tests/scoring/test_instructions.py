"""Instructions found in questions: each kind kept and broken, and what is not an instruction is not found."""

import pytest

from sla_jax.scoring.instructions import found, kept

CASES = [
    ("Say it in at least 5 words.", "one two three four five", "one two"),
    ("Use fewer than three words, please.", "no", "one two three four"),
    ("Write about 10 words.", "a b c d e f g h i j k", "a b c"),
    ("Answer in one sentence.", "It rains.", "It rains. It pours."),
    ("Write exactly two paragraphs.", "First.\n\nSecond.", "Only one."),
    ("Give 300+ words.", "word " * 300, "word " * 299),
    ("Give me 3 bullet points.", "- a\n- b\n- c", "- a\n- b"),
    ("List five ideas.", "1. a\n2. b\n3. c\n4. d\n5. e", "1. a\n2. b"),
    ("Wrap the output in JSON format.", '```json\n{"a": 1}\n```', "{a: 1"),
    ("Your answer should be in all lowercase letters.", "quite so", "Quite so"),
    ("Write in all capital letters.", "QUITE SO", "Quite so"),
    ("Do not use any commas.", "one and two", "one, two"),
    ('End your answer with "Is there more?".', 'So it is. Is there more?"', "Is there more? No."),
    ("Wrap your entire response with double quotation marks.", '"So."', "So."),
    ("It needs a title, wrapped in double angular brackets, such as <<x>>.", "<<My day>>\nIt rained.", "My day"),
    ('Include the word "finale".', "The Finale came.", "The end came."),
    ('Do not use the word "sea".', "Water.", "The sea."),
    ("Answer in Russian.", "Да, конечно.", "Yes."),
]


@pytest.mark.parametrize(("question", "good", "bad"), CASES)
def test_each_kind_is_kept_and_broken(question: str, good: str, bad: str) -> None:
    assert found(question, good) == [True]
    assert found(question, bad) == [False]


@pytest.mark.parametrize(
    "question",
    [
        "What is the capital of France?",
        "In the first two sentences of the book there is a storm; why?",
        "How do commas work?",
        "Is JSON older than XML?",
        "Two people walk 3 ways.",
        "Who said that one should never use capital letters?",
    ],
)
def test_what_is_no_instruction_decides_nothing(question: str) -> None:
    assert found(question, "Paris, France.") == [] and kept(question, "Paris, France.") == 1.0


def test_the_share_that_is_kept() -> None:
    assert kept("Use at least 3 words and do not use any commas.", "one, two, three") == 0.5
