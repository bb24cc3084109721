"""Every layout of a row that is read, and what its hashes promise."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sla_jax.training.rows import (
    BadRow,
    Pair,
    Row,
    Steps,
    Talk,
    held_out,
    limit_number,
    parse_row,
    prompt_number,
    prompt_of,
)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be kind."}
ASK = [user("hello there")]
TURNS = [SYSTEM, user("hello there"), assistant("hi"), user("and now?")]
GOOD, BAD = "good answer", "bad answer"
ANSWERS = {"chosen": GOOD, "rejected": BAD}
LISTS = {"chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]}
ULTRA = {"chosen": [*ASK, assistant(GOOD)], "rejected": [*ASK, assistant(BAD)]}
HUMAN = "\n\nHuman: hello there\n\nAssistant: hi\n\nHuman: and now?\n\nAssistant:"

FORMULAS = {"chosen": "A: 1", "rejected": "2"}
PAIRS = [
    # our own, and TRL explicit standard
    ({"prompt": "hello there", **ANSWERS}, Pair(ASK, GOOD, BAD)),
    ({"messages": TURNS, **ANSWERS}, Pair(TURNS, GOOD, BAD)),
    ({"prompt": TURNS, **ANSWERS}, Pair(TURNS, GOOD, BAD)),
    # TRL explicit conversational
    ({"prompt": TURNS, **LISTS}, Pair(TURNS, GOOD, BAD)),
    ({"prompt": "hello there", **LISTS}, Pair(ASK, GOOD, BAD)),
    # TRL implicit conversational
    ({"chosen": [*TURNS, assistant(GOOD)], "rejected": [*TURNS, assistant(BAD)]}, Pair(TURNS, GOOD, BAD)),
    # TRL implicit standard, cut at white space and not inside "bl"
    (
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        Pair([user("The sky is")], "blue.", "black."),
    ),
    # UltraFeedback binarized (messages repeat the chosen conversation), ArmoRM, a prompt list that repeats the turns
    ({"prompt": "hello there", **ULTRA, "messages": ULTRA["chosen"], "score_chosen": 8.0}, Pair(ASK, GOOD, BAD)),
    ({"prompt_id": "x", "prompt": "hello there\n", **ULTRA, "all_rm_scores": [0.1]}, Pair(ASK, GOOD, BAD)),
    ({"prompt": ASK, **ULTRA}, Pair(ASK, GOOD, BAD)),
    # Anthropic HH
    ({"chosen": f"{HUMAN} good answer", "rejected": f"{HUMAN} bad answer"}, Pair(TURNS[1:], GOOD, BAD)),
    (
        {name: f"\n\nHuman: say\n\nHuman: x\n\nAssistant: {said}" for name, said in FORMULAS.items()},
        Pair([user("say"), user("x")], "A: 1", "2"),
    ),
]
TALKS = [
    ({"messages": [*TURNS, assistant(GOOD)]}, Talk([*TURNS, assistant(GOOD)], 2)),
    ({"prompt": "ignored, messages say it", "messages": [*ASK, assistant(GOOD)]}, Talk([*ASK, assistant(GOOD)], 1)),
    ({"prompt": "hello there", "completion": GOOD}, Talk([*ASK, assistant(GOOD)], 1)),
    ({"prompt": TURNS, "completion": [assistant(GOOD)]}, Talk([*TURNS, assistant(GOOD)], 4)),
    (
        {"prompt": ASK, "completion": [assistant("a"), user("b"), assistant("c")]},
        Talk([*ASK, assistant("a"), user("b"), assistant("c")], 1),
    ),
    ({"instruction": "hello there", "output": GOOD}, Talk([*ASK, assistant(GOOD)], 1)),
    ({"instruction": "hello there", "input": "", "output": GOOD}, Talk([*ASK, assistant(GOOD)], 1)),
    ({"instruction": "add", "input": "1 2", "output": "3"}, Talk([user("add\n\n1 2"), assistant("3")], 1)),
]
STEPS = [
    ({"prompt": "q", "completions": ["a", "b"], "labels": [True, False]}, Steps([user("q")], ["a", "b"], [1, 0])),
    ({"prompt": TURNS, "completions": ["a"], "labels": [0]}, Steps(TURNS, ["a"], [0])),
    ({"messages": TURNS, "completions": ["a"], "labels": [1]}, Steps(TURNS, ["a"], [1])),
    # ProcessBench: nothing is known of what stands behind the first bad step
    ({"problem": "q", "steps": ["a", "b", "c"], "label": 1}, Steps([user("q")], ["a", "b", "c"], [1, 0, -1])),
    ({"id": "7", "problem": "q", "steps": ["a", "b"], "label": -1}, Steps([user("q")], ["a", "b"], [1, 1])),
]


@pytest.mark.parametrize(("raw", "row"), PAIRS)
def test_layouts_of_pairs(raw: object, row: Row) -> None:
    assert parse_row(raw, "pairs") == row


@pytest.mark.parametrize(("raw", "row"), TALKS)
def test_layouts_of_conversations(raw: object, row: Row) -> None:
    assert parse_row(raw, "sft") == row


@pytest.mark.parametrize(("raw", "row"), STEPS)
def test_layouts_of_steps(raw: object, row: Row) -> None:
    assert parse_row(raw, "steps") == row


def test_tables_with_nulls_for_absent_fields_read_the_same() -> None:
    """Parquet and Arrow have every column in every row."""
    message = {**user("hello there"), "name": None, "tool_calls": None}
    raw = {"prompt": None, "messages": [message], **ANSWERS, "split": None}
    assert parse_row(raw, "pairs") == Pair(ASK, GOOD, BAD)


WORDS = st.lists(st.sampled_from(["sun", "sky", "a", "b.", "sunny"]), min_size=1, max_size=4).map(" ".join)


@given(WORDS, WORDS, WORDS)
def test_an_implicit_prompt_is_what_both_texts_begin_with(prompt: str, one: str, two: str) -> None:
    chosen, rejected = f"{prompt} {one}", f"{prompt} {two}"
    try:
        pair = parse_row({"chosen": chosen, "rejected": rejected}, "pairs")
    except BadRow:
        assert one == two
        return
    assert isinstance(pair, Pair)
    asked = pair.messages[0]["content"]
    assert asked.startswith(prompt)
    assert (f"{asked} {pair.chosen}", f"{asked} {pair.rejected}") == (chosen, rejected)


# ---- hashes ----


def test_held_out_goes_by_prompt() -> None:
    pairs = [Pair([user(str(i // 2))], "a", "b") for i in range(2000)]
    held = [held_out(pair, 5) for pair in pairs]
    assert held[::2] == held[1::2]
    assert 0.15 < np.mean(held) < 0.25
    assert not any(held_out(pair, 0) for pair in pairs)


def test_the_hashes_are_the_documented_ones() -> None:
    pair = Pair([user("Grüße")], "ja", "nein")
    text = json.dumps([pair.messages, pair.chosen, pair.rejected], ensure_ascii=False)
    assert limit_number(pair) == int(hashlib.md5(f"limit:{text}".encode()).hexdigest(), 16)
    text = json.dumps(pair.messages, ensure_ascii=False, sort_keys=True)
    assert prompt_number(pair.messages) == int(hashlib.md5(f"held out:{text}".encode()).hexdigest(), 16)


def test_the_prompt_of_a_conversation_ends_before_its_first_scored_turn() -> None:
    talk = [*TURNS, assistant(GOOD)]
    assert prompt_of(Talk(talk, 2)) == TURNS[:2]
    assert prompt_of(Steps(TURNS, ["a"], [1])) == TURNS
