"""`sla_jax.config`: precedence, exact round trips, and an error by name for everything that a user can mistype."""

import dataclasses
import enum
import json
import string
import tempfile
from pathlib import Path
from typing import Literal

import pytest
import tyro
from hypothesis import example, given
from hypothesis import strategies as st

from sla_jax.config import Variables, dump_yaml, load_yaml, parse
from sla_jax.errors import UserError


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """How to search."""

    method: Literal["sla", "greedy"] = "sla"
    width: int = 2
    """Children a leaf."""
    branch_first: bool = False

    def __post_init__(self) -> None:
        if self.width < 1:
            raise UserError(f"width={self.width} is less than 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Warmup:
    steps: int
    shape: str = "linear"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """All kinds of fields."""

    checkpoint: str
    search: Search = Search()
    warmup: Warmup | None = None
    lr: float = 1e-3
    lengths: tuple[int, ...] = (16, 32)
    betas: tuple[float, float] = (0.9, 0.999)
    nested: tuple[tuple[str, int], ...] = ()
    limit: int | None = None
    either: int | float | str = 0
    where: Path = Path("out")
    colour: Colour = Colour.RED
    names: list[str] = dataclasses.field(default_factory=list)
    weights: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Warmup
    more: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mapped:
    template: Variables = dataclasses.field(default_factory=dict, hash=False)
    maybe: Variables | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    data: Mapped = Mapped()
    other: Mapped | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placed:
    source: tyro.conf.Positional[str]
    max_tokens: int = 4


def run(*argv: str, cls: type = Config):
    return parse(cls, list(argv), prog="train.py", description="Trains.")


def yaml_file(folder: Path, text: str) -> str:
    path = folder / "config.yaml"
    path.write_text(text)
    return str(path)


# ---- what is right ----


def test_defaults_come_from_the_dataclass():
    assert run("--checkpoint", "dir") == Config(checkpoint="dir")


def test_command_line_beats_yaml_beats_defaults(tmp_path):
    path = yaml_file(tmp_path, "checkpoint: a\nlr: 1e-4\nsearch: {width: 3, branch_first: true}\nlengths: [8]\n")
    got = run(path, "--search.width", "4", "--lengths", "1", "2", "--limit", "7")
    search = Search(width=4, branch_first=True)
    assert got == Config(checkpoint="a", lr=1e-4, search=search, lengths=(1, 2), limit=7)
    assert type(got.lengths) is tuple


def test_either_spelling_of_a_flag_and_both_directions_of_a_switch(tmp_path):
    path = yaml_file(tmp_path, "checkpoint: a\nlimit: 5\nsearch: {branch_first: true}\n")
    assert run(path, "--search.no-branch-first").search.branch_first is False
    assert run("--checkpoint=a", "--search.branch_first").search.branch_first is True
    assert run(path, "--search.branch-first", "false", "--limit", "7") == run(
        path, "--search.no-branch-first", "--limit=7"
    )
    assert run("--checkpoint", "true", "--search.branch_first", "true", "--limit", "7").search.branch_first is True
    with pytest.raises(UserError, match="the word 'maybe' is out of place"):
        run(path, "--search.branch-first", "maybe")
    assert run(path, "--limit", "None").limit is None


def test_a_required_field_may_come_from_either_side(tmp_path):
    path = yaml_file(tmp_path, "lr: 1\n")
    got = run(path, "--checkpoint", "b")
    assert (got.checkpoint, got.lr, type(got.lr)) == ("b", 1.0, float)
    assert run("--inner.steps", "3", cls=Outer) == Outer(inner=Warmup(steps=3))
    assert run(yaml_file(tmp_path, "inner: {shape: cosine}"), "--inner.steps", "3", cls=Outer).inner.shape == "cosine"


def test_checks_run_on_the_result_not_on_the_yaml(tmp_path):
    path = yaml_file(tmp_path, "checkpoint: a\nsearch: {width: 0}\n")
    assert run(path, "--search.width", "2").search.width == 2
    with pytest.raises(UserError, match="width=0 is less than 1"):
        run(path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("aé \"'{[:,-~#\n", max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", min_size=1), inner, max_size=2),
    max_leaves=4,
)


@given(entries=st.dictionaries(st.text("abc_", min_size=1, max_size=4), VALUES, max_size=3))
def test_a_mapping_is_given_whole_or_an_entry_at_a_time(entries):
    whole = run("--data.template", json.dumps(entries), cls=Data)
    words = [word for name, value in entries.items() for word in (f"--data.template.{name}={json.dumps(value)}",)]
    assert run(*words, cls=Data) == whole == Data(data=Mapped(template=entries))
    assert Data() == Data(data=Mapped(template={})), "what all defaults share is not changed"


def test_entries_of_a_mapping_join_those_of_the_file(tmp_path):
    path = yaml_file(tmp_path, "data: {template: {a: 1, b: no}}\n")
    got = run(
        path, "--data.template.b", "false", "--data.template.long-name", "26 Jul", "--data.maybe.x", "1", cls=Data
    )
    assert got == Data(data=Mapped(template={"a": 1, "b": False, "long_name": "26 Jul"}, maybe={"x": 1}))
    assert run("--other.template.a", "1", cls=Data).other == Mapped(template={"a": 1})
    dump_yaml(got, tmp_path / "out.yaml")
    assert load_yaml(Data, tmp_path / "out.yaml") == got


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.template.a"], "--data.template.a needs a value"),
        (["--data.template.a", "--data.maybe.b", "1"], "--data.template.a needs a value"),
        (["--data.template.a", "[1"], "--data.template.a '[1' line 1, column 3: this is not valid YAML"),
        (["--data.template", "[1]"], r"--data.template.*\[1\] is no JSON object"),
        (["--data.templat.a", "1"], "Did you mean '--data.template'"),
    ],
)
def test_entries_that_cannot_be_read_are_named(words, said):
    with pytest.raises(UserError, match=said.replace("[1'", r"\[1'")):
        run(*words, cls=Data)


def test_positional_words_stand_after_the_yaml(tmp_path):
    assert run("a", "--max-tokens", "2", cls=Placed) == Placed(source="a", max_tokens=2)
    assert run(yaml_file(tmp_path, "max_tokens: 7"), "a", cls=Placed) == Placed(source="a", max_tokens=7)
    with pytest.raises(UserError, match=r"'b' is out of place; expected \[CONFIG\.yaml\] SOURCE and then"):
        run("a", "b", cls=Placed)
    with pytest.raises(UserError, match=r"unknown flag --source\. `train"):
        run("--source", "a", cls=Placed)
    with pytest.raises(UserError, match=r"train\.py: Missing .*SOURCE.*--help"):
        run("--max-tokens", "2", cls=Placed)


def test_an_optional_group_given_in_yaml_has_flags(tmp_path):
    path = yaml_file(tmp_path, "checkpoint: a\nwarmup: {steps: 5}\n")
    assert run(path).warmup == Warmup(steps=5)
    assert run(path, "--warmup.shape", "cosine").warmup == Warmup(steps=5, shape="cosine")


def test_yaml_is_read_by_the_rules_of_1_2(tmp_path):
    path = yaml_file(tmp_path, "checkpoint: no\nlr: 1e-4\nwhere: 2026-01-01\nnames: [on, 1:30, 010]\n")
    got = load_yaml(Config, path)
    assert (got.checkpoint, got.lr, got.where) == ("no", 1e-4, Path("2026-01-01"))
    assert got.names == ["on", "1:30", "010"]


@pytest.mark.parametrize("argv", [["--help"], ["-h"]])
def test_help_prints_every_field_and_exits_0(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        run(*argv)
    out = capsys.readouterr().out
    assert stop.value.code == 0
    told = ("Trains.", "[CONFIG.yaml]", "--search.width", "Children a leaf.", "--checkpoint", "--warmup.shape")
    assert all(word in out for word in told)


def test_help_after_yaml_shows_its_values(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(yaml_file(tmp_path, "search: {width: 31}"), "--help")
    assert "31" in capsys.readouterr().out


# ---- the round trip ----

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
TRICKY = st.sampled_from(
    ["no", "1e-4", "null", "", " ", "0x1f", "-", "# a", "a: b", "'", "\n", "a\nb\n", "010", ".inf", "~"]
)
WORD = TEXT | TRICKY
NUMBER = st.floats(allow_nan=False)
SEARCH = st.builds(Search, method=st.sampled_from(["sla", "greedy"]), width=st.integers(1), branch_first=st.booleans())
CONFIG = st.builds(
    Config,
    checkpoint=WORD,
    search=SEARCH,
    warmup=st.none() | st.builds(Warmup, steps=st.integers(), shape=WORD),
    lr=NUMBER,
    lengths=st.lists(st.integers()).map(tuple),
    betas=st.tuples(NUMBER, NUMBER),
    nested=st.lists(st.tuples(WORD, st.integers())).map(tuple),
    limit=st.none() | st.integers(),
    either=st.integers() | NUMBER | WORD,
    where=st.text(string.ascii_letters, min_size=1).map(Path),
    colour=st.sampled_from(Colour),
    names=st.lists(WORD),
    weights=st.dictionaries(WORD, NUMBER),
)


@given(config=CONFIG)
@example(config=Config(checkpoint="\x85", names=["a\u2028b", "\r\n", "\ufeff", "\x00"]))
def test_dump_then_load_is_the_identity(config):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "c.yaml")
        dump_yaml(config, path)
        again = load_yaml(Config, path)
        assert [file.name for file in Path(folder).iterdir()] == ["c.yaml"]
    assert again == config
    assert type(again.either) is type(config.either)


def test_a_dumped_config_can_be_passed_back(tmp_path):
    config = run("--checkpoint", "x", "--lr", "3e-5", "--nested", "a", "1", "b", "2")
    assert config.nested == (("a", 1), ("b", 2))
    dump_yaml(config, tmp_path / "c.yaml")
    assert run(str(tmp_path / "c.yaml")) == config


# ---- what is wrong ----

BAD_YAML = {
    "lrr: 1": ["unknown key 'lrr'", "Did you mean 'lr'?", "checkpoint"],
    "search: {widht: 1}": ["unknown key 'widht' under 'search'", "Did you mean 'width'?"],
    "search: 3": ["'search' is 3 (int)", "a mapping with the keys method, width, branch_first"],
    "[1, 2]": ["the file is [1, 2] (list)", "a mapping"],
    "lr: fast": ["'lr' is 'fast' (str)", "a number"],
    f"lr: {10**400}": ["'lr' is 1000", "a number"],
    "lr: true": ["'lr' is True (bool)", "a number"],
    "lr: null": ["'lr' is null", "a number"],
    "search: {width: 2.0}": ["'search.width' is 2.0 (float)", "a whole number"],
    "search: {branch_first: 1}": ["'search.branch_first' is 1 (int)", "true or false"],
    "search: {method: gredy}": ["one of sla, greedy", "Did you mean 'greedy'?"],
    "checkpoint: 3": ["'checkpoint' is 3 (int)", "a string"],
    "lengths: 3": ["'lengths' is 3", "a list, each of it a whole number"],
    "lengths: [1, x]": ["'lengths[1]' is 'x' (str)"],
    "betas: [1.0]": ["'betas' is [1.0]", "a list of 2 (a number, a number)"],
    "nested: [[a, 1], [b]]": ["'nested[1]' is ['b']"],
    "limit: x": ["'limit' is 'x'", "a whole number"],
    "either: []": ["'either' is []", "a whole number or a number or a string"],
    "colour: BLEU": ["one of RED, BLUE", "Did you mean 'BLUE'?"],
    "weights: {a: b}": ["'weights.a' is 'b'"],
    "warmup: {shape: x}": ["lacks 'steps' under 'warmup'"],
    "lr: 1": ["lacks 'checkpoint'"],
    "lr: 1\nlr: 2": ["line 2, column 1", "key 'lr' is given twice"],
    "lr: 1\nnames: [a": ["line 2", "not valid YAML"],
    "lr: !!python/object:os.system 1": ["line 1", "not valid YAML"],
    "\tlr: 1": ["line 1", "not valid YAML"],
    "1: 2": ["unknown key 1"],
}


@pytest.mark.parametrize(("text", "said"), BAD_YAML.items(), ids=list(BAD_YAML))
def test_bad_yaml_is_named(tmp_path, text, said):
    path = yaml_file(tmp_path, text)
    with pytest.raises(UserError) as error:
        load_yaml(Config, path)
    message = str(error.value)
    assert message.startswith(path)
    assert "\n" not in message
    assert [part for part in said if part not in message] == [], message


def test_an_empty_file_is_an_empty_mapping(tmp_path):
    assert run(yaml_file(tmp_path, "# nothing\n"), "--checkpoint", "a") == Config(checkpoint="a")


def test_a_missing_file_suggests_one_beside_it(tmp_path):
    yaml_file(tmp_path, "lr: 1")
    with pytest.raises(UserError, match=r"there is no config file .*confg\.yaml\. Did you mean 'config\.yaml'\?"):
        run(str(tmp_path / "confg.yaml"))


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is UTF-16 text"):
        load_yaml(Config, tmp_path / "c.yaml")


def test_a_part_that_may_be_none_begins_with_one_of_its_flags():
    assert run("--checkpoint", "a").warmup is None
    assert run("--checkpoint", "a", "--warmup.steps", "3").warmup == Warmup(steps=3)
    assert run("--checkpoint", "a", "--warmup.steps=3", "--warmup.shape", "x").warmup == Warmup(steps=3, shape="x")


BAD_FLAGS = {
    ("--checkpoint", "a", "--warmup.shape", "x"): ["--warmup.steps"],
    ("--checkpoint", "a", "--warmup.stps", "3"): ["unknown flag --warmup.stps", "Did you mean '--warmup.steps'?"],
    ("--checkpoint", "a", "--serch.width", "2"): ["unknown flag --serch.width", "Did you mean '--search.width'?"],
    ("--checkpont", "a"): ["unknown flag --checkpont", "Did you mean '--checkpoint'?"],
    ("--checkpoint", "a", "--search.no-branch-frist"): ["Did you mean '--search.no-branch-first'?"],
    ("--checkpoint", "a", "--search.width", "q"): ["--search.width", "'q'"],
    ("--checkpoint", "a", "--search.method", "foo"): ["--search.method", "'foo'", "'greedy'"],
    ("--checkpoint",): ["--checkpoint", "Missing value"],
    (): ["Missing", "--checkpoint"],
    ("--checkpoint", "a", "--search.width", "0"): ["width=0 is less than 1"],
    ("extra", "--checkpoint", "a"): ["the word 'extra' is out of place", "[CONFIG.yaml]"],
}


@pytest.mark.parametrize(("argv", "said"), BAD_FLAGS.items(), ids=[" ".join(argv) for argv in BAD_FLAGS])
def test_bad_flags_are_named(capsys, argv, said):
    with pytest.raises(UserError) as error:
        run(*argv)
    message = str(error.value)
    assert "\n" not in message
    assert not set("│╭╰─") & set(message)
    assert [part for part in said if part not in message] == [], message
    assert capsys.readouterr() == ("", "")
