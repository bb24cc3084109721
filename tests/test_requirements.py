"""The lists that are installed agree: hashes of every pin, all that an extra needs; and licences are known."""

import importlib.metadata
import re
import tomllib
from email.message import Message

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import licences
from tests.programs import ROOT

FOLDER = ROOT / "requirements"
LISTS = ("build", "core", "dev", "eval", "gguf", "jetstream", "libtpu", "serve", "test", "torch")
TORCH = "torch"  # whose CPU wheel has no hash that holds everywhere
PIN = re.compile(r"([A-Za-z0-9._-]+)==(\S+)( ; .+?)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")


def pins(name: str) -> dict[str, Requirement]:
    """The pins of a list, by name."""
    text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    body = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    found = [(match[1], f"{match[1]}=={match[2]}{match[3] or ''}") for match in PIN.finditer(body)]
    assert "".join(match[0] for match in PIN.finditer(body)) == body, f"{name}.txt has a line without a hash"
    return {canonicalize_name(one): Requirement(line) for one, line in found}


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def needed(lines: list[str]) -> set[str]:
    """Names of all that these requirements need on this machine, themselves too, by what is installed."""
    left, seen = [(Requirement(line), "") for line in lines], set[tuple[str, str]]()
    while left:
        one, extra = left.pop()
        if one.marker is not None and not one.marker.evaluate({"extra": extra}):
            continue
        for wanted in ("", *one.extras):
            if (one.name, wanted) not in seen:
                seen.add((one.name, wanted))
                left += [(Requirement(line), wanted) for line in importlib.metadata.requires(one.name) or []]
    return {canonicalize_name(name) for name, _ in seen}


def test_there_are_no_other_lists():
    assert {path.stem for path in FOLDER.iterdir()} == set(LISTS)


@pytest.mark.parametrize("name", LISTS)
def test_every_pin_is_that_of_the_constraints(name):
    known = constraints()
    for one, pin in pins(name).items():
        if one in known:
            assert str(pin.specifier) == f"=={known[one]}", one
        else:  # for other systems than the one that the constraints were resolved on
            assert name == "jetstream" or (pin.marker is not None and not pin.marker.evaluate()), one


def test_every_constraint_has_its_hashes():
    assert set(constraints()) - set().union(*map(pins, LISTS)) == {TORCH}


@pytest.mark.parametrize("extra", [None, "serve", "gguf", "eval", "test"])
def test_a_list_has_all_that_its_extra_needs(extra):
    given = project()
    lines = given["dependencies"] if extra is None else given["optional-dependencies"][extra]
    listed = [extra or "core", "core", *(["eval", "torch", "build"] if extra == "test" else [])]  # as in `make test`
    assert needed(lines) - set().union(*map(pins, listed)) == ({TORCH} if extra == "test" else set())


def test_nothing_is_installed_without_a_hash_but_torch():
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    bare = [line.strip() for line in lines if line.startswith("\t") and "$(PIP)" in line]
    assert bare == [
        "$(PIP) --constraint constraints.txt $(TORCH)",
        "$(PIP) --no-deps --target $(UV) uv==0.13.9",  # what renews the lists; nothing else needs it
    ]
    (ours,) = [line for line in lines if line.startswith("install = ")]
    assert ours.startswith("install = $(HASHED) ") and ours.endswith(
        "$(PIP) --no-deps --no-build-isolation --editable ."
    )


class Told:
    """A package with these metadata."""

    version = "1"

    def __init__(self, name: str, **fields: str | list[str]):
        self.name, self.metadata = name, Message()
        for field, values in fields.items():
            for value in [values] if isinstance(values, str) else values:
                self.metadata[field.replace("_", "-")] = value


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"License_Expression": "MIT AND (Apache-2.0 OR BSD-3-Clause)"}, "MIT AND (Apache-2.0 OR BSD-3-Clause)"),
        ({"License_Expression": "GPL-3.0-only", "License": "MIT"}, licences.UNKNOWN),
        ({"License": "Apache 2.0"}, "Apache-2.0"),
        (
            {"License": "Copyright, all of it …", "Classifier": ["License :: OSI Approved :: BSD License"]},
            "BSD-3-Clause",
        ),
        ({"Classifier": ["License :: OSI Approved :: GNU General Public License v3 (GPLv3)"]}, licences.UNKNOWN),
        ({"License": "Proprietary"}, licences.UNKNOWN),
        ({}, licences.UNKNOWN),
    ],
)
def test_a_licence_is_known_or_unknown(fields, said):
    assert licences.licence(Told("one", **fields)) == said


def test_all_licences_are_known(capsys, monkeypatch):
    assert licences.main() == 0
    assert re.search(r"^numpy +\d\S+ +BSD-3-Clause", capsys.readouterr().out, re.MULTILINE)
    monkeypatch.setattr(licences.importlib.metadata, "distributions", lambda: [Told("strange", License="Mine alone")])
    assert licences.main() == 1
    assert "strange" in capsys.readouterr().err
