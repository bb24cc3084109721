"""The decoder that docs/decoders.md shows is run as it stands there."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from sla_jax.decode.greedy import Greedy
from sla_jax.decode.sampling import Sampling
from sla_jax.decode.sla import SLA
from tests import toys
from tests.decode.test_toys import some_rows

PAGE = Path(__file__).resolve().parents[2] / "docs" / "decoders.md"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The class of the page's only block of Python."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) <= 40
    file = tmp_path_factory.mktemp("decoders") / "best_of_chunk.py"
    file.write_text(code, encoding="utf-8")
    return runpy.run_path(str(file))["BestOfChunk"]


def test_of_one_continuation_it_is_plain_sampling(example: Any) -> None:
    rows = [row._replace(sampling=Sampling(temperature=1.0, seed=i)) for i, row in enumerate(some_rows(1, limits=6))]
    assert [a.tokens for a in toys.play(example(width=1, chunk=2), rows)] == [
        a.tokens for a in toys.play(Greedy(chunk=2), rows)
    ]


def test_of_several_it_is_look_ahead_of_depth_0_from_the_first_chunk_on(example: Any) -> None:
    rows = some_rows(2, limits=6)
    ours = toys.play(example(width=3, chunk=2), rows)
    theirs = toys.play(SLA(width=3, chunk=2, depth=0, branch_first=True), rows)
    assert [a.tokens for a in ours] == [a.tokens for a in theirs]
    assert [a.tokens for a in ours] != [a.tokens for a in toys.play(Greedy(chunk=2), rows)]
