"""Recorded files as the programs write them: the trace of a search that grows a tree, and entropies."""

from typing import Any

from sla_jax.decode.cost import Cost
from sla_jax.decode.snapshot import Branch
from sla_jax.trace.lines import FORMAT, End, Header, TreeRound, plain

CHUNK = 4  # characters, which are the tokens here: token i is the i-th character that occurs
TEXTS = ("A hat, a cat 👍🏽 and 東京.", "The second text is another one.")


def tree_trace(text: str) -> list[dict[str, Any]]:
    """A search of width 2 that saw every chunk and a wrong one, and committed the right one a round later."""
    letters = sorted(set(text) | set("wrong"))
    ids = {letter: place for place, letter in enumerate(letters)}
    chunks = [text[at : at + CHUNK] for at in range(0, len(text), CHUNK)]
    rounds: list[TreeRound] = []
    explored = 0
    for number, chunk in enumerate(chunks):
        words = [chunk] if number == 0 else [chunk, "wrong"[: len(chunk)]]
        last = number == len(chunks) - 1
        branches = [
            _branch([ids[letter] for letter in word], rank, "length" if last else None)
            for rank, word in enumerate(words)
        ]
        explored += sum(len(branch.tokens) for branch in branches)
        steps = min(CHUNK * (number + 1), len(text))
        rounds.append(
            TreeRound(
                round=number,
                tokens=branches[0].tokens,
                chosen=0,
                score=1.0,
                margin=None if number == 0 else 2.0,
                alive=len(branches),
                steps=steps,
                lane_steps=2 * steps,
                explored=explored,
                drafted=0,
                accepted=0,
                branches=branches,
            )
        )
    counts = {"steps": len(text), "lane_steps": 2 * len(text), "explored_tokens": explored}
    cost = Cost(**counts, committed_tokens=len(text), kv_bytes=1, seconds=1.0)
    pieces = {str(place): letter for letter, place in ids.items()}
    end = End(finish_reason="length", text=text, cost=cost, pieces=pieces)
    lines: list[Any] = [_header(len(text)), *rounds, end]
    return [plain(line) for line in lines]


def _branch(tokens: list[int], rank: int, finish: str | None) -> Branch:
    score = 1.0 if rank == 0 else -1.0
    numbers = {name: [score] * len(tokens) for name in ("rewards", "entropies")}
    logprobs = [-0.5] * len(tokens)
    kept = rank == 0
    return Branch(
        parent=0, rank=rank, tokens=tokens, logprobs=logprobs, **numbers, score=score, finish=finish, kept=kept
    )


def _header(limit: int) -> Header:
    return Header(
        format=FORMAT,
        sla_jax="0",
        jax="0",
        checkpoint="toy",
        fingerprint="0" * 16,
        dtype="float32",
        backend="cpu",
        method="sla",
        search={"width": 2, "chunk": CHUNK, "depth": 0},
        sampling={"temperature": 0.0},
        scorer=None,
        prompt=[0],
        text="a prompt",
        max_tokens=limit,
        end_tokens=[9999],
        anchor=0.0,
    )


def entropies(size: int, rewards: bool = True) -> list[dict[str, Any]]:
    """Rows of `eval.py entropy` for TEXTS, in tokens of `size` characters behind a BOS without text. Every third
    prediction is wrong; entropy grows from token to token."""
    return [_entropies(text, size, rewards) for text in TEXTS]


def _entropies(text: str, size: int, rewards: bool) -> dict[str, Any]:
    spans = [(0, 0), *((at, min(at + size, len(text))) for at in range(0, len(text), size))]
    tokens = ["<s>", *(text[begin:end] for begin, end in spans[1:])]
    count = len(tokens)
    correct: list[bool | None] = [None, *(place % 3 != 0 for place in range(1, count))]
    entropy = [None, *(round(0.5 * place, 3) for place in range(1, count))]
    row: dict[str, Any] = {
        "id": text[:8],
        "text": text,
        "tokens": tokens,
        "token_ids": list(range(count)),
        "offsets": [list(span) for span in spans],
        "counted": [0, count],
        "entropy": entropy,
        "pred_tokens": [None, *(tokens[i] if correct[i] else "?" for i in range(1, count))],
        "correct": correct,
        "losses": [None, *([1.0] * (count - 1))],
        "loss": 1.0,
        "bytes": len(text.encode()),
        "top": [
            None,
            *([[tokens[i], 0.5], ["?", 0.25], ["b", 0.1], ["c", 0.05], ["d", 0.01]] for i in range(1, count)),
        ],
    }
    return {**row, "rewards": [place / 4 - 1 for place in range(count)]} if rewards else row
