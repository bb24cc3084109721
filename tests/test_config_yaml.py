"""YAML of strangers: counted before it is built, and told in one paragraph of a bounded length."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sla_jax.config import core_yaml, load_yaml, read_yaml
from sla_jax.config.core_yaml import DEEPEST, MOST
from sla_jax.errors import LONGEST, UserError
from sla_jax.serving.settings import ServeConfig


def nested(lines: int) -> str:
    """Aliases of aliases: 9 ** lines values in a few hundred bytes."""
    first = "- &a0 [x,x,x,x,x,x,x,x,x]\n"
    return first + "".join(f"- &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, lines))


BOMBS = {
    "aliases of aliases": (nested(9), "values, aliases written out"),
    "aliases as keys of mappings": (nested(9).replace("[x,", "[{b: x},"), "values, aliases written out"),
    "an alias of itself": ("a: &a [*a]\n", "an alias stands in what it names"),
    "an alias of what it stands in": ("a: &a {b: {c: *a}}\n", "an alias stands in what it names"),
    "a chain of aliases": ("".join(f"- &a{i} [{f'*a{i - 1}' if i else 'x'}]\n" for i in range(300)), "levels"),
    "lists": ("[" * 5000, "nest deeper"),
    "mappings": ("{a: " * 5000 + "1" + "}" * 5000, "nest deeper"),
    "lists that end": ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "levels"),
    "block lists": ("- " * 3000 + "x", "nest deeper"),
    "many values": ("[" + "x," * MOST + "]", "values, aliases written out"),
    "a long text": ("a: " + "x" * core_yaml.LONGEST, "characters; a YAML text of up to"),
    "digits": ("port: " + "9" * 5000, "4300 digits"),
    "code": ("a: !!python/object/apply:os.system ['false']\n", "could not determine a constructor"),
    "code by name": ("a: !!python/name:os.system\n", "could not determine a constructor"),
    "a number by tag": ("a: !!int x\n", "not valid YAML"),
    "a bool by tag": ("a: !!bool x\n", "not valid YAML"),
    "a day by tag": ("a: !!timestamp x\n", "not valid YAML"),
    "a day that there is not": ("a: !!timestamp 2001-13-45\n", "not valid YAML"),
    "a list as a key": ("? [a]\n: b\n", "a key is no single value"),
    "a mapping as a key": ("? {a: 1}\n: b\n", "a key is no single value"),
    "a key without an end": ("? " * 5000 + "\n", "nest deeper|not valid YAML"),
}


@pytest.mark.parametrize(("text", "said"), BOMBS.values(), ids=list(BOMBS))
def test_what_would_take_memory_is_told(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as error:
        load_yaml(ServeConfig, path)
    told = str(error.value)
    assert told.startswith(str(path)) and len(told) < len(str(path)) + 400 and "\n" not in told


def test_aliases_within_bounds_are_what_they_name() -> None:
    assert read_yaml("a: &a [1, 2]\nb: *a\nc: {d: *a}\n", "F") == {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}
    built = read_yaml(nested(4), "F")
    assert len(str(built)) > 9**4 and built[3][0] is built[2], "an alias is the same value, not a copy"


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3), max_leaves=9
    )
)
def test_the_count_is_that_of_the_values(tree: Any) -> None:
    def count(one: Any) -> int:
        return 1 + (sum(map(count, one)) if isinstance(one, list) else 0)

    node = yaml.compose(core_yaml.as_yaml(tree), Loader=yaml.SafeLoader)
    assert node is not None and core_yaml._extent(node, {})[0] == count(tree)


@pytest.mark.parametrize(
    "value", [nested(4).replace("- ", "  - "), "x" * 10**4, "{" + ",".join(f"k{i}: 1" for i in range(999)) + "}"]
)
@pytest.mark.parametrize("key", ["checkpoint", "port", "profiles"])
def test_a_value_that_is_repeated_is_cut(key: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(f"{key}: \n{value}\n" if value.startswith(" ") else f"{key}: {value}\n")
    with pytest.raises(UserError) as error:
        load_yaml(ServeConfig, path)
    assert len(str(error.value)) < LONGEST
