"""YAML by the rules of version 1.2's core schema, read within bounds.

`1e-4` is a number, `no` and `2026-01-01` are strings, `010` is not octal (PyYAML alone says otherwise on all four).
An alias stands for the value that it names, and 300 bytes of aliases of aliases for a thousand million values: what a
text stands for is counted before it is built.
"""

import re
from typing import Any

import yaml

from sla_jax.errors import UserError

MOST, DEEPEST = 20_000, 64  # values of a text, its aliases written out, and how deep they may nest
LONGEST = 2**20  # characters of a text
# tag, what it looks like, the characters that it can begin with
SCHEMA = (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is no single value", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_string(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Line breaks that are not "\\n" survive only as escapes; PyYAML folds them to spaces in its other styles."""
    style = '"' if set(text) & set("\r\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _write_string)
for _tag, _looks, _first in SCHEMA:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_looks), _first)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_looks), _first)


def read_yaml(text: str, where: str) -> Any:
    """The value of a YAML text, None for an empty one; `where` it stands begins an error. Raises UserError."""
    if len(text) > LONGEST:
        raise UserError(f"{where} has {len(text)} characters; a YAML text of up to {LONGEST} is read.")
    try:
        return _built(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{where}{place}: this is not valid YAML: {error.problem or error.context}.") from None
    except RecursionError:
        raise UserError(f"{where}: this is not valid YAML: its values nest deeper than {DEEPEST}.") from None
    # what PyYAML's constructors raise themselves of `!!int x`, `!!bool x` or a number of 5,000 digits
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{where}: this is not valid YAML: {' '.join(str(error).split())}.") from None


def as_yaml(tree: Any) -> str:
    """The YAML text of dicts, lists and scalars."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _built(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _extent(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _extent(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """(values, depth) of what a node stands for, its aliases written out; a node that is under way has None.

    Raises ConstructorError beyond the bounds, and for a node that holds itself."""
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise yaml.constructor.ConstructorError(None, None, "an alias stands in what it names", node.start_mark)
        return found
    known[id(node)] = None
    parts = node.value if isinstance(node, yaml.CollectionNode) else []
    pairs = isinstance(node, yaml.MappingNode)
    extents = [_extent(one, known) for part in parts for one in (part if pairs else (part,))]
    count, depth = 1 + sum(values for values, _ in extents), 1 + max((deep for _, deep in extents), default=0)
    if count > MOST or depth > DEEPEST:
        what = f"{count} values" if count > MOST else f"values in {depth} levels"
        bound = f"{what}, aliases written out; up to {MOST} in {DEEPEST} levels are read"
        raise yaml.constructor.ConstructorError(None, None, bound, node.start_mark)
    known[id(node)] = count, depth
    return count, depth
