"""convert.py as a program: its commands, what it prints, and exit code 2 on every mistake."""

import subprocess
import sys
from pathlib import Path

import pytest

import convert
from sla_jax.errors import UserError, front_door
from tests.checkpoint import models

ROOT = Path(__file__).resolve().parents[2]


def test_import_inspect_export(tmp_path, capsys):
    src = models.sla_dir(tmp_path / "src")
    convert.main(["import", str(src), str(tmp_path / "ours"), "--dtype", "bfloat16"])
    assert "note: the source has no tokenizer.json" in capsys.readouterr().err
    convert.main(["export", str(tmp_path / "ours"), str(tmp_path / "back"), "--dtype", "float32"])
    capsys.readouterr()
    convert.main(["inspect", str(tmp_path / "ours")])
    printed = capsys.readouterr().out
    for expected in (
        "LlamaForCausalLMRewardTransformer",
        "bfloat16",
        "ChannelConfig(width=12",
        "2 × 32 × 16",
        "sha256",
    ):
        assert expected in printed
    assert str(tmp_path) not in printed.replace(str(tmp_path / "ours"), "")
    assert models.tensors(tmp_path / "back").keys() == models.tensors(src).keys()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no command was given; use one of import, export, inspect"),
        (["imprt", "a", "b"], "no command 'imprt'.*Did you mean 'import'"),
        (["import", "a", "b", "--dtyp", "float32"], "does not know '--dtyp'.*Did you mean '--dtype'"),
        (["import", "a", "b", "--dtype", "float31"], "float31"),
        (["import", "a"], "PATH"),
        (["import", "a", "b"], "there is no a. A source is"),
        (["export", "a", "b"], "there is no checkpoint at a"),
        (["inspect", "a"], "there is no checkpoint at a"),
    ],
)
def test_mistakes_are_one_paragraph(argv, message):
    with pytest.raises(UserError, match=message) as caught:
        convert.main(argv)
    assert "\n" not in str(caught.value)


def test_exit_code_2_and_no_traceback(capsys):
    with pytest.raises(SystemExit) as stop:
        front_door(convert.main, ["import", "a", "b", "--nonsense"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: convert.py import does not know '--nonsense'")


def test_the_program_runs_and_help_is_quick_to_say(tmp_path):
    command = [sys.executable, str(ROOT / "convert.py")]
    done = subprocess.run([*command, "import", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "--channel" in done.stdout and "--overwrite" in done.stdout
    done = subprocess.run([*command, "inspect", "nothing"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: there is no checkpoint at nothing")
    assert done.stdout == ""
