"""Where rows of prompts, answers and training data come from: files, or splits that the `datasets` library loads."""

from typing import Any

from sla_jax.errors import UserError
from sla_jax.files import read_rows

__all__ = ["load_splits", "read_rows"]


def load_splits(name: str, subset: str | None, split: str | None, otherwise: str) -> dict[str, Any]:
    """The splits of a data set that the `datasets` library loads, by name: one, or with None all of them.

    Raises UserError; `otherwise` says how its rows can be given without a connection."""
    import datasets

    try:
        found = datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # the library raises a dozen unrelated types: connection, not found, bad config …
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"the data set {name!r} (subset {subset}, split {split or 'all'}) cannot be loaded: {reason} If this "
            f"machine is offline, download it elsewhere and {otherwise}."
        ) from error
    return dict(found) if split is None else {split: found}
