"""A state that is damaged, in whatever file and way: it is named and set aside, and the newest whole one goes on."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from sla_jax.checkpoint.staging import SUMS
from sla_jax.errors import UserError
from sla_jax.training.resume import Steps
from sla_jax.training.states import LATE
from tests.damage import flip

TREE = {"a": jnp.arange(3.0), "b": {"c": jnp.ones((2, 2))}}


def saved(folder: Path, *numbers: int, keep: int = 3) -> None:
    """States whose "a" is their number."""
    steps = Steps(folder, keep)
    for number in numbers:
        steps.save(number, TREE | {"a": jnp.full(3, float(number))})
    steps.close()


def restored(folder: Path) -> float:
    steps = Steps(folder, 3)
    try:
        found = steps.restore(TREE)
        assert found is not None
        return float(found["a"][0])
    finally:
        steps.close()


def numbers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the states 1, 2, 3. Read only."""
    folder = tmp_path_factory.mktemp("states") / "steps"
    saved(folder, 1, 2, 3)
    return folder


@pytest.fixture
def steps(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "steps"))


def files(state: Path) -> list[Path]:
    return sorted(path for path in state.rglob("*") if path.is_file())


def test_every_file_of_a_state_has_its_sum(made: Path) -> None:
    listed = {line.split("  ")[1] for line in (made / "3" / SUMS).read_text().splitlines()}
    assert listed == {path.relative_to(made / "3").as_posix() for path in files(made / "3")} - {SUMS}
    assert listed.issuperset(LATE)


def test_a_state_has_its_sums_as_soon_as_it_has_its_name(tmp_path: Path) -> None:
    """orbax gives it its name while the run goes on: a kill may come before anyone has waited for it."""
    steps = Steps(tmp_path / "steps", 2)
    steps.save(1, TREE)
    steps.manager.wait_until_finished()
    killed = Path(shutil.copytree(tmp_path / "steps", tmp_path / "killed"))
    steps.close()
    assert len((killed / "1" / SUMS).read_text().splitlines()) == len(files(killed / "1")) - 1 - len(LATE)
    assert restored(killed) == 0
    assert len((killed / "1" / SUMS).read_text().splitlines()) == len(files(killed / "1")) - 1


def test_a_flipped_bit_in_any_file_is_named_and_the_state_before_it_goes_on(made: Path, tmp_path: Path, capsys) -> None:
    for number, file in enumerate(files(made / "3")):
        folder = Path(shutil.copytree(made, tmp_path / str(number) / "steps"))
        damaged = folder / "3" / file.relative_to(made / "3")
        flip(damaged)
        assert restored(folder) == 2
        said, aside = " ".join(capsys.readouterr().err.split()), folder.parent / "steps-damaged" / "3"
        assert f"warning: the state {folder / '3'} cannot be used and is now {aside}: {damaged}" in said
        assert "damaged" in said and numbers(folder) == ["1", "2"] and len(files(aside)) == len(files(made / "3"))


def emptied(state: Path) -> None:
    shutil.rmtree(state)
    state.mkdir()


def cut(state: Path) -> None:
    for path in files(state):
        path.write_bytes(b"")


def bared(state: Path) -> None:
    for path in files(state):
        if path.name != SUMS:
            path.unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (emptied, "there is no file"),
        (cut, "is damaged"),
        (lambda state: shutil.rmtree(state / "default"), "is missing"),
        (lambda state: os.unlink(state / LATE[0]), "is missing"),
        (bared, "is missing"),
    ],
)
def test_whatever_was_lost_the_newest_whole_state_goes_on(
    steps: Path, damage: Callable[[Path], None], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in ("3", "2"):
        damage(steps / number)
    assert restored(steps) == 1
    assert numbers(steps) == ["1"] and numbers(steps.parent / "steps-damaged") == ["2", "3"]
    assert said in " ".join(capsys.readouterr().err.split())


def test_keeping_counts_whole_states_and_a_number_may_be_set_aside_twice(steps: Path) -> None:
    flip(next((steps / "3" / "default" / "d").iterdir()))
    flip(steps / "1" / LATE[0])  # older than the one that goes on: seen without reading its arrays
    assert restored(steps) == 2 and numbers(steps) == ["2"]
    saved(steps, 3, 4)
    assert numbers(steps) == ["2", "3", "4"]
    flip(next((steps / "4" / "default" / "d").iterdir()))
    flip(next((steps / "3" / "default" / "d").iterdir()))
    assert restored(steps) == 2
    assert numbers(steps.parent / "steps-damaged") == ["1", "3", "3.2", "4"]


def test_with_no_whole_state_all_stay_where_they_are(steps: Path) -> None:
    for number in numbers(steps):
        flip(steps / number / SUMS)
    said = r"none of the states in .*steps can be used\. 3: .*3/sla_jax\.sha256.* 2: .* 1: .* or move .*steps away"
    for _ in range(2):
        with pytest.raises(UserError, match=said):
            Steps(steps, 3)
    assert numbers(steps) == ["1", "2", "3"] and not (steps.parent / "steps-damaged").exists()


def test_a_state_without_sums_is_taken_and_set_aside_if_orbax_cannot_read_it(
    steps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of older releases. What orbax says of damaged files is made up: its own errors leave event loops open."""
    real, unreadable = ocp.CheckpointManager.restore, set[int]()

    def restore(self: Any, step: int, **more: Any) -> Any:
        if step in unreadable:
            raise KeyError(f"there is no d/{step}")
        return real(self, step, **more)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", restore)
    unreadable.add(3)
    with pytest.raises(KeyError, match="d/3"):
        restored(steps)  # its sums are right, so it is no damage
    for number in numbers(steps):
        (steps / number / SUMS).unlink()
    assert restored(steps) == 2 and numbers(steps) == ["1", "2"]
    unreadable.update((1, 2))
    with pytest.raises(UserError, match=r"the state .*steps/1 cannot be restored: .*d/1.* or move .*steps away"):
        restored(steps)
    assert numbers(steps) == ["1"] and numbers(steps.parent / "steps-damaged") == ["2", "3"]
