"""`sla_jax.errors`: a user's mistake is one paragraph and exit code 2; everything else keeps its traceback."""

import errno
import os
import socket
import subprocess
import sys
import urllib.error
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import eval as evaluate
import train
from sla_jax.errors import LONGEST, UserError, for_the_user, front_door, nearest, quoted, shortened


def wrong(argv: list[str]) -> None:
    raise UserError(f"came {argv}, expected something else.")


def test_what_others_wrote_moves_no_cursor(capsys):
    with pytest.raises(SystemExit):
        front_door(wrong, ["\x1b[2J"])

    def tells(argv: list[str]) -> None:
        raise UserError("the server says \x1b[2J\r.")

    with pytest.raises(SystemExit):
        front_door(tells, [])
    assert "\x1b" not in (said := capsys.readouterr().err) and "says ␛[2J␍." in said


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


def numbered(number: int, *name: str) -> OSError:
    return OSError(number, os.strerror(number), *name)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (numbered(errno.EROFS, "/ro/run"), "/ro/run: Read-only file system. That file system can only be read"),
        (numbered(errno.EACCES, "/root/run"), "/root/run: Permission denied. Give a path that you may use"),
        (numbered(errno.ENOTDIR, "/etc/hosts/run"), "/etc/hosts/run: Not a directory. A file stands where a folder"),
        (numbered(errno.ENAMETOOLONG, "a" * 300), "File name too long. Give a shorter name."),
        (numbered(errno.ENOSPC, "/full/run"), "/full/run: No space left on device. Make room on that disk"),
        (numbered(errno.ENOSPC), "a file: No space left on device. Make room on that disk"),
        (numbered(errno.ELOOP, "/a"), "/a: Too many levels of symbolic links."),
    ],
)
def test_an_error_of_a_file_is_the_users(error: OSError, said: str, capsys: pytest.CaptureFixture[str]):
    def fails(argv: list[str]) -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        front_door(fails, [])
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.startswith("error: ") and said in told and told.count("\n") == 1
    with pytest.raises(type(error)):
        front_door(fails, ["--debug"])


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        numbered(errno.EBADF),
        urllib.error.HTTPError("http://somewhere", 404, "Not Found", Message(), None),
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        OSError("something of ours"),
    ],
)
def test_an_error_of_a_socket_is_not(error: OSError):
    assert for_the_user(error) is None


@pytest.mark.parametrize(
    ("door", "words"),
    [
        (train, ["--out", "{file}/run"]),
        (train, ["pairs", "--model", "none", "--prompts", "{file}", "--out", "{file}/run"]),
        (evaluate, ["report", "{file}/run"]),
        (evaluate, ["judge-data", "{data}"]),
    ],
)
def test_a_door_says_where_a_file_stands_in_the_way(
    door: Any, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file, data = tmp_path / "file.jsonl", tmp_path / "data.yaml"
    file.write_text('{"prompt": "Hi", "chosen": "Yes.", "rejected": "No."}\n')
    data.write_text(f"out: {file}/out\nchannel: [{{file: {file}}}]\nsources: [{{file: {file}}}]\n")
    with pytest.raises(SystemExit) as stop:
        front_door(door.main, [word.format(file=file, data=data) for word in words])
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.startswith("error: ") and str(file) in told and told.count("\n") == 1


def test_a_wording_is_cut_in_one_place(capsys: pytest.CaptureFixture[str]):
    def refuses(argv: list[str]) -> None:
        raise UserError(f"the value is {'x' * 10**7}; expected less.")

    with pytest.raises(SystemExit):
        front_door(refuses, [])
    told = capsys.readouterr().err
    assert len(told) < LONGEST + 20 and told.startswith("error: the value is xxx") and told.endswith("expected less.\n")


@given(st.integers(0, 10**6) | st.text(max_size=300) | st.lists(st.integers(), max_size=99), st.integers(8, 100))
def test_what_somebody_wrote_is_quoted_in_part(value: Any, most: int):
    said = quoted(value, most)
    assert len(said) <= 6 * most + 40 and (repr(value) == said or "more characters)" in said)
    assert len(repr(value)) > most or said == repr(value)
    assert shortened("x" * most, most) == "x" * most and len(shortened("x" * 10**6, most)) < most + 40


def test_names_are_compared_in_bounded_number(monkeypatch: pytest.MonkeyPatch):
    compared: list[int] = []

    def close(name: str, known: list[str], n: int, cutoff: float) -> list[str]:
        compared.append(len(name) * sum(map(len, known)))
        return []

    monkeypatch.setattr("difflib.get_close_matches", close)
    known = [f"model.layers.{i}.weight" for i in range(10**5)]
    for name, others in (("x" * 10**7, known), ("widht", known), ("x" * 10**7, ["y" * 10**7] * 10), ("a", [])):
        assert nearest(name, others) == ""
    assert len(compared) == 1 and compared[0] < 10**6, "the misspelled word alone"
