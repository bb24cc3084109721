"""How many answers fall into a loop, greedy and with look-ahead: one figure that a reader of answers would notice.

    python -m benchmarks.loops CHECKPOINT --prompts FILE … [--exclude FILE … --limit 64 --max-tokens 192]

A loop is what `sla_jax.scoring.loops` says, which no scorer reads. Every method answers the same prompts: those of
`--prompts` with at most `--max-prompt-tokens`, less those of `--exclude` (what the channel was trained on), the
`--limit` of them with the smallest hash. Rows are batched by length; no answer depends on its batch.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sla_jax
from benchmarks.report import ROOT, markdown, show, write_json
from sla_jax.errors import UserError, front_door
from sla_jax.scoring.loops import falls_into_loop
from sla_jax.terminal import describe
from sla_jax.training.onpolicy_prompts import cut, read_prompts


class Answer(NamedTuple):
    """One answer: its text, its tokens, whether it ended by itself and whether it fell into a loop."""

    text: str
    tokens: int
    finished: bool
    loops: bool


def main(argv: list[str]) -> None:
    """Answer, print the table, write the JSON."""
    options = _options(argv)
    sla_jax.use_compilation_cache()
    model = sla_jax.load(options.checkpoint)
    prompts = choose(model, options)
    width, chunk, depth = options.search
    searches = [sla_jax.Greedy(chunk=chunk), sla_jax.SLA(width=width, chunk=chunk, depth=depth)]
    found = {describe(search): answers(model, prompts, search, options.max_tokens, options.rows) for search in searches}
    title = f"Loops, {len(prompts)} prompts, at most {options.max_tokens} tokens"
    rows = [row(name, given) for name, given in found.items()]
    show(title, rows)
    print(markdown(title, rows))
    about = {"checkpoint": options.checkpoint, "prompts": options.prompts, "max_tokens": options.max_tokens}
    shares = {name: sum(one.loops for one in given) / len(given) for name, given in found.items()}
    texts = {name: [one.text for one in given] for name, given in found.items()}
    write_json(options.json, {**about, "share_of_loops": shares, "tables": {title: rows}, "answers": texts})


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loops", description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--prompts", nargs="+", required=True)
    parser.add_argument("--field", help="the rows' field that holds the prompt")
    parser.add_argument("--exclude", nargs="+", default=(), help="files whose prompts are not used")
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=192)
    parser.add_argument("--max-prompt-tokens", type=int, default=192)
    parser.add_argument("--search", type=int, nargs=3, default=(2, 10, 2), metavar=("WIDTH", "CHUNK", "DEPTH"))
    parser.add_argument("--rows", type=int, default=8, help="prompts that are answered together")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "loops.json")
    return parser.parse_args(argv)


def choose(model: Any, options: argparse.Namespace) -> list[list[int]]:
    """Token ids of the prompts, shortest first. Raises UserError if none is left."""
    banned = {prompt.last for name in options.exclude for prompt in read_prompts(name, None)}
    every = [prompt for name in options.prompts for prompt in read_prompts(name, options.field)]
    ids = {prompt.id: model.prompt_ids(prompt.messages) for prompt in every if prompt.last not in banned}
    short = {id_: tokens for id_, tokens in ids.items() if len(tokens) <= options.max_prompt_tokens}
    able = {prompt.id: prompt for prompt in every if prompt.id in short}
    if not able:
        raise UserError(f"no prompt is left of {len(every)} after --exclude and --max-prompt-tokens.")
    return sorted((short[prompt.id] for prompt in cut(list(able.values()), options.limit)), key=len)


def answers(model: Any, prompts: Sequence[list[int]], search: Any, max_tokens: int, rows: int) -> list[Answer]:
    """Every prompt's answer, `rows` at a time."""
    given: list[Answer] = []
    for start in range(0, len(prompts), rows):
        batch = prompts[start : start + rows]
        found = model.generate(batch, search=search, max_tokens=[max_tokens] * len(batch))
        given += [read_answer(model, tokens) for tokens in found]
        print(f"{describe(search)}: {len(given)} of {len(prompts)}", flush=True)
    return given


def read_answer(model: Any, tokens: list[int]) -> Answer:
    """What a list of tokens says."""
    text = model.tokenizer.decode(tokens, skip_special_tokens=True)
    return Answer(text, len(tokens), bool(tokens) and tokens[-1] in model.end_tokens, falls_into_loop(text))


def row(name: str, given: Sequence[Answer]) -> dict[str, str]:
    """One line; ± is the standard error of a share."""
    share = sum(one.loops for one in given) / len(given)
    return {
        "method": name,
        "answers in a loop": f"{sum(one.loops for one in given)} of {len(given)}",
        "share": f"{share:.1%} ± {(share * (1 - share) / len(given)) ** 0.5:.1%}",
        "ended by themselves": f"{sum(one.finished for one in given) / len(given):.0%}",
        "tokens": f"{sum(one.tokens for one in given) / len(given):.0f}",
    }


if __name__ == "__main__":
    front_door(main)
