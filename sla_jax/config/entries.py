"""Mappings on the command line: whole, as JSON, or an entry at a time, `--field.key VALUE`."""

import copy
import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

from tyro.constructors import PrimitiveConstructorSpec

from sla_jax.config.core_yaml import read_yaml
from sla_jax.errors import UserError, quoted, shortened

T = TypeVar("T")


def _mapping(words: list[str]) -> dict[str, Any]:
    """For tyro, which tells of a ValueError."""
    try:
        found = json.loads(words[0])
    except RecursionError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{shortened(words[0])} is no JSON object")
    return found


_JSON: PrimitiveConstructorSpec[Any] = PrimitiveConstructorSpec(
    nargs=1,
    metavar="JSON",
    instance_from_str=_mapping,
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda value: [json.dumps(value, ensure_ascii=False)],
)
Variables = Annotated[dict[str, Any], _JSON]


def take_entries(draft: T, words: Sequence[str], prog: str) -> tuple[T, list[str]]:
    """The draft of a configuration with every `--field.key VALUE` of its `Variables`, and the other words."""
    left, rest = list[str](), iter(words)
    for word in rest:
        flag, given, value = word.partition("=")
        names = flag.removeprefix("--").replace("-", "_").split(".")
        if not flag.startswith("--") or not _takes(draft, names[:-1]):
            left.append(word)
            continue
        value = value if given else next(rest, "--")
        if value.startswith("--"):
            raise UserError(f"{prog}: {flag} needs a value, such as {flag} true.")
        draft = _with_entry(draft, names, read_yaml(value, f"{prog}: {flag} {quoted(value, 200)}"))
    return draft, left


def _takes(draft: Any, names: Sequence[str]) -> bool:
    """Whether what has these names is one of the `Variables`."""
    for name in names[:-1]:
        draft = getattr(draft, name, None)
    hint = get_type_hints(type(draft)).get(names[-1]) if names and dataclasses.is_dataclass(draft) else None
    return dict[str, Any] in (hint, *get_args(hint))


def _with_entry(draft: Any, names: Sequence[str], value: Any) -> Any:
    """A copy with one entry more: defaults are shared, so nothing is changed in place."""
    name, *more = names
    if not dataclasses.is_dataclass(draft):
        return {**(draft or {}), name: value}
    changed = copy.copy(draft)
    object.__setattr__(changed, name, _with_entry(getattr(draft, name), more, value))
    return changed
