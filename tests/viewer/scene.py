"""What the viewer's tests look at: a server whose answers are scripted, recorded files, and the server on a real port.

A `Stage` answers the profile `sla` in rounds with trees, `greedy` in rounds without, `best` at its end. After `hold()`
every round of a tree waits for a `step()`, so that what a page shows in between can be looked at.
"""

import contextlib
import dataclasses
import functools
import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from sla_jax.decode.completion import Completion
from sla_jax.decode.cost import Cost
from sla_jax.decode.snapshot import Branch, Tree
from sla_jax.evaluation.viewer.pages import PUBLIC, mount
from sla_jax.serving.http import Pages, create_app
from sla_jax.serving.metrics import Metrics
from sla_jax.serving.request import Event, Progress, Request
from sla_jax.serving.settings import ModelInfo, Profile, ServeConfig
from tests.serving.fake import ANSWER, MODEL, TOKENIZER, FakeService, encode, tops
from tests.viewer.recorded import entropies, tree_trace

CHUNK, PATIENCE = 4, 30.0
PROFILES = (
    Profile(name="greedy", method="greedy", chunk=CHUNK, slots=4),
    Profile(name="sla", method="sla", width=2, chunk=CHUNK, depth=1, slots=2, traces=True),
    Profile(name="wide", method="sla", width=4, chunk=8, depth=1, slots=2),
    Profile(name="best", method="best_of_n", n=3, slots=2),
)
INFO: ModelInfo = dataclasses.replace(MODEL, profiles=PROFILES)
OTHER = "Nobody knows that."  # what the branches say that are not taken


def reward(place: int) -> float:
    """Of the answer's token at a place: from bad to good and back."""
    return ((place * 7) % 11 - 5) / 2


class Stage(FakeService):
    """See the module's docstring."""

    def __init__(self):
        super().__init__()
        self._news, self._steps = threading.Condition(), math.inf

    def hold(self) -> None:
        """Let no round of a tree go on."""
        with self._news:
            self._steps = 0.0

    def step(self) -> None:
        """Let one go on."""
        with self._news:
            self._steps += 1
            self._news.notify_all()

    def go_on(self) -> None:
        """Let all go on."""
        with self._news:
            self._steps = math.inf
            self._news.notify_all()

    def _wait(self) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self._steps >= 1, PATIENCE), "no step was asked for"
            self._steps -= 1

    def _events(self, request: Request) -> Iterator[Event]:
        tokens = [*encode(self.text), *request.ends[:1]][: request.max_tokens]
        if request.profile == "best":
            yield from _whole(request, tokens)
            return
        yield self._told(request, tokens, 0, 1)._replace(round=None, rewards=[])
        for number, start in enumerate(range(0, len(tokens), CHUNK)):
            if request.tree:
                self._wait()
            event = self._told(request, tokens, start, start + CHUNK)._replace(round=number, repeated=int(start == 0))
            tree = _tree(tokens, start) if request.tree else None
            last = start + CHUNK >= len(tokens)
            yield event._replace(tree=tree, cost=_cost(start + CHUNK), finish="stop" if last else None)

    def _told(self, request: Request, tokens: list[int], start: int, end: int) -> Event:
        some = tokens[start:end]
        return Event(
            tokens=some,
            rewards=[reward(start + i) for i in range(len(some))],
            logprobs=[-0.5] * len(some),
            tops=[tops(token, request.top_logprobs) for token in some],
            score=0.5,
            margin=0.25,
            alive=2,
            explored=2 * end,
        )


def _tree(tokens: list[int], start: int) -> Tree:
    """The branch that is taken, and from the second round on one that is not."""
    taken = tokens[start : start + CHUNK]
    branches = [_branch(taken, 0, [reward(start + i) for i in range(len(taken))], kept=True)]
    if start:
        branches.append(_branch(encode(OTHER)[:CHUNK], 1, [-2.0] * CHUNK, kept=False))
    return Tree(anchor=0.0, best=0, branches=branches)


def _branch(tokens: list[int], rank: int, rewards: list[float], *, kept: bool) -> Branch:
    numbers: dict[str, Any] = {"logprobs": [-0.5] * len(tokens), "entropies": [1.0] * len(tokens)}
    score = sum(rewards) / len(rewards)
    return Branch(parent=0, rank=rank, tokens=tokens, rewards=rewards, **numbers, score=score, finish=None, kept=kept)


def _whole(request: Request, tokens: list[int]) -> Iterator[Event]:
    """Three candidates; the second one is the answer."""
    yield Event(progress=Progress(0, 3, 3, 4, 12, 4), alive=3, explored=12)
    texts = [encode("No."), tokens, encode("Who knows?")]
    ended = [
        Completion(i, text, [reward(i)] * len(text), [-1.0] * len(text), "stop", 0, (0.1, 0.9, -0.4)[i])
        for i, text in enumerate(texts)
    ]
    yield Event(
        tokens=tokens,
        rewards=[reward(i) for i in range(len(tokens))],
        logprobs=[-0.5] * len(tokens),
        tops=[[] for _ in tokens],
        round=1,
        score=0.9,
        progress=Progress(0, 3, 0, len(tokens), 3 * len(tokens), len(tokens)),
        ended=ended,
        cost=_cost(len(tokens)),
        finish="stop",
    )


def _cost(tokens: int) -> Cost:
    counts = {"steps": tokens, "lane_steps": 2 * tokens, "explored_tokens": 2 * tokens, "committed_tokens": tokens}
    return Cost(**counts, kv_bytes=1000, seconds=0.5)


# ---- servers ----


def viewer_app(folder: Path | None, *, key: str | None = None, service: Any = None) -> FastAPI:
    """The app as serve.py makes it, in front of a Stage."""
    config = ServeConfig(checkpoint="tiny", profiles=PROFILES, api_key=key)
    metrics = Metrics({profile.name: profile.slots for profile in PROFILES})
    pages = Pages(functools.partial(mount, folder=folder), PUBLIC)
    return create_app(service or Stage(), INFO, TOKENIZER, config, metrics, pages)


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """An app on a free port of this machine; its address."""
    settings = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, ws="none", timeout_graceful_shutdown=2)
    server = uvicorn.Server(settings)
    with settings.bind_socket() as listener:
        thread = threading.Thread(target=functools.partial(server.run, sockets=[listener]), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(PATIENCE)


def folder_with_files(folder: Path) -> Path:
    """A folder as runs leave it: a trace, two entropies of the same texts, something hidden and something else."""
    (folder / "eval").mkdir(parents=True)
    write(folder / "trace.jsonl", tree_trace(ANSWER))
    write(folder / "eval" / "first.jsonl", entropies(size=3))
    write(folder / "eval" / "second.jsonl", entropies(size=2))
    (folder / "notes.txt").write_text("not for a browser", encoding="utf-8")
    (folder / ".hidden.jsonl").write_text("{}\n", encoding="utf-8")
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
