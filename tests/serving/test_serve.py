"""serve.py and the process around the service: errors at the door, loading, signals, failures, the whole program."""

import contextlib
import io
import json
import logging
import signal
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import yaml
from fastapi import FastAPI

import serve
from sla_jax.errors import UserError
from sla_jax.serving import process
from sla_jax.serving.settings import Profile, ServeConfig, Tls
from tests.programs import run_program, tiny_checkpoint
from tests.serving.background import Background
from tests.serving.toy_worker import PATIENCE

PROFILES = [
    {"name": "greedy", "method": "greedy", "chunk": 4, "slots": 2},
    {"name": "sla", "method": "sla", "width": 2, "chunk": 4, "depth": 1, "slots": 2},
]
LONG = 900  # tokens; the toy device takes a second or two for them


def write_config(directory, checkpoint, **fields):
    path = directory / "serve.yaml"
    engine = {"context": 128, "prefill_chunk": 16}
    path.write_text(yaml.safe_dump({"checkpoint": str(checkpoint), "profiles": PROFILES, "engine": engine, **fields}))
    return str(path)


def toy(mode):
    return Background("-m", "tests.serving.toy_server", mode)


def ready_url(server):
    """`ready: URL serves …`."""
    return server.line_with("ready: ").split()[1]


def ask(url, tokens, client=httpx, **fields):
    body = {"model": "toy", "prompt": "Once upon a time", "max_tokens": tokens, **fields}
    return client.post(f"{url}/v1/completions", json=body, timeout=PATIENCE)


@contextlib.contextmanager
def streaming(url, tokens):
    """The data of each server-sent event, as text, of an answer that has begun when this is entered."""
    body = {"model": "toy", "prompt": "Once upon a time", "max_tokens": tokens, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=PATIENCE) as response:
        assert response.status_code == 200
        events = (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))
        next(events)
        yield events


# ---- at the door ----


def test_it_needs_a_config():
    done = run_program("serve.py", ok=False)
    assert done.returncode == 2 and "python serve.py configs/serve/smollm2.yaml" in done.stderr


def test_help_lists_every_group_of_options(capsys):
    with pytest.raises(SystemExit) as stop:
        serve.main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert all(
        flag in said for flag in ("--checkpoint", "--port", "--limits.grace", "--tls.cert", "--profiles.0.slots")
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--prot", "3"], "'--port'"),
        (["--port", "70000"], "port=70000"),
        (["--port", "0", "--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["--tls.cert", "x.pem"], "belong together"),
        (["--target", "v5e:2x4"], "--dry-run"),
        (["--profiles.0.slots", "0"], "slots=0"),
    ],
)
def test_what_the_user_can_mend_is_said(tmp_path, flags, said):
    with pytest.raises(UserError, match=said):
        serve.main([write_config(tmp_path, tmp_path / "nowhere"), *flags])


def test_a_port_in_use_is_named_before_anything_is_loaded(tmp_path):
    with process.listen("127.0.0.1", 0) as other:
        port = str(other.getsockname()[1])
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is in use"):
            serve.main([write_config(tmp_path, tmp_path / "nowhere"), "--port", port])


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        serve.main([write_config(tmp_path, tmp_path / "nowhere"), "--port", "0"])


def test_the_log_moves_no_cursor(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(process.sys, "stderr", written)
    process.log_handler().handle(logging.makeLogRecord({"levelname": "INFO", "msg": "from %s", "args": ("\x1b[2J\r",)}))
    assert written.getvalue().endswith(" INFO from ␛[2J␍\n")


def test_a_certificate_that_cannot_be_read_is_named(tmp_path):
    tls = Tls(cert=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    config = ServeConfig(checkpoint="x", profiles=(Profile(name="greedy", method="greedy", slots=1),), tls=tls)
    with process.listen("127.0.0.1", 0) as listener, pytest.raises(UserError, match="cert.pem"):
        process.Http(FastAPI(), config, listener)


# ---- the life of a process ----


def test_a_signal_finishes_what_runs_refuses_the_rest_and_exits_0():
    with toy("well") as server, httpx.Client(timeout=PATIENCE) as idle:
        url = ready_url(server)
        assert idle.get(f"{url}/ready").status_code == 200  # its connection stays open, and must not hold up the end
        with streaming(url, LONG) as events:
            server.signal()
            server.signal()  # an echo of the first, as timeout(1) makes one; no second wish
            server.line_with("finishing what runs")
            assert ask(url, 5).status_code == 503
            assert idle.get(f"{url}/ready").status_code == 503
            *_, last, done = events
        assert done == "[DONE]" and json.loads(last)["choices"][0]["finish_reason"] == "length"
        assert server.exit_code() == 0, server.said


def test_load_beyond_the_queue_is_refused_and_a_signal_under_load_exits_0():
    with toy("well") as server, ThreadPoolExecutor(32) as pool, httpx.Client() as client:
        url = ready_url(server)
        answers = list(pool.map(lambda number: ask(url, 1 + number % 60, client, seed=number), range(200)))
        codes = [answer.status_code for answer in answers]
        assert set(codes) <= {200, 503} and codes.count(200) >= 20
        assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in answers if answer.status_code == 503)
        assert all(answer.json()["choices"] for answer in answers if answer.status_code == 200)
        running = [pool.submit(ask, url, LONG, client) for _ in range(3)]
        with streaming(url, LONG):
            server.signal(signal.SIGINT)
            server.line_with("finishing what runs")
        assert {answer.result().status_code for answer in running} <= {200, 503}
        assert server.exit_code() == 0, server.said


def test_a_worker_that_fails_ends_streams_with_an_error_and_the_program_with_1():
    with toy("failing") as server:
        with streaming(ready_url(server), LONG) as events:
            said = list(events)
        assert any("error" in json.loads(data) for data in said if data != "[DONE]"), said[-3:]
        assert server.exit_code() == 1
        assert "the device is gone" in server.said


def test_a_worker_that_hangs_is_left_behind():
    with toy("hanging") as server:
        with streaming(ready_url(server), LONG):
            server.line_with("hanging")
            server.signal()
            server.line_with("does not come back")
        assert server.exit_code() == 1


def test_a_second_signal_ends_it_at_once():
    with toy("well") as server:
        with streaming(ready_url(server), 10**4):
            server.signal()
            server.line_with("finishing what runs")
            server.signal(signal.SIGINT)
            assert server.exit_code() == 128 + signal.SIGINT


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]])
def test_a_thread_that_tokenizes_for_ever_keeps_nobody(signals):
    """The process ends with the grace period, or at once with the second signal."""
    with toy("tokenizing") as server, ThreadPoolExecutor() as pool:
        url = ready_url(server)
        for path, body in (("/tokenize", {"prompt": "a"}), ("/v1/completions", {"prompt": "a"})):
            pool.submit(httpx.post, url + path, json=body, timeout=PATIENCE)
            server.line_with("tokenizing")
        assert httpx.get(f"{url}/health", timeout=PATIENCE).status_code == 200
        server.signal(signals[0])
        if signals[1:]:
            server.line_with("finishing what runs")
            server.signal(signals[1])
        assert server.exit_code() == (0 if signals[1:] == [] else 128 + signal.SIGINT), server.said


def test_http_answers_while_the_model_is_loading():
    with toy("stuck") as server:
        url = server.line_with("listening on").split("listening on ")[1].split(";")[0]
        server.line_with("loading a toy")
        assert httpx.get(f"{url}/health", timeout=PATIENCE).status_code == 200
        assert httpx.get(f"{url}/ready", timeout=PATIENCE).status_code == 503
        assert ask(url, 5).status_code == 503
        server.signal()
        assert server.exit_code() == 0, server.said


def test_a_model_that_cannot_be_loaded_is_the_users_error():
    with toy("unloadable") as server:
        server.line_with("error: the toy is broken; mend it.")
        assert server.exit_code() == 2
        assert "Traceback" not in server.said


# ---- the whole program ----


def test_the_program_serves_a_checkpoint(tmp_path):
    config = write_config(tmp_path, tiny_checkpoint(tmp_path / "tiny"), model="toy")
    with Background("serve.py", config, "--port", "0") as server:
        url = ready_url(server)
        answers = {name: ask(url, 12, model=f"toy:{name}", ignore_eos=True).json() for name in ("greedy", "sla")}
        assert all(answer["usage"]["completion_tokens"] == 12 for answer in answers.values())
        again = ask(url, 12, model="toy:sla", ignore_eos=True).json()
        assert again["choices"][0]["text"] == answers["sla"]["choices"][0]["text"]
        server.signal()
        assert server.exit_code() == 0, server.said
