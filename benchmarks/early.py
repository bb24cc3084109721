"""What an early margin costs: how often answers differ from the full search's, and how much less is searched.

    python -m benchmarks.early CHECKPOINT --data FILE … [--margins 0.1 0.3 1.0 --prompts 32 --max-tokens 64]

Prompts are those of held-out pairs. Every margin runs the same look-ahead (`--search`) on the same prompts; an answer
differs if any token does. `none` is the search itself, which commits early only what is certain.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import sla_jax
from benchmarks.report import markdown, show
from sla_jax.errors import front_door
from sla_jax.training.data import load_examples
from sla_jax.training.data_config import DataConfig

LONGEST = 192  # tokens of a prompt


class Answer(NamedTuple):
    """Tokens of an answer, tokens that all its lanes read, and rounds."""

    tokens: list[int]
    explored: int
    rounds: int


def main(argv: list[str]) -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.early", description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--search", type=int, nargs=3, default=(2, 10, 2), metavar=("WIDTH", "CHUNK", "DEPTH"))
    parser.add_argument("--margins", type=float, nargs="+", default=(0.1, 0.3, 1.0))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parser.parse_args(argv)
    sla_jax.use_compilation_cache()
    model = sla_jax.load(options.checkpoint)
    prompts = prompts_of(options, model.config.max_positions)
    width, chunk, depth = options.search
    answers: dict[float | None, list[Answer]] = {}
    for margin in (None, *options.margins):
        search = sla_jax.SLA(width=width, chunk=chunk, depth=depth, early_margin=margin)
        answers[margin] = [answer(model, prompt, search, options.max_tokens) for prompt in prompts]
    title = f"Look-ahead {width}/{chunk}/{depth}, {len(prompts)} held-out prompts, at most {options.max_tokens} tokens"
    rows = [row(margin, found, answers[None]) for margin, found in answers.items()]
    show(title, rows)
    print(markdown(title, rows))


def prompts_of(options: argparse.Namespace, max_positions: int) -> list[list[int]]:
    """The first short prompts of the pairs."""
    examples = load_examples(
        DataConfig(
            files=tuple(options.data),
            split=options.split,
            heldout=0,
            max_length=max_positions,
            cache=None,
            max_prompt_length=max_positions // 2,
        ),
        "pairs",
        Path(options.checkpoint),
        max_positions=max_positions,
        seed=0,
        progress=lambda done, total: None,
        say=print,
    )
    short = np.flatnonzero(examples.prompt_lengths <= LONGEST)[: options.prompts]
    return [examples[int(i)].prompt.tolist() for i in short]


def answer(model: Any, prompt: list[int], search: Any, max_tokens: int) -> Answer:
    """One prompt's answer and what it took."""
    chunks = list(model.stream(prompt, search=search, max_tokens=max_tokens))
    tokens = [token for chunk in chunks for token in chunk.token_ids]
    return Answer(tokens, chunks[-1].usage.explored_tokens, len(chunks))


def row(margin: float | None, found: list[Answer], base: list[Answer]) -> dict[str, str]:
    """One line: against the search without a margin."""
    differing = sum(mine.tokens != theirs.tokens for mine, theirs in zip(found, base, strict=True))
    explored, full = (sum(one.explored for one in answers) for answers in (found, base))
    rounds, all_rounds = (sum(one.rounds for one in answers) for answers in (found, base))
    return {
        "early margin": "none" if margin is None else f"{margin:g}",
        "answers that differ": f"{differing} of {len(found)} ({differing / len(found):.0%})",
        "tokens explored": f"{explored / full:.2f}",
        "rounds": f"{rounds / all_rounds:.2f}",
    }


if __name__ == "__main__":
    front_door(main)
