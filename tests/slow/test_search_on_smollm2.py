"""generate.py on the real model against a PyTorch search that keeps no cache: the same tokens, near-ties excepted.

A random channel is attached by `convert.py --channel`. A difference is excused only if the reference decided something
by less than 1e-4 no later than at the first token that differs; excuses are counted and printed (pytest -rP shows it).
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import sla_jax
from sla_jax.text import chat_ids, load_tokenizer
from tests import oracles, smollm2, torch_reference

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
MAX_TOKENS = 48
PROMPTS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Give me three tips for sleeping better.",
    "Why is the sky blue?",
    "Somebody at work keeps taking my lunch. What should I say?",
)
SETTINGS = ((1, 10, 0), (2, 5, 0), (2, 4, 1), (2, 10, 2))  # n, k, d


class Real(NamedTuple):
    """The checkpoint with a random channel, and the same with a channel that rewards everything equally."""

    model: Any
    channel: torch_reference.Weights
    checkpoint: Path
    constant: Path


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    """Both checkpoints, made by convert.py."""
    model = smollm2.torch_model()
    folder = tmp_path_factory.mktemp("smollm2")
    channel = torch_reference.random_channel(model, width=64, seed=1)
    flat = channel | {"sr_head.weight": torch.zeros_like(channel["sr_head.weight"])}
    for name, weights in (("random", channel), ("constant", flat)):
        smollm2.write_channel(folder / f"{name}.safetensors", weights)
        program("convert.py", "import", "smollm2", str(folder / name), "--channel", str(folder / f"{name}.safetensors"))
    return Real(model, channel, folder / "random", folder / "constant")


def program(*command: str) -> str:
    """Run one of the front doors as a user does; its standard output."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def generate(checkpoint: Path, prompt: str, *flags: str) -> list[dict[str, Any]]:
    """The JSON objects that generate.py prints."""
    out = program("generate.py", str(checkpoint), prompt, "--json", "--max-tokens", str(MAX_TOKENS), *flags)
    return [json.loads(line) for line in out.splitlines()]


def search(width: int, chunk: int, depth: int) -> list[str]:
    """Flags."""
    return ["--search.width", str(width), "--search.chunk", str(chunk), "--search.depth", str(depth)]


@functools.cache
def prompt_ids(checkpoint: Path, prompt: str) -> tuple[int, ...]:
    """The prompt under the checkpoint's chat template."""
    return tuple(chat_ids(load_tokenizer(checkpoint), [{"role": "user", "content": prompt}]))


@pytest.mark.parametrize(("width", "chunk", "depth"), SETTINGS)
def test_generate_is_the_reference(real: Real, width: int, chunk: int, depth: int) -> None:
    asked = oracles.Settings(
        width=width, chunk=chunk, depth=depth, max_tokens=MAX_TOKENS, end_tokens=frozenset({smollm2.END})
    )
    excused, close = 0, 0
    for prompt in PROMPTS:
        ties = oracles.NearTies(1e-4)
        ids = prompt_ids(real.checkpoint, prompt)
        theirs = oracles.sla(torch_reference.TorchWorld(real.model, real.channel, ids), asked, ties)
        *rounds, last = generate(real.checkpoint, prompt, *search(width, chunk, depth))
        close += len(ties.seen)
        if tuple(last["token_ids"]) != theirs.tokens:
            assert ties.excuse(last["token_ids"], theirs.tokens), (prompt, last["token_ids"], theirs.tokens)
            excused += 1
            continue
        compare(rounds, last, theirs, len(ids))
    print(f"{width}/{chunk}/{depth}: {len(PROMPTS)} prompts, {close} near-ties, {excused} differences excused")
    assert excused <= 1


def compare(rounds: list[dict[str, Any]], last: dict[str, Any], theirs: oracles.Answer, prompt_tokens: int) -> None:
    """Everything that generate.py prints about one answer."""
    assert last["done"] is True
    assert last["finish_reason"] == theirs.finish
    counts = {"completion_tokens": len(theirs.tokens), "explored_tokens": theirs.explored}
    assert last["usage"] == {"prompt_tokens": prompt_tokens, **counts}
    assert "".join(round_["text"] for round_ in rounds) == last["text"]
    assert [tuple(round_["token_ids"]) for round_ in rounds] == [round_.tokens for round_ in theirs.rounds]
    for mine, yours in zip(rounds, theirs.rounds, strict=True):
        assert mine["rewards"] == pytest.approx(yours.rewards, abs=1e-3)
        assert mine["score"] == pytest.approx(yours.score, abs=1e-3)
        assert mine["margin"] == (None if yours.margin is None else pytest.approx(yours.margin, abs=1e-3))


def test_width_one_is_greedy(real: Real) -> None:
    for prompt in PROMPTS[:2]:
        greedy = generate(real.checkpoint, prompt, "--search.method", "greedy")[-1]
        narrow = generate(real.checkpoint, prompt, *search(1, 10, 0))[-1]
        assert narrow == greedy


def test_constant_rewards_are_greedy(real: Real) -> None:
    """All prompts searched together in one program, 8 lanes each."""
    model = sla_jax.load(real.constant)
    ids = [list(prompt_ids(real.constant, prompt)) for prompt in PROMPTS]
    limits = [MAX_TOKENS] * len(ids)
    greedy = model.generate(ids, search=sla_jax.Greedy(), max_tokens=limits)
    assert model.generate(ids, search=sla_jax.SLA(width=2, chunk=10, depth=2), max_tokens=limits) == greedy
    assert all(greedy)
