"""`sla_jax.json_text`: lists item by item as `json` reads them whole, and nothing that a later step could not hold."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sla_jax import json_text
from sla_jax.json_text import DEEPEST, BadJsonError, items, parse

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
MARKS = st.sampled_from([*'[]{},:"\\0123456789.-+eE tfn\n', ""])


def cut(text: str, size: int) -> Iterator[str]:
    return (text[i : i + size] for i in range(0, len(text), size))


def whole(text: str) -> Any:
    """(values, None), or (None, (line, what is wrong)), by `json` alone."""
    try:
        return json.loads(text), None
    except json.JSONDecodeError as error:
        return None, (error.lineno, f"not JSON ({error.msg} at column {error.colno})")


def by_items(text: str, size: int) -> Any:
    try:
        return [item for item, _ in items(cut(text, size))], None
    except BadJsonError as error:
        return None, (error.line, str(error))


@given(st.lists(VALUES, max_size=4), st.integers(1, 40), st.sampled_from([None, 1]), st.booleans())
def test_a_list_is_the_same_in_pieces(values: list[Any], size: int, indent: int | None, plain: bool) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=plain)
    assert by_items(f"\n {text} \n", size) == (values, None)


@given(st.lists(VALUES, min_size=1, max_size=3), st.data())
def test_what_is_wrong_is_told_as_json_tells_it(values: list[Any], data: st.DataObject) -> None:
    text = json.dumps(values, indent=data.draw(st.sampled_from([None, 1])), ensure_ascii=False)
    at = data.draw(st.integers(1, len(text)))
    wrong = text[:at] + data.draw(MARKS) + data.draw(st.sampled_from([text[at:], text[at + 1 :], ""]))
    assert by_items(wrong, data.draw(st.integers(1, 40))) == whole(wrong)


def test_a_list_is_read_no_further_than_asked() -> None:
    taken: list[int] = []

    def pieces() -> Iterator[str]:
        yield "["
        for number in range(10**9):
            taken.append(number)
            yield '{"a": "' + "x" * 100 + '"},'

    rows = items(pieces())
    for _ in range(50):
        next(rows)
    assert len(taken) < 60


def test_a_value_may_not_be_longer_than_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_text, "LONGEST", 1000)
    taken: list[int] = []

    def pieces() -> Iterator[str]:
        yield '[1, 2,\n"'
        for number in range(10**9):
            taken.append(number)
            yield "x" * 100

    with pytest.raises(BadJsonError, match="a value of more than 1000 characters") as error:
        list(items(pieces()))
    assert error.value.line == 2 and len(taken) < 40


DEEP = {
    "lists": "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1),
    "objects": '{"a":' * (DEEPEST + 1) + "1" + "}" * (DEEPEST + 1),
    "beyond what Python reads": "[" * 100000 + "]" * 100000,
    "objects beyond what Python reads": '{"a":' * 100000,
    "digits": "[" + "9" * 5000 + "]",
}


@pytest.mark.parametrize("text", DEEP.values(), ids=list(DEEP))
def test_values_that_no_later_step_could_walk_are_told(text: str) -> None:
    with pytest.raises(BadJsonError, match="deep|recursion|digits|delimiter"):
        parse(text)
    rows = []
    with pytest.raises(BadJsonError, match="deep|recursion|digits|delimiter"):
        rows += [(item, bad) for item, bad in items(cut(f"[1, {text}", 50))]
        refused = rows[1][1]
        assert refused is not None
        raise refused


def test_as_deep_as_it_may_be() -> None:
    text = "[" * DEEPEST + "]" * DEEPEST
    assert json.dumps(parse(text)) == text
    flat = "[" + ",".join(["[]"] * 500) + "]"
    assert parse(flat) == [[]] * 500
