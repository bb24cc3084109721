"""docs/serving.md names every option with its default, every route, every metric."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, get_type_hints

import pytest

from sla_jax.serving.metrics import Metrics
from sla_jax.serving.settings import Profile, ServeConfig
from tests.programs import ROOT
from tests.serving.scripted import Scripted
from tests.serving.test_compat import app_of

PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


def options(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, default) of every field; nothing for a field without one."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from options(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field.default


def row_of(name: str) -> str:
    rows = [line for line in PAGE.splitlines() if line.startswith("| `") and f"`{name}`" in line.split("|")[1]]
    assert rows, f"docs/serving.md has no row for the option {name}"
    return rows[0]


@pytest.mark.parametrize(("name", "default"), list(options(ServeConfig)))
def test_every_option_has_its_row_and_its_default(name: str, default: Any):
    row = row_of(name)
    if isinstance(default, str | int | float) and not isinstance(default, bool):
        assert re.search(rf"\b{re.escape(f'{default:g}' if isinstance(default, float) else str(default))}\b", row)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Profile)])
def test_every_setting_of_a_profile_is_explained(field: str):
    assert f"`{field}`" in PAGE or re.search(rf"\{{name: \w+, .*\b{field}: ", PAGE) or field == "name"


def test_every_route_is_named():
    for path in app_of(Scripted()).openapi()["paths"]:
        assert path.split("{")[0].rstrip("/") in PAGE, path


def test_every_metric_is_named():
    metrics = Metrics({"greedy": 1})
    names = {found.name for found in metrics.registry.collect()}
    missing = {name for name in names if name not in PAGE}
    assert len(names) > 10 and not missing
