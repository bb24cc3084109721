"""Small runs of `eval.py generate`: an answerer without a model, settings, and a server without one."""

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sla_jax.decode.sampling import Sampling
from sla_jax.errors import UserError
from sla_jax.evaluation.answering import Ask, Reply
from sla_jax.evaluation.settings import BenchmarkConfig, GenerateConfig, MethodConfig

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write a poem.", "Shorter."]},
    {"question_id": 82, "category": "math", "turns": ["What is 1 + 1?", "And twice that?"]},
    {"question_id": 83, "category": "writing", "turns": ["Name a color.", "Another one."]},
]
INSTRUCTIONS = [{"instruction": f"Do thing {i}.", "dataset": "koala"} for i in range(3)]
METHODS = (
    MethodConfig(name="greedy", method="greedy"),
    MethodConfig(name="sampled", method="greedy", sampling=Sampling(temperature=0.8)),
)


class Echo:
    """Answers with what it was asked, and counts: `asked` is every turn so far. It stops before turn number `stop`."""

    def __init__(self, stop: int | None = None, parallel: int = 1, room: int = 10_000):
        self.asked: list[Ask] = []
        self.stop, self.parallel, self.room = stop, parallel, room
        self.about = {"fingerprint": "00ff"}

    def options(self, method: MethodConfig) -> dict[str, Any]:
        return dataclasses.asdict(method.decoder())

    def check(self, ask: Ask) -> None:
        size = sum(len(message["content"]) for message in ask.messages) + ask.max_tokens
        if size > self.room:
            raise UserError(f"{size} are more than {self.room}.")

    def answer(self, ask: Ask) -> Reply:
        if len(self.asked) == self.stop:
            raise KeyboardInterrupt
        self.asked.append(ask)
        text = f"{ask.method.name} {ask.seed % 997}: {' / '.join(message['content'] for message in ask.messages)}"
        cost = {"steps": 3, "lane_steps": 3, "seconds": 0.001 * len(self.asked), "scorer_seconds": 0.0}
        return Reply(text, [1, 2, 3], "stop", [0.5, 0.25, -1.0], cost, None)


def settings(folder: Path, **changes: Any) -> GenerateConfig:
    """Two benchmarks × two methods in `folder`/run, their prompts beside it."""
    sets = []
    for name, rows in (("mt_bench", QUESTIONS), ("alpaca_eval", INSTRUCTIONS)):
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sets.append(BenchmarkConfig(name=name, file=str(file)))
    base: dict[str, Any] = {"name": "run", "checkpoint": "a", "out": folder / "run", "methods": METHODS}
    return GenerateConfig(**{**base, "benchmarks": tuple(sets), "max_tokens": 8, **changes})


def bytes_of(out: Path, *parts: str) -> dict[str, bytes]:
    """Path → contents of every file in these folders of a run."""
    files = [path for part in parts for path in (out / part).rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(files)}


@contextlib.contextmanager
def server(reply: Callable[[dict[str, Any]], tuple[int, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(url, bodies so far) of a server on a free port: `reply(body) -> (status, what it says)`."""
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            bodies.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
            status, said = reply(body)
            text = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            if status == 429:
                self.send_header("Retry-After", "3")
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self) -> None:
            name, _, profile = self.path.rpartition("/")[2].partition(":")
            told = {"search": {"options": {"width": 3}}} if profile else {}
            text = json.dumps({"id": name, "channel": "theirs", **told}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *words: Any) -> None:
            """Silence."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}/v1", bodies
        finally:
            listening.shutdown()
            thread.join()
