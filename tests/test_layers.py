"""The house's rules hold, and each of them can be broken: imports only go down, files and functions stay small."""

from pathlib import Path

import pytest

from tests import house


def breaks(rule, path: str, text: str) -> list[str]:
    return list(rule(house.Source(Path(path), text)))


@pytest.fixture(scope="module")
def told() -> dict[str, list[str]]:
    """What every rule says of the project. One pass over the files: a syntax tree is made once and let go."""
    found: dict[str, list[str]] = {rule.__name__: [] for rule in house.RULES}
    for source in house.sources():
        for rule in house.RULES:
            found[rule.__name__] += rule(source)
    return found


@pytest.mark.parametrize("rule", [rule.__name__ for rule in house.RULES])
def test_the_project_keeps_the_rule(told, rule):
    assert told[rule] == []


def test_the_project_reaches_for_nothing_beside_it():
    assert house.shared_folder() == []


def test_every_file_of_the_project_is_looked_at():
    names = {str(source.path) for source in house.sources()}
    assert {"sla_jax/errors.py", "sla_jax/model/config.py", "tests/house.py"} <= names
    parts = {path.stem for path in (house.ROOT / "sla_jax").iterdir() if path.is_dir() or path.suffix == ".py"}
    assert {part for part in parts if not part.startswith("_")} <= set().union(*house.LEVELS)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("sla_jax/errors.py", "import sla_jax.config"),
        ("sla_jax/text.py", "from sla_jax.config import parse"),
        ("sla_jax/text.py", "from sla_jax import model"),
        ("sla_jax/model/forward.py", "from sla_jax.decode import lanes"),
        ("sla_jax/model/forward.py", "from ..decode import lanes"),
        ("sla_jax/model/forward.py", "def f() -> None:\n    import sla_jax.checkpoint.store"),
        ("sla_jax/decode/lanes.py", "import sla_jax.checkpoint"),
        ("sla_jax/checkpoint/store.py", "from sla_jax.decode.sla import SLA"),
        ("sla_jax/training/loop.py", "import sla_jax.serving.engine"),
        ("sla_jax/training/loop.py", "from sla_jax import load"),
        ("sla_jax/training/loop.py", "from sla_jax.api import load"),
        ("sla_jax/training/loop.py", "import train"),
        ("sla_jax/api.py", "import train"),
        ("train.py", "import convert"),
    ],
)
def test_imports_that_go_up_or_sideways_are_found(path, line):
    assert len(breaks(house.layers, path, line)) == 1


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("sla_jax/text.py", "from sla_jax.errors import UserError"),
        ("sla_jax/model/forward.py", "from sla_jax.model import config\nfrom .layers import norm"),
        ("sla_jax/decode/lanes.py", "import jax\nfrom sla_jax.errors import UserError"),
        ("sla_jax/api.py", "from sla_jax.serving import engine\nfrom sla_jax import decode"),
        ("sla_jax/__init__.py", "from sla_jax.api import load"),
        ("generate.py", "import sla_jax\nfrom sla_jax.api import load"),
        ("tests/test_api.py", "import train\nimport sla_jax"),
    ],
)
def test_imports_that_go_down_are_not(path, line):
    assert breaks(house.layers, path, line) == []


def test_the_other_rules_can_be_broken_too():
    assert breaks(house.file_length, "a.py", "\n" * 401)
    assert breaks(house.function_length, "a.py", "def f():\n" + "    x = 1\n" * 60)
    assert not breaks(house.function_length, "a.py", "def f():\n" + "    x = 1\n" * 59)
    assert breaks(house.no_suppressions, "a.py", "x = 1  # no" + "qa: E501")
    assert breaks(house.no_suppressions, "a.py", "x = 1  # type: " + "ignore[assignment]")
    assert not breaks(house.no_suppressions, "a.py", "x = '# no" + "qa'")
    assert breaks(house.annotated, "sla_jax/a.py", "def f(x) -> int: ...")
    assert breaks(house.annotated, "sla_jax/a.py", "class A:\n    def __call__(self, x: int): ...")
    assert not breaks(house.annotated, "sla_jax/a.py", "class A:\n    def __init__(self, x: int): ...\ndef _f(x): ...")
    assert breaks(house.documented, "sla_jax/a.py", "x = 1")
    assert breaks(house.nnx_in_model_only, "sla_jax/decode/a.py", "from flax import nnx")
    assert not breaks(house.nnx_in_model_only, "sla_jax/model/a.py", "from flax import nnx")
    assert breaks(house.decoders_know_no_model, "sla_jax/decode/a.py", "from sla_jax.model.config import ModelConfig")
    assert breaks(house.runtime_protocols, "sla_jax/a.py", "class P(Protocol[T]): ...")
    assert not breaks(house.runtime_protocols, "sla_jax/a.py", "@runtime_checkable\nclass P(Protocol): ...")
    assert breaks(house.plain_transforms, "sla_jax/model/a.py", "f = nnx.jit(g)")


def test_a_path_outside_the_project_is_found(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("one\npython train.py --data ../sh" + "ared/data\n")
    assert house.shared_folder(tmp_path) == ["docs/a.md:2: names a folder outside the project"]
