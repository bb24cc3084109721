"""Says which saved states of a run can be used, and sets the others aside.

A state is a folder of orbax's with the sums of its files (`checkpoint.staging`); one of an older release has none.
"""

import os
from pathlib import Path

from sla_jax.checkpoint import staging
from sla_jax.errors import UserError
from sla_jax.files import read_object, sync
from sla_jax.progress import say

LATE = ("_CHECKPOINT_METADATA", "commit_success.txt")  # what orbax writes last into a state
SMALL = 1 << 20  # bytes up to which a file of a state that is not restored is read to check it


def sift(folder: Path) -> None:
    """Set aside the states in front of the newest one that is whole, and older ones that are seen to be damaged without
    reading their arrays. Raises UserError, and leaves all as it is, where there are states and none is whole."""
    states = sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: -int(path.name))
    wrong: dict[Path, str] = {}
    whole = False
    for state in states:
        found = _wrong(state, SMALL if whole else None)
        if found is not None:
            wrong[state] = found
        elif not whole:
            whole = True
            if (state / staging.SUMS).exists():
                staging.write_sums(state)  # those of LATE too, where a kill came before they were listed
    if states and not whole:
        told = " ".join(f"{state.name}: {found}" for state, found in wrong.items())
        raise UserError(
            f"none of the states in {folder} can be used. {told} Take one from a copy, or move {folder} away and run "
            "the same command again to go on without them."
        )
    for state, found in wrong.items():
        set_aside(state, found)


def _wrong(state: Path, most: int | None) -> str | None:
    """What is wrong with a state; of one without sums, no more than whether orbax would look at it."""
    if (state / staging.SUMS).exists():
        return staging.damage(state, most=most)
    try:
        read_object(state / LATE[0])
    except UserError as error:
        return str(error)
    return None


def set_aside(state: Path, wrong: str) -> None:
    """Move a state to OUT/steps-damaged or OUT/best-damaged, and say why."""
    aside = state.parent.with_name(f"{state.parent.name}-damaged")
    aside.mkdir(exist_ok=True)
    taken = {path.name for path in aside.iterdir()}
    name = next(name for name in (state.name, *(f"{state.name}.{n}" for n in range(2, 10**6))) if name not in taken)
    os.rename(state, aside / name)
    for folder in (aside, state.parent):
        sync(folder)
    say(f"warning: the state {state} cannot be used and is now {aside / name}: {wrong}")
