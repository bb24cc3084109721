"""benchmarks/serving and benchmarks/load against a scripted OpenAI server: what is counted, never how fast it was."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from benchmarks import load, report, serving
from benchmarks.load import Load, Sample, Target
from sla_jax.errors import UserError

METRICS = """# HELP sla_jax_compiled_programs_total Programs
sla_jax_compiled_programs_total 7.0
sla_jax_committed_tokens_total{{profile="greedy"}} {tokens}
sla_jax_committed_tokens_total{{profile="sla"}} {tokens}
sla_jax_host_seconds_sum {host}
sla_jax_device_wait_seconds_sum {device}
"""


class Stub:
    """An OpenAI server that says "one two three" in three chunks, or what its prompt's first word asks for."""

    def __init__(self, usage: bool = True, ours: bool = False):
        self.usage, self.ours = usage, ours
        self.bodies: list[dict[str, Any]] = []
        self.scrapes = 0
        self.in_flight = self.most = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def app(self) -> FastAPI:
        app = FastAPI()
        app.post("/v1/chat/completions")(self.answer)
        app.post("/v1/completions")(self.answer)
        app.get("/v1/models")(lambda: {"data": [{"id": "stub"}]})
        app.get("/metrics")(self.metrics)
        return app

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        order = str(body.get("prompt") or body["messages"][-1]["content"]).split()[0]
        if order.isdigit():
            return JSONResponse({"error": {"message": "no"}}, status_code=int(order))
        return StreamingResponse(self.stream(body, order), media_type="text/event-stream")

    async def stream(self, body: dict[str, Any], order: str):
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        chat = "messages" in body
        if chat:
            yield event({"choices": [{"delta": {"role": "assistant"}}]})
        for word in ("one", " two", " three"):
            yield ": keep-alive\n\n"
            yield event({"choices": [{"delta": {"content": word}} if chat else {"text": word}]})
        if order == "garbled":
            yield "data: {\n\n"
        if order == "broken":
            yield event({"error": {"message": "the engine failed"}})
        if self.usage and body.get("stream_options"):
            details = {"explored_tokens": 24} if "search" in body else None
            yield event({"choices": [], "usage": {"completion_tokens": 6, "completion_tokens_details": details}})
        if order != "cut":
            yield "data: [DONE]\n\n"
        self.in_flight -= 1

    def metrics(self) -> Response:
        if not self.ours:
            return Response(status_code=404)
        self.scrapes += 1
        return PlainTextResponse(
            METRICS.format(tokens=50 * self.scrapes, host=0.5 * self.scrapes, device=9.5 * self.scrapes)
        )


def event(fields: dict[str, Any]) -> str:
    return f"data: {json.dumps(fields)}\n\n"


@contextlib.contextmanager
def served(stub: Stub) -> Iterator[Stub]:
    listener = socket.create_server(("127.0.0.1", 0))
    stub.port = listener.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(stub.app(), log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield stub
    finally:
        server.should_exit = True
        thread.join()


def ask(stub: Stub, order: str, **fields: Any) -> Sample:
    async def one() -> Sample:
        target = Target(url=stub.url, model="stub", timeout=30.0, **fields)
        async with target.client() as client:
            return await load.ask(client, target, {"prompt": order})

    return asyncio.run(one())


def test_a_stream_is_counted_by_its_usage():
    with served(Stub()) as stub:
        sample = ask(stub, "hello", profile="sla")
    assert (sample.status, sample.tokens, sample.explored, sample.by_usage) == ("ok", 6, 24, True)
    assert len(sample.chunks) == 3 and len(sample.gaps) == 2
    assert sample.first is not None and 0 < sample.first <= sample.ended - sample.began
    assert stub.bodies == [
        {
            "model": "stub",
            "prompt": "hello",
            "stream": True,
            "max_tokens": 128,
            "temperature": 0.0,
            "stream_options": {"include_usage": True},
            "search": {"profile": "sla"},
        }
    ]


@pytest.mark.parametrize("asked", [True, False])
def test_chunks_are_counted_where_there_is_no_usage(asked: bool):
    with served(Stub(usage=False)) as stub:
        sample = ask(stub, "hello", usage=asked)
    assert (sample.status, sample.tokens, sample.by_usage) == ("ok", 3, False)
    assert ("stream_options" in stub.bodies[0]) is asked
    assert load.summary([sample])["tokens_counted_by"] == "chunks"


@pytest.mark.parametrize(
    ("order", "status"),
    [
        ("503", "503"),
        ("400", "400"),
        ("cut", "cut off"),
        ("garbled", "not JSON"),
        ("broken", "error event"),
    ],
)
def test_what_goes_wrong_has_a_name(order: str, status: str):
    with served(Stub()) as stub:
        assert ask(stub, order).status == status


def test_nobody_there_is_a_connection_error_and_a_slow_server_a_timeout():
    nobody = Stub()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody.port = listener.getsockname()[1]  # accepts, never answers
        target = Target(url=nobody.url, model="stub", timeout=0.05)

        async def one() -> Sample:
            async with target.client() as client:
                return await load.ask(client, target, {"prompt": "x"})

        assert asyncio.run(one()).status == "timeout"
    assert ask(nobody, "x").status == "connection"


def test_a_closed_loop_keeps_to_its_concurrency_and_takes_prompts_in_turn():
    samples: list[Sample] = []
    prompts = [{"prompt": "a"}, {"messages": [{"role": "user", "content": "b"}]}]
    with served(Stub()) as stub:
        asyncio.run(load.run(Target(url=stub.url, model="stub"), prompts, Load(9, 3), samples.append))
    assert [sample.status for sample in samples] == ["ok"] * 9
    assert 1 <= stub.most <= 3
    assert sum("messages" in body for body in stub.bodies) == 4


def test_arrivals_are_random_but_the_same_for_a_seed():
    waits = Load(4000, 4, 10.0, 1).waits()
    assert waits == Load(4000, 4, 10.0, 1).waits() != Load(4000, 4, 10.0, 2).waits()
    assert len(set(waits)) == 4000 and sum(waits) == pytest.approx(400, rel=0.05)
    assert Load(3, 4).waits() == [0.0] * 3


def test_a_rate_sends_every_request():
    samples: list[Sample] = []
    with served(Stub()) as stub:
        target = Target(url=stub.url, model="stub")
        asyncio.run(load.run(target, [{"prompt": "a"}], Load(9, 2, 1e4), samples.append))
    assert [sample.status for sample in samples] == ["ok"] * 9 and stub.most <= 2


def test_percentiles_and_rates_of_known_samples():
    times = [float(i) for i in range(101)]
    assert load.percentiles(times) == {"p50": 50.0, "p90": 90.0, "p99": 99.0}
    assert load.percentiles([]) == {}
    good = [Sample("ok", 0.0, 4.0, (1.0, 2.0, 4.0), 8, 40, True), Sample("ok", 1.0, 5.0, (4.0, 4.5), 2, 10, True)]
    figures = load.summary([*good, Sample("503", 0.0, 9.0), Sample("503", 0.0, 0.1), Sample("timeout", 0.0, 99.0)])
    assert figures["answered"] == 2 and figures["errors"] == {"503": 2, "timeout": 1}
    assert figures["tokens"] == 10 and figures["seconds"] == 5.0 and figures["tokens_per_second"] == 2.0
    assert figures["ttft_seconds"]["p50"] == 2.0
    assert figures["inter_chunk_seconds"]["p50"] == 1.0
    assert figures["tokens_per_second_of_a_request"]["p50"] == 1.25
    assert figures["explored_per_committed"] == 5.0
    assert load.summary([Sample("503", 0.0, 1.0)])["tokens_per_second"] == 0.0


def test_series_are_summed_over_labels():
    found = load.read_metrics(METRICS.format(tokens=50, host=0.5, device="1e-1"))
    assert found["sla_jax_committed_tokens_total"] == 100 and found["sla_jax_device_wait_seconds_sum"] == 0.1


def test_a_table_of_profiles_and_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "load.json"
    options = ["--profile", "greedy,sla", "--concurrency", "1,2", "--requests", "4", "--warmup", "1"]
    with served(Stub(ours=True)) as stub:
        serving.main(["--url", stub.url, *options, "--api-key", "secret", "--json", str(out)])
    figures = json.loads(out.read_text())
    assert "secret" not in out.read_text()
    assert [(row["profile"], row["concurrency"]) for row in figures["rows"]] == [
        ("greedy", 1),
        ("sla", 1),
        ("greedy", 2),
        ("sla", 2),
    ]
    assert all(row["answered"] == 4 and not row["errors"] for row in figures["rows"])
    assert figures["server"]["model"] == "stub" and figures["complete"] is True
    for row in figures["rows"]:
        spent = row["server"]
        assert spent["compiled"] == 0
        assert spent["host_seconds_per_token"] == pytest.approx(0.005) and spent["host_share"] == pytest.approx(0.05)
    printed = capsys.readouterr().out
    assert "÷ greedy" in printed and "5.0 %" in printed and "tokens counted by: usage" in printed
    assert len(stub.bodies) == 4 * 5


def test_any_server_will_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "hi"}\n{"messages": [{"role": "user", "content": "503 please"}]}\n')
    with served(Stub(usage=False)) as stub:
        serving.main(["--url", stub.url, "--requests", "4", "--prompts", str(prompts)])
    printed = capsys.readouterr().out
    assert "2× 503" in printed and "tokens counted by: chunks" in printed
    assert all("search" not in body for body in stub.bodies)


def test_ratios_are_to_the_baseline_of_the_same_load():
    def row(profile: str, concurrency: int, first: float, rate: float) -> dict[str, Any]:
        sample = Sample("ok", 0.0, 10.0 / rate, (first, first + 1), 10, None, True)
        return {"profile": profile, "concurrency": concurrency, "server": None, **load.summary([sample])}

    rows = [row("greedy", 1, 0.2, 10.0), row("sla", 1, 0.21, 5.0), row("sla", 4, 0.5, 5.0)]
    found = serving.tables(rows, "greedy")
    assert [line["TTFT p50 ÷ greedy"] for line in found["Times"]] == ["1.00", "1.05", ""]
    assert [line["all ÷ greedy"] for line in found["Rates"]] == ["1.00", "0.50", ""]
    assert found["Times"][0]["TTFT ms p50/90/99"] == "200/200/200"


def test_an_interrupted_run_prints_what_it_has(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    counted = itertools.count()
    whole = load.Sample

    def interrupt(*values: Any) -> Sample:
        if next(counted) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return whole(*values)

    monkeypatch.setattr(load, "Sample", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with none
    with served(Stub()) as stub:
        options = ["--requests", "500", "--concurrency", "1", "--warmup", "0"]
        serving.main(["--url", stub.url, *options])
    signal.signal(signal.SIGINT, before)
    assert "500 requests a row, closed loop; interrupted" in capsys.readouterr().out
    assert len(stub.bodies) < 500


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--concurrency", "1,x"], "concurrency is '1,x'"),
        (["--requests", "0"], "at least 1"),
        (["--rate", "0"], "rate is 0"),
        (["--prompts", "no/such/file"], "there is no file"),
        (["--url", "http://127.0.0.1:1"], "is the server there"),
    ],
)
def test_bad_options_are_said(words: list[str], said: str):
    with pytest.raises(UserError, match=said):
        serving.main(words)


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"prompt": "a", "messages": []}'])
def test_bad_prompts_are_named_by_line(tmp_path: Path, line: str):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "fine"}}\n{line}\n')
    with pytest.raises(UserError, match="line 2"):
        serving.read_prompts(path)


def test_the_page_gets_the_tables_between_its_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = report.ROOT / "docs" / "serving.md"
    (tmp_path / "docs").mkdir()
    copy = tmp_path / "docs" / "serving.md"
    copy.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(serving, "ROOT", tmp_path)
    with served(Stub(ours=True)) as stub:
        serving.main(["--url", stub.url, "--profile", "greedy", "--requests", "2", "--write-docs"])
    text = copy.read_text(encoding="utf-8")
    between = text[text.index("<!-- begin serving -->") : text.index("<!-- end serving -->")]
    assert "**Times**" in between and "**Rates**" in between and "| greedy | 8 |" in between
    assert text.endswith(page.read_text(encoding="utf-8")[-200:])
