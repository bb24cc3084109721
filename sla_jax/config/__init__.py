"""YAML and command line → frozen dataclasses, and back.

A program's configuration is one frozen, keyword-only dataclass (nested ones allowed) that lives beside the code it
configures. `parse` reads `[CONFIG.yaml] [--field.sub value …]`: the command line wins over the file, the file over the
defaults. tyro owns the command line; the file is read here, because tyro has no YAML of its own and because nothing may
be dropped or guessed: an unknown or doubled key, a wrong type and a missing value each raise `UserError` by name.

YAML is that of `core_yaml.py`. `dump_yaml` then `load_yaml` gives an equal configuration, always.

Field types: bool, int, float, str, Path, Enum (by name), Literal, tuple, list, dict[str, …], `X | None`, unions of
these, and dataclasses; `tyro.conf.Positional[…]` around one makes it a word without a flag. A nested dataclass that is
None begins as its defaults when one of its flags is given. `Variables` is a mapping to whatever JSON has: `--field
'{"key": value}'`, or an entry at a time, `--field.key VALUE`, whose value is read as YAML.
"""

import contextlib
import dataclasses
import enum
import io
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import tyro

from sla_jax.config import core_yaml
from sla_jax.config.core_yaml import read_yaml
from sla_jax.config.entries import Variables, take_entries
from sla_jax.errors import UserError, nearest, quoted
from sla_jax.files import read_text, write_text

__all__ = ["Variables", "as_yaml", "dump_yaml", "from_tree", "load_yaml", "parse", "read_yaml"]

T = TypeVar("T")
SCALARS = (bool, int, str)


def parse(cls: type[T], argv: Sequence[str], *, prog: str, description: str) -> T:
    """A `cls` from `[CONFIG.yaml] [--field.sub value …]`. Raises UserError; `--help` prints and exits 0."""
    words = list(argv)
    path = words.pop(0) if words and words[0].endswith((".yaml", ".yml")) else None
    tree = _read(Path(path)) if path else {}
    reader = _Reader(path=path or prog, partial=True)
    draft = reader.instance(cls, tree, "")
    for name, part in _absent(cls, draft):
        flags = f"--{name.replace('_', '-')}."
        if {"--help", "-h"} & set(words) or any(word.replace("_", "-").startswith(flags) for word in words):
            object.__setattr__(draft, name, reader.instance(part, {}, name))
    draft, words = take_entries(draft, words, prog)
    places = [name.replace("_", "-").upper() for name in _positionals(cls)]
    usage = f"{description}\n\nusage: {' '.join([prog, '[CONFIG.yaml]', *places, '[--field value …]'])}"
    heard = io.StringIO()
    try:
        with contextlib.redirect_stderr(heard):
            config, strays = tyro.cli(
                cls,
                args=list(_switches(cls, draft, words)),
                default=draft,
                prog=prog,
                description=usage,
                return_unknown_args=True,
                config=(tyro.conf.AvoidSubcommands, tyro.conf.PositionalMetavarFromFieldName),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise _flag_error(cls, draft, words, prog, _plain_text(heard.getvalue())) from None
    sys.stderr.write(heard.getvalue())
    if strays:
        raise _stray_error(cls, draft, strays[0], prog)
    return config


def load_yaml(cls: type[T], path: str | Path) -> T:
    """A `cls` from a YAML file alone; every field without a default must be there."""
    return _Reader(path=str(path), partial=False).instance(cls, _read(Path(path)), "")


def from_tree(cls: type[T], tree: Any, where: str) -> T:
    """A `cls` from dicts, lists and scalars, as strictly as from a file; `where` stands in front of what is wrong."""
    return _Reader(path=where, partial=False).instance(cls, tree, "")


def dump_yaml(config: Any, path: str | Path) -> None:
    """Write every field of a configuration, defaults too; `load_yaml` reads an equal one back. Atomic."""
    write_text(Path(path), as_yaml(config))


def as_yaml(config: Any) -> str:
    """Every field of a configuration as YAML, defaults too."""
    return core_yaml.as_yaml(_plain(config))


# ---- YAML ----


def _read(path: Path) -> Any:
    """The file's tree ({} for an empty file)."""
    if not path.exists():
        beside = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise UserError(f"there is no config file {path}.{nearest(path.name, beside)}")
    tree = read_yaml(read_text(path), str(path))
    return {} if tree is None else tree


def _plain(value: Any) -> Any:
    """A configuration as dicts, lists and scalars."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in _init_fields(type(value))}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


# ---- tree → dataclass ----


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Reader:
    """Turns a YAML tree into dataclasses, strictly. `partial` leaves what YAML lacks to the command line."""

    path: str
    partial: bool

    def instance(self, cls: type[T], tree: Any, at: str) -> T:
        """`tree` as a `cls`; `at` is the dotted key where it stands ("" at the top)."""
        if not isinstance(tree, dict):
            raise self._mismatch(at, tree, f"a mapping with the keys {', '.join(_names(cls))}")
        for key in tree:
            if key not in _names(cls):
                where = f" under {at!r}" if at else ""
                hint = nearest(str(key), _names(cls))
                raise UserError(f"{self.path}: unknown key {key!r}{where}; known: {', '.join(_names(cls))}.{hint}")
        hints = get_type_hints(cls)
        values = {key: self.value(hints[key], raw, f"{at}.{key}".lstrip(".")) for key, raw in tree.items()}
        if self.partial:
            return self._draft(cls, hints, values)
        missing = [field.name for field in _init_fields(cls) if field.name not in values and _required(field)]
        if missing:
            where = f" under {at!r}" if at else ""
            raise UserError(f"{self.path} lacks {', '.join(map(repr, missing))}{where}, which has no default; add it.")
        return cls(**values)

    def value(self, hint: Any, raw: Any, at: str) -> Any:
        """`raw` as the annotated type, without guessing: a string is no number and 1 is no bool (but 1 is a float)."""
        origin, args = get_origin(hint), get_args(hint)
        if hint is Any or (hint in SCALARS and type(raw) is hint):
            return raw
        if hint is float and (type(raw) is float or (type(raw) is int and abs(raw) <= sys.float_info.max)):
            return float(raw)
        if hint in (None, type(None)) and raw is None:
            return None
        if dataclasses.is_dataclass(hint):
            return self.instance(cast(type[Any], hint), raw, at)
        if origin in (Union, types.UnionType):
            return self._union(args, raw, at)
        if origin is Literal and any(raw == choice and type(raw) is type(choice) for choice in args):
            return raw
        if origin in (tuple, list) and isinstance(raw, list):
            return self._sequence(hint, raw, at)
        if origin is dict and isinstance(raw, dict):
            return {self.value(args[0], k, at): self.value(args[1], v, f"{at}.{k}") for k, v in raw.items()}
        if isinstance(hint, type) and isinstance(raw, str):
            if issubclass(hint, Path):
                return hint(raw)
            if issubclass(hint, enum.Enum) and raw in hint.__members__:
                return hint[raw]
        raise self._mismatch(at, raw, _describe(hint), _choices(hint))

    def _union(self, members: tuple[Any, ...], raw: Any, at: str) -> Any:
        """The member whose type `raw` already has, else the first that takes it; one real member speaks for itself."""
        real = [member for member in members if member is not type(None)]
        if raw is None and len(real) < len(members):
            return None
        if len(real) == 1:
            return self.value(real[0], raw, at)
        for member in sorted(real, key=lambda member: member is not type(raw)):
            with contextlib.suppress(UserError):
                return self.value(member, raw, at)
        raise self._mismatch(at, raw, " or ".join(map(_describe, members)))

    def _sequence(self, hint: Any, raw: list[Any], at: str) -> Any:
        kind, args = get_origin(hint), [arg for arg in get_args(hint) if arg != ()]
        if kind is list or args[-1:] == [Ellipsis]:
            args = args[:1] * len(raw)
        elif len(args) != len(raw):
            raise self._mismatch(at, raw, _describe(hint))
        return kind(self.value(arg, item, f"{at}[{i}]") for i, (arg, item) in enumerate(zip(args, raw, strict=True)))

    def _draft(self, cls: type[T], hints: dict[str, Any], values: dict[str, Any]) -> T:
        """A `cls` that skipped its own checks, for tyro to take defaults from: absent required fields are MISSING."""
        draft = object.__new__(cls)
        for field in _init_fields(cls):
            if field.name in values:
                value = values[field.name]
            elif not _required(field):
                value = _default(field)
            elif dataclasses.is_dataclass(hints[field.name]):
                value = self.instance(hints[field.name], {}, field.name)
            else:
                value = tyro.MISSING
            object.__setattr__(draft, field.name, value)
        return draft

    def _mismatch(self, at: str, raw: Any, wanted: str, choices: Sequence[str] = ()) -> UserError:
        shown = "null" if raw is None else quoted(raw, 200)
        place = repr(at) if at else "the file"
        kind = "" if raw is None else f" ({type(raw).__name__})"
        hint = nearest(raw, choices) if isinstance(raw, str) else ""
        return UserError(f"{self.path}: {place} is {shown}{kind}; it has to be {wanted}.{hint}")


def _init_fields(cls: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(cls) if field.init]


def _names(cls: Any) -> list[str]:
    return [field.name for field in _init_fields(cls)]


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _choices(hint: Any) -> list[str]:
    """The words that a Literal or an Enum allows."""
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return list(hint.__members__)
    return [str(choice) for choice in get_args(hint)] if get_origin(hint) is Literal else []


def _describe(hint: Any) -> str:
    """A type in the words of an error message."""
    origin, args = get_origin(hint), get_args(hint)
    if _choices(hint):
        return f"one of {', '.join(_choices(hint))}"
    if origin in (Union, types.UnionType):
        return " or ".join(map(_describe, args))
    if origin is tuple and args[-1:] != (Ellipsis,):
        return f"a list of {len(args)} ({', '.join(map(_describe, args))})"
    if origin in (tuple, list):
        return f"a list, each of it {_describe(args[0])}"
    if origin is dict:
        return f"a mapping, each value {_describe(args[1])}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", Path: "a path"}
    return names.get(hint) or ("null" if hint in (None, type(None)) else f"a {getattr(hint, '__name__', hint)}")


# ---- the command line's errors ----


def _absent(cls: Any, draft: Any) -> Iterator[tuple[str, Any]]:
    """(name, dataclass) of every part that may be None and is."""
    for name, hint in get_type_hints(cls).items():
        parts = [part for part in get_args(hint) if dataclasses.is_dataclass(part)]
        if type(None) in get_args(hint) and len(parts) == 1 and getattr(draft, name) is None:
            yield name, parts[0]


def _positionals(cls: Any) -> list[str]:
    """Fields that are given by place and not by flag."""
    hints = get_type_hints(cls, include_extras=True)
    return [name for name in _names(cls) if tyro.conf.Positional in get_args(hints[name])]


def _flags(cls: Any, draft: Any, prefix: str = "") -> Iterator[str]:
    """Every flag that tyro makes for `cls`, for suggestions only."""
    hints, places = get_type_hints(cls), _positionals(cls)
    for field in _init_fields(cls):
        value = getattr(draft, field.name)
        name = field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from _flags(type(value), value, f"{prefix}{name}.")
        elif field.name not in places:
            yield f"--{prefix}{name}"
            if hints[field.name] is bool:
                yield f"--{prefix}no-{name}"


def _switches(cls: Any, draft: Any, words: Sequence[str]) -> Iterator[str]:
    """The words, with `--field true` and `--field false` as tyro has them: `--field`, `--no-field`."""
    known, before = set(_flags(cls, draft)), ""
    for place, word in enumerate(words):
        prefix, dot, name = word.replace("_", "-").removeprefix("--").rpartition(".")
        off = f"--{prefix}{dot}no-{name}"
        if before not in known or word not in ("true", "false"):
            yield off if off in known and words[place + 1 : place + 2] == ["false"] else word
        before = off


def _flag_error(cls: Any, draft: Any, words: list[str], prog: str, heard: str) -> UserError:
    """tyro refused: a mistyped flag is the likelier story, and a better one, than what it led to."""
    known = [*_flags(cls, draft), "--help"]
    for word in words:
        if word.startswith("--") and word.split("=")[0].replace("_", "-") not in known:
            return _stray_error(cls, draft, word, prog)
    return UserError(f"{prog}: {heard} `{prog} --help` lists every flag.")


def _stray_error(cls: Any, draft: Any, word: str, prog: str) -> UserError:
    if not word.startswith("-"):
        first = " ".join(["[CONFIG.yaml]", *(name.replace("_", "-").upper() for name in _positionals(cls))])
        rule = f"expected {first} and then --field value pairs"
        return UserError(f"{prog}: the word {word!r} is out of place; {rule}. `{prog} --help` lists them.")
    flag = word.split("=")[0].replace("_", "-")
    return UserError(
        f"{prog}: unknown flag {flag}.{nearest(flag, _flags(cls, draft))} `{prog} --help` lists every flag."
    )


def _plain_text(box: str) -> str:
    """The first part of a tyro error box as one sentence, without its borders."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    rule = next((i for i, line in enumerate(lines) if line.startswith(("─", "╰"))), len(lines))
    return " ".join(" ".join(lines[:rule]).split()).rstrip(".") + "."
