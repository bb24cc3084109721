"""`sla_jax.errors`: a user's mistake is one paragraph and exit code 2; everything else keeps its traceback."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sla_jax.errors import UserError, front_door, nearest


def wrong(argv: list[str]) -> None:
    raise UserError(f"came {argv}, expected something else.")


def test_nearest_suggests_a_close_name_only():
    assert nearest("widht", ["depth", "width"]) == " Did you mean 'width'?"
    assert nearest("zzz", ["depth", "width"]) == ""
    assert nearest("a", []) == ""


NAMES = st.text("abc", max_size=5)


@given(NAMES, st.lists(NAMES, max_size=5))
def test_nearest_never_suggests_what_was_refused(name, known):
    assert nearest(name, [name]) == ""
    assert nearest(name, [*known, name]) == nearest(name, known) != f" Did you mean {name!r}?"


def test_front_door_prints_one_paragraph_and_exits_2(capsys):
    with pytest.raises(SystemExit) as stop:
        front_door(wrong, ["a"])
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", "error: came ['a'], expected something else.\n")


def test_debug_keeps_the_traceback_and_is_not_passed_on():
    with pytest.raises(UserError, match=r"came \['a'\]"):
        front_door(wrong, ["--debug", "a"])


def test_a_program_that_works_returns():
    seen: list[list[str]] = []
    front_door(seen.append, ["x", "--debug", "y"])
    assert seen == [["x", "y"]]


def test_our_own_mistakes_are_not_dressed_up():
    def broken(argv: list[str]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        front_door(broken, [])


def test_interrupting_exits_130(capsys):
    def interrupted(argv: list[str]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        front_door(interrupted, [])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_as_a_program():
    code = "from sla_jax.errors import *\ndef main(argv): raise UserError('no such thing.')\nfront_door(main)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: no such thing.\n")
