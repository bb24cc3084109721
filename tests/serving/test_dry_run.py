"""`serve.py --dry-run`: what it prints is derived from compiled programs; what cannot be is an error that says why."""

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from sla_jax import topology
from sla_jax.checkpoint import store
from sla_jax.decode.methods import Trees
from sla_jax.errors import UserError
from sla_jax.serving import dry_run, worker
from sla_jax.serving.settings import Profile
from tests.serving.real_worker import PROFILES, serve_config


def report(checkpoint: Path, capsys: Any, **changes: Any) -> str:
    dry_run.report(serve_config(checkpoint, profiles=PROFILES[:2], dry_run=True, **changes))
    return str(capsys.readouterr().out)


def test_every_profile_is_compiled_and_told(checkpoint: Path, capsys: Any) -> None:
    said = report(checkpoint, capsys)
    assert "greedy" in said and "sla" in said and "It fits" in said
    config = serve_config(checkpoint)
    assert config.engine.context == 128
    # keys and values of a slot: 2 layers × 2 × 2 heads × 8 × float32, for 144 positions and (sla) 4 lanes of 6 more
    assert f"{2 * 2 * 2 * 8 * 4 * (144 + 3) / 1e6:.1f} MB" in said
    assert f"{2 * 2 * 2 * 8 * 4 * (144 + 4 * 6) / 1e6:.1f} MB" in said


def test_a_server_that_is_told_no_context_says_which_it_took(
    checkpoint: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = worker.open_model(serve_config(checkpoint, engine={"context": None, "buckets": ()}))
    own = store.info(checkpoint).config.max_positions
    assert opened.sizes.context == opened.model.context == opened.config.engine.context == own

    def no_weights(*arguments: Any, **options: Any) -> None:
        raise UserError("no weights")

    monkeypatch.setattr(worker, "load_model", no_weights)
    with caplog.at_level(logging.INFO), pytest.raises(UserError, match="no weights"):
        opened.worker(lambda said: None)
    assert [record.getMessage() for record in caplog.records] == [opened.why]
    assert opened.why.startswith(f"context {own}: as long as the model knows")


def test_pools_are_compiled_in_every_phase(checkpoint: Path, capsys: Any) -> None:
    """A slot is the largest pool of a schedule, beside a whole prompt: the longest answers here have 127 tokens."""
    profiles = (
        PROFILES[0],
        Profile(name="rejection", method="speculative_rejection", n=4, chunk=4, slots=3),  # 4 lanes to 28, 2 to 60, …
        Profile(name="beam", method="beam", beams=3, slots=1),
        Profile(name="steps", method="step_beam", n=4, width=2, chunk=4, lookahead=1, slots=2),  # room for a chunk more
    )
    dry_run.report(serve_config(checkpoint, profiles=profiles, dry_run=True))
    said = str(capsys.readouterr().out)
    token = 2 * 2 * 2 * 8 * 4  # 2 layers × keys and values × 2 heads × 8 × float32
    assert "It fits" in said
    assert re.search(rf"rejection .* 3 .* 12 .*{token * (144 + 4 * 128) / 1e6:.1f} MB", said)
    assert re.search(rf"beam .* 1 .* 3 .*{token * (144 + 3 * 128) / 1e6:.1f} MB", said)
    assert re.search(rf"steps .* 2 .* 8 .*{token * (144 + 4 * 132) / 1e6:.1f} MB", said)


def test_a_mesh_splits_what_a_chip_holds(checkpoint: Path) -> None:
    """Half the slots and half the heads: a quarter of the state, but for what every chip keeps."""
    from sla_jax.serving.engine import Program
    from sla_jax.serving.sizes import sizes_of

    config = serve_config(checkpoint, dry_run=True)
    model = store.info(checkpoint).config
    sizes = sizes_of(config.engine, config.profiles, max_positions=model.max_positions)
    decoder = PROFILES[0].decoder()
    assert isinstance(decoder, Trees)
    program = Program(model, decoder, 4, 2)
    one = dry_run.machine_of(config)
    four = dry_run.machine_of(serve_config(checkpoint, dry_run=True, mesh={"data": 2, "tensor": 2}))
    alone, _ = dry_run.round_bytes(program, 4, sizes, one)
    split, running = dry_run.round_bytes(program, 4, sizes, four)
    assert alone / 4 <= split < alone / 2
    assert running > 0
    weights = [dry_run.chip_bytes(dry_run.policy_shapes(model, machine)) for machine in (one, four)]
    assert weights[0] / 2 < weights[1] < weights[0]


def test_what_does_not_fit_is_an_error(checkpoint: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_of = dry_run.machine_of
    monkeypatch.setattr(
        dry_run, "machine_of", lambda config: dataclasses.replace(machine_of(config), chip_bytes=1_000_000.0)
    )
    with pytest.raises(UserError, match="does not fit.*Lower slots"):
        report(checkpoint, capsys)


def test_targets_that_are_none_are_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for target in ("v5x:2x4", "v5e", "h100:8"):
        with pytest.raises(UserError, match=f"{target}.*v5e:2x4"):
            topology.chip_memory(target)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="libtpu"):
        topology.slice_devices("v5e:2x4")
    assert topology.chip_memory("v5p:2x2x1") == 95e9
