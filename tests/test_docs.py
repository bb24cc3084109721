"""Every command in README.md and docs/ works as written.

README's programs are run, in order, in a scratch copy of the project; a command anywhere else must name a program, a
subcommand and flags that exist; a make target must be in the Makefile; a linked file must be there.
"""

import contextlib
import functools
import html
import io
import os
import re
import runpy
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sla_jax.checkpoint import smollm2
from sla_jax.errors import UserError
from tests.flags import QUICK
from tests.programs import ROOT, run_program
from tests.serving.background import Background

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted(ROOT.glob("docs/*.md")),
    *ROOT.glob("channels/*/README.md"),
]
# appended to generate.py and serve.py: what is tested is that the command works
SHORT = ["--max-tokens", "12"]
ONE_SLOT = [word for profile in range(3) for word in (f"--profiles.{profile}.slots", "1")]


def commands(page: Path) -> list[list[str]]:
    """The `python …` and `make …` lines of a page's shell blocks, as words without comments."""
    blocks = re.findall(r"```(?:bash|sh|console)?\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [line for line in lines if re.match(r"(\.venv/bin/)?(python|make) ", line)]
    return [shlex.split(re.sub(r"[\[\]…]|\|\S+", " ", line), comments=True) for line in found]


ALL = [pytest.param(words, id=f"{page.name}-{' '.join(words)[:60]}") for page in PAGES for words in commands(page)]


@functools.cache
def help_of(*words: str) -> str:
    """What a program says of itself; it is run in this process, which has imported most of what it needs."""
    said = io.StringIO()
    program, *others = [words[1].replace(".", "/") + ".py", *words[2:]] if words[0] == "-m" else words
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), pytest.raises(SystemExit) as stop:
        patch.setenv("COLUMNS", "300")
        patch.setattr(sys, "argv", [program, *others, "--help"])
        runpy.run_path(str(ROOT / program), run_name="__main__")
    assert not stop.value.code
    return said.getvalue()


def test_there_are_commands_to_check():
    assert len(ALL) >= 10


@pytest.mark.parametrize("words", ALL)
def test_a_documented_command_exists_with_its_flags(words):
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
        return
    words = words[1:]
    program = words[:2] if words[0] == "-m" else words[:1]
    if program[0] == "-m":
        assert (ROOT / (program[1].replace(".", "/") + ".py")).is_file()
    else:
        assert (ROOT / program[0]).is_file()
    flags = {word.partition("=")[0] for word in words[len(program) :] if word.startswith("--")}
    if flags:
        subcommand = words[1:2] if program[0] in ("convert.py", "eval.py") or words[1:2] == ["pairs"] else []
        configs = [word for word in words[2:3] if word.endswith(".yaml") and program == ["eval.py"]]
        known = set(re.findall(r"--[\w.-]+", help_of(*program, *subcommand, *configs)))
        assert flags <= known | {"--help", "--debug"}


def test_linked_files_exist():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_picture_is_of_the_demo():
    (prompt,) = re.findall(r"^PROMPT \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    picture = html.unescape((ROOT / "docs" / "demo.svg").read_text(encoding="utf-8"))
    assert prompt in picture.replace("\xa0", " ")


def test_a_checkpoint_with_another_channel_is_imported_anew(tmp_path):
    def planned(*words):
        command = ["make", "-n", "-o", ".venv/.stamp-demo", "demo", f"CHECKPOINT={tmp_path}", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    (tmp_path / "sla_jax.json").touch()
    (tmp_path / ".stamp-smollm2-hh").touch()
    assert "convert.py import" in planned()
    assert "convert.py import" not in planned("CHANNEL=channels/smollm2-hh/channel.safetensors")


# what takes minutes on the real model; `make eval-smoke` runs the first three, tests/ the like on tiny ones
MINUTES = {
    *("configs/eval/smoke.yaml", "configs/eval/judges-smoke.yaml", "runs/eval/smoke"),
    "configs/serve/smollm2-viewer.yaml",
}


def test_the_commands_of_the_readme_run(tmp_path):
    try:
        smollm2.fetch()
    except UserError as error:
        pytest.skip(str(error))
    for entry in ROOT.iterdir():
        if entry.name not in (".cache", "runs", ".git"):
            (tmp_path / entry.name).symlink_to(entry)
    ran = [words[1:] for words in commands(ROOT / "README.md") if words[0] == "python"]
    environment = {"PYTHONPATH": str(ROOT), "XLA_FLAGS": QUICK, "PATH": os.environ["PATH"]}
    for words in ran:
        if MINUTES.intersection(words):
            continue
        if words[0] == "serve.py":
            serve(words, tmp_path, environment)
            continue
        extra = SHORT if words[0] == "generate.py" else []
        run_program(*words, *extra, cwd=tmp_path, **environment)
    assert {words[0] for words in ran} == {"convert.py", "generate.py", "serve.py", "train.py", "eval.py"}


def serve(words, cwd, environment):
    """Start the server, send it README's curl and run README's Python on it, and end it, at a port that is free."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (curl,) = re.findall(r"```bash\n(curl .*?)```", text, re.DOTALL)
    (client,) = re.findall(r"```python\n(from openai import.*?)```", text, re.DOTALL)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [*(port if word == "8000" else word for word in words), *ONE_SLOT]
    with Background(*command, cwd=cwd, **environment) as server:
        server.line_with("ready: http://")
        asked = subprocess.run(
            curl.replace("8000", port), shell=True, cwd=cwd, capture_output=True, text=True, check=True, timeout=120
        )
        said = run_program("-c", client.replace("8000", port), cwd=cwd, **environment).stdout
        server.signal()
        assert server.exit_code() == 0
    assert asked.stdout.startswith("data: {") and asked.stdout.endswith("data: [DONE]\n\n")
    assert "explored_tokens=" in said and len(said) > 60
    assert len(said.partition("shorter: ")[2]) > 10
