"""What a text marks as its answer, and what a reference says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sla_jax.scoring.final import marked, marked_word, plain, reference_answer
from sla_jax.scoring.verifier import last_number

TALK = st.text("abc 0123456789.,;\n+=", max_size=30)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (r"So $\boxed{\frac{1}{2}}$, not 3.", r"\frac{1}{2}"),
        (r"\boxed{1}, no: \fbox{2}", "2"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        (r"\boxed{\{} 5", r"\{"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{} or \boxed{42", None),
        (r"\boxed{7} #### 8", "7"),
        (r"\boxed{\boxed{7}} \boxed{ }", "7"),
        (r"It is $\boxed{5}$. So $\boxed{6}$, and $\boxed{7}$", "6, 7"),
        (r"\boxed{6}, \boxed{7} or \boxed{8}.", "6, 7, 8"),
        ("#### Answer: 5 of 7", "5"),
        ("#### The answer is $5 of 7", "5"),
        ("#### x = 12 dollars in 4 days", "12"),
        ("#### −20 for 3", "-20"),
        ("#### +20 for 3", "20"),
        (r"#### 1{,}234{,}567 for 3", "1,234,567"),
        ("#### A 5 or 6", None),
        ("#### 42 dollars, in 3 days", "42"),
        ("#### $1,234.50\nas 5 and 6", "1,234.50"),
        ("#### -3", "-3"),
        (r"#### **\(7\)**", "7"),
        ("#### 1\n#### 2 #### 3", "3"),
        ("#### Step 2: the sum\n5 + 5", None),
        ("####\n5", None),
        ("12", None),
    ],
)
def test_what_is_marked(text: str, wanted: str | None) -> None:
    assert marked(text) == wanted


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("The answer is (C).", "C"),
        ("Answer: **B**\nbecause", "B"),
        ("the answer is Evelyn", "Evelyn"),
        ("The answer is not known to me.", None),
        ("The answer is 5.", None),
    ],
)
def test_a_word_as_the_answer(text: str, word: str | None) -> None:
    assert marked_word(text) == word


@pytest.mark.parametrize(
    ("reference", "wanted"),
    [
        (r"\$18.90", "18.90"),
        ("$18.90", "18.90"),
        ("-$5", "-5"),
        (r"\$32,\!348", "32,348"),
        (r"1\,000{,}000", "1,000,000"),
        ("$$ x+1 $$", "x+1"),
        (r"$\text{cost: } \$5$", r"\text{cost: } 5"),
        (r"**\[\frac12\]**", r"\frac12"),
        ("2 + 2 = 4\n#### 4 apples", "4"),
        (r"(1,\!2)", r"(1,\!2)"),
        ("x^2", "x^2"),
    ],
)
def test_what_a_reference_says(reference: str, wanted: str) -> None:
    assert reference_answer(reference) == wanted


@given(
    st.integers(-(10**9), 10**9),
    TALK,
    TALK,
    st.sampled_from(["#### {}", "#### ${}", r"\boxed{{{}}}", r"\boxed{{\${}}}"]),
)
def test_talk_before_and_behind_a_marked_number_is_nothing(number: int, before: str, behind: str, mark: str) -> None:
    text = f"{before}\n{mark.format(f'{number:,}')}\n{behind}"
    assert last_number(text) == number


@given(st.text(max_size=40))
def test_any_text_can_be_read(text: str) -> None:
    assert isinstance(reference_answer(text), str) and "\\$" not in plain(text)
    assert (marked(rf"\boxed{{{text}}}") is None) <= (not text.strip() or "\\" in text or "{" in text or "}" in text)
