"""A language model as pairwise judge: both orders count, what it is asked, and servers that fail."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sla_jax.errors import UserError
from sla_jax.evaluation.judges.config import JudgeConfig, JudgeRun
from sla_jax.evaluation.judges.llm import LlmJudge, Server, question, verdict, winner
from sla_jax.evaluation.judges.run import run_judges
from sla_jax.scoring.candidate import Message
from tests.evaluation.answers import answer, judged, read, write_run

GOOD, BAD = answer("a", "It is Paris, a city.", method="sla"), answer("a", "Rome.")


def prefers(word: str) -> Callable[[list[Message]], str]:
    """A model that prefers the conversation with a word in it; without one the first it reads."""

    def ask(messages: list[Message]) -> str:
        first, second = messages[1]["content"].split("<conversation with assistant B>")
        return "Well. [[B]]" if word in second and word not in first else "Well. [[A]]"

    return ask


def test_a_method_wins_only_in_both_orders() -> None:
    assert LlmJudge(prefers("Paris")).compare(GOOD, BAD).winner == "method"
    assert LlmJudge(prefers("Rome")).compare(GOOD, BAD).winner == "baseline"
    biased = LlmJudge(prefers("nothing")).compare(GOOD, BAD)
    assert (biased.winner, biased.details["verdicts"]) == ("tie", ["A", "A"])
    mute = LlmJudge(lambda messages: "I cannot say.").compare(GOOD, BAD)
    assert (mute.winner, mute.details["verdicts"]) == ("tie", [None, None])
    assert (mute.id, mute.baseline, mute.details["replies"][0]) == ("a", "greedy", "I cannot say.")


@pytest.mark.parametrize(
    ("straight", "swapped", "who"),
    [
        ("A", "B", "method"),
        ("B", "A", "baseline"),
        ("A", "A", "tie"),
        ("C", "C", "tie"),
        ("A", "C", "tie"),
        ("A", None, "tie"),
    ],
)
def test_what_two_verdicts_make(straight: str | None, swapped: str | None, who: str) -> None:
    assert winner(straight, swapped) == who


def test_the_last_verdict_counts() -> None:
    assert verdict("[[A]] at first sight, but [[B]]") == "B" and verdict("[A]") is None


def test_the_question_holds_both_conversations_and_the_reference() -> None:
    history = ({"role": "system", "content": "Be kind."},)
    two = answer("a", "One.", "Two.", reference="Three.", history=history)
    system, asked = question(two, two._replace(turns=two.turns[:1]))
    assert "[[C]]" in system["content"]
    first, second = asked["content"].split("<conversation with assistant B>")
    assert "[Reference answer]\nThree." in first and "Be kind." in first
    assert first.index("Question 0 of a?") < first.index("One.") < first.index("Question 1 of a?") < first.index("Two.")
    assert "One." in second and "Two." not in second


class Stub(ThreadingHTTPServer):
    """Answers with the statuses given, one a request, the last one for ever; keeps what it was sent."""

    def __init__(self, statuses: list[int], reply: Any):
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses, self.reply = statuses, reply
        self.heard: list[tuple[str, dict[str, Any], str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.heard.append((self.path, body, self.headers.get("Authorization")))
        status = self.server.statuses.pop(0) if len(self.server.statuses) > 1 else self.server.statuses[0]
        raw = json.dumps(self.server.reply).encode() if status == 200 else b"busy"
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


REPLY = {"choices": [{"message": {"content": "Equal. [[C]]"}}]}


@pytest.fixture
def serve() -> Iterator[Callable[..., Stub]]:
    running: list[Stub] = []

    def start(*statuses: int, reply: Any = REPLY) -> Stub:
        stub = Stub(list(statuses), reply)
        threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        running.append(stub)
        return stub

    yield start
    for stub in running:
        stub.shutdown()
        stub.server_close()


def test_a_busy_server_is_asked_again(serve: Callable[..., Stub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    stub, waits = serve(503, 429, 200), list[float]()
    server = Server(stub.url, "judge", key_env="JUDGE_KEY", sleep=waits.append)
    assert server([{"role": "user", "content": "Who?"}]) == "Equal. [[C]]"
    assert waits == [2.0, 4.0]
    path, body, key = stub.heard[-1]
    assert (path, key, body["model"], body["temperature"]) == ("/v1/chat/completions", "Bearer secret", "judge", 0.0)
    assert body["messages"] == [{"role": "user", "content": "Who?"}]


def test_half_a_character_of_a_reply_can_be_kept(serve: Callable[..., Stub]) -> None:
    stub = serve(200, reply={"choices": [{"message": {"content": "😀 [[A]] \ud83d"}}]})
    assert Server(stub.url, "judge")([]) == "😀 [[A]] \ufffd"


def test_servers_that_fail_are_named(serve: Callable[..., Stub], monkeypatch: pytest.MonkeyPatch) -> None:
    waits = list[float]()
    asked = [{"role": "user", "content": "Who?"}]
    refused = serve(401)
    with pytest.raises(UserError, match="answered 401: busy"):
        Server(refused.url, "judge", sleep=waits.append)(asked)
    assert len(refused.heard) == 1 and waits == []
    with pytest.raises(UserError, match=r"cannot be reached.*already judged is kept"):
        Server("http://127.0.0.1:9/v1", "judge", retries=2, sleep=waits.append)(asked)
    assert waits == [2.0, 4.0]
    with pytest.raises(UserError, match="no chat completion"):
        Server(serve(200, reply={"error": "?"}).url, "judge")(asked)
    with pytest.raises(UserError, match="is no address"):
        Server("localhost:8000", "judge")
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(UserError, match="variable is empty"):
        Server("http://localhost/v1", "judge", key_env="JUDGE_KEY")


def test_what_was_judged_before_a_server_failed_is_kept(serve: Callable[..., Stub], tmp_path: Path) -> None:
    answers = [answer(name, "x", method=method) for method in ("greedy", "sla") for name in ("a", "b")]
    out = write_run(tmp_path / "run", *answers)
    stub = serve(200, 200, 400)

    def run(url: str) -> None:
        config = JudgeConfig(kind="llm", url=url, model="judge", baseline="greedy", retries=0)
        run_judges(JudgeRun(out=str(out), judges=(config,)))

    with pytest.raises(UserError, match=r"sla\.jsonl, line 2: .*'b' of sla to bench against greedy.*answered 400"):
        run(stub.url)
    path = judged(out, "llm", "sla.vs.greedy")
    assert [row["id"] for row in read(path)] == ["a"]
    stub.statuses[:] = [200]
    run(stub.url)
    assert [(row["id"], row["winner"]) for row in read(path)] == [("a", "tie"), ("b", "tie")]
