"""Whether guessing ahead pays: the same answers, in fewer passes, and in how much time (docs/decoding.md, Speculation).

    python -m benchmarks.speculation CHECKPOINT [--drafts 1 4 9 --max-tokens 96 --write-docs]

Greedy decoding and look-ahead 2/10/2 answer the same prompts with and without guesses, prompt by prompt in turns.
*copies*: the answer repeats much of the prompt. *open*: questions. Answers are kept in --json as they come, so a run
goes on where it was stopped. A time is that of the whole answer, reading the prompt included.
"""

import argparse
import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sla_jax
from benchmarks.report import ROOT, markdown, show, write_page
from sla_jax.decode.program import bucket
from sla_jax.errors import UserError, front_door
from sla_jax.files import append_lines, drop_cut_line, read_rows
from sla_jax.machine import machine
from sla_jax.terminal import describe

TASKS = (
    "Repeat this text word for word: {text}",
    "Fix the typos in this text and change nothing else: {text}",
    "Write this text again in capital letters: {text}",
    "Say this twice: {text}",
)
TEXTS = (
    "The old bridge was closed for repairs, so we took the long way round, along the river, to get to the station.",
    "Dear Ms. Alvarez, thank you for your letter of the fourth of May. Your parcel has come.",
    "Water boils at 100 degrees Celsius at sea level; on a mountain it boils sooner, and eggs take longer to cook.",
    "def area(width, height): return width * height  # in square metres, as long as both are given in metres",
    "Wash the rice until the water is clear. Let it soak, drain it, and cook it with the lid on for twelve minutes.",
    "Monday: swimming at six. Tuesday: dentist at nine. Wednesday: call the bank. Friday: swimming at six.",
    "A lighthouse keeper counts the ships that pass: two in the morning, five at noon, and three before sunset.",
    "Our house has three rooms, a small kitchen, a garden with two apple trees, and a door that never closes properly.",
)
OPEN = (
    "Why is the sky blue?",
    "Give me three tips for sleeping better.",
    "Who wrote Hamlet, and what is it about?",
    "How do I apologize to a friend?",
    "Explain what a compiler does to a ten-year-old.",
    "What should I pack for a weekend in the mountains?",
    "Write a short poem about rain.",
    "How does a bicycle stay upright?",
    "What is the difference between weather and climate?",
    "How can I learn to cook without a recipe?",
    "Describe a city that is built on water.",
    "Why do cats purr?",
    "What makes a good teacher?",
    "How do vaccines work?",
    "Plan a birthday party for a child who loves dinosaurs.",
    "What is inflation, and who gains from it?",
)
SEARCHES = (sla_jax.Greedy(), sla_jax.SLA(width=2, chunk=10, depth=2))


class Found(NamedTuple):
    """One answer."""

    tokens: list[int]
    steps: int
    drafted: int
    accepted: int
    seconds: float


def main(argv: list[str]) -> None:
    """Answer what has no answer yet, print the table, write the page."""
    options = _options(argv)
    sla_jax.use_compilation_cache()
    model = sla_jax.load(options.checkpoint)
    lines = list(answered(model, options))
    where = machine()
    title = f"Speculation, at most {options.max_tokens} tokens, {where['cpu']}, {where['cores']} cores"
    kinds = {kind: {key: found for at, key, found in lines if at == kind} for kind in ("copies", "open")}
    rows = [row for kind, found in kinds.items() for row in table(kind, found, options)]
    show(title, rows)
    if options.write_docs:
        write_page(ROOT / "docs" / "benchmarks.md", "speculation", markdown(title, rows))


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speculation", description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--drafts", type=int, nargs="+", default=(1, 4, 9), help="guesses a pass")
    parser.add_argument("--limit", type=int, default=100, help="prompts of a kind, at most")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "speculation.jsonl")
    parser.add_argument("--write-docs", action="store_true", help="replace the table in docs/benchmarks.md")
    return parser.parse_args(argv)


def prompts(limit: int) -> Iterator[tuple[str, str]]:
    """(kind, what the user says), every task once before a text comes again."""
    copies = (task.format(text=text) for text, task in itertools.product(TEXTS, TASKS))
    yield from (("copies", prompt) for prompt in itertools.islice(copies, limit))
    yield from (("open", prompt) for prompt in OPEN[:limit])


def answered(model: Any, options: argparse.Namespace) -> Iterator[tuple[str, tuple[str, int, str], Found]]:
    """(kind, (search, draft, prompt), answer) of everything; what is in the file is not answered again."""
    about = {"checkpoint": str(options.checkpoint), "max_tokens": options.max_tokens}
    known = _known(options.json, about)
    compiled: set[Any] = set()
    for kind, prompt in prompts(options.limit):
        ids = model.prompt_ids([{"role": "user", "content": prompt}])
        for search, draft in itertools.product(SEARCHES, (0, *options.drafts)):
            key = (describe(search), draft, prompt)
            if key not in known:
                decoder = dataclasses.replace(search, draft=draft)
                shape = (decoder, bucket(len(ids)), bucket(len(ids) + options.max_tokens + search.chunk))
                if shape not in compiled:
                    measure(model, ids, decoder, options.max_tokens)
                    compiled.add(shape)
                known[key] = measure(model, ids, decoder, options.max_tokens)
                append_lines(options.json, [json.dumps([key, known[key]]) + "\n"])
            yield kind, key, known[key]
        print(f"{kind}: {prompt}", flush=True)


def _known(path: Path, about: dict[str, Any]) -> dict[tuple[str, int, str], Found]:
    if not path.exists():
        append_lines(path, [json.dumps(about) + "\n"])
        return {}
    drop_cut_line(path)
    first, *rest = (row for _, row in read_rows(path, None))
    if first != about:
        raise UserError(f"{path} holds answers of another run ({first}); give another --json or delete it.")
    return {tuple(key): Found(*found) for key, found in rest}


def measure(model: Any, ids: list[int], search: Any, max_tokens: int) -> Found:
    """One answer."""
    chunks = list(model.stream(ids, search=search, max_tokens=max_tokens))
    cost = chunks[-1].cost
    tokens = [token for chunk in chunks for token in chunk.token_ids]
    return Found(tokens, cost.steps, cost.drafted_tokens, cost.accepted_tokens, cost.seconds)


def table(kind: str, found: dict[tuple[str, int, str], Found], options: argparse.Namespace) -> list[dict[str, str]]:
    """A line a search and number of guesses, against the same search without."""
    rows = []
    for search in map(describe, SEARCHES):
        plain = [one for (name, draft, _), one in found.items() if (name, draft) == (search, 0)]
        for wanted in (0, *options.drafts):
            ours = [one for (name, draft, _), one in found.items() if (name, draft) == (search, wanted)]
            rows.append(row(kind, search, wanted, ours, plain))
    return rows


def row(kind: str, search: str, draft: int, ours: Sequence[Found], plain: Sequence[Found]) -> dict[str, str]:
    """One line; both are in the order of the prompts."""
    same = sum(a.tokens == b.tokens for a, b in zip(ours, plain, strict=True))
    tokens, seconds = sum(len(one.tokens) for one in ours), sum(one.seconds for one in ours)
    steps, drafted = sum(one.steps for one in ours), sum(one.drafted for one in ours)
    speed, base = tokens / seconds, sum(len(one.tokens) for one in plain) / sum(one.seconds for one in plain)
    return {
        "prompts": kind,
        "search": search,
        "guesses a pass": f"{draft}",
        "same answers": f"{same} of {len(plain)}",
        "guesses right": f"{sum(one.accepted for one in ours) / drafted:.0%}" if drafted else "",
        "tokens a pass": f"{tokens / steps:.2f}",
        "passes saved": f"{1 - steps / sum(one.steps for one in plain):.0%}",
        "tokens/s": f"{speed:.1f}",
        "÷ without": f"{speed / base:.2f}",
    }


if __name__ == "__main__":
    front_door(main)
