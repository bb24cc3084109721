"""The soak: what it sends is what it says, no bound holds by itself, and a toy comes through it."""

import collections
import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks import mix, report, soak
from benchmarks.mix import CHAT, SHARES, ClientRequest, Clients, word_of
from benchmarks.soak import Bound, Observed, verdict
from sla_jax.errors import UserError
from tests.serving.asgi import call
from tests.serving.fake import MODEL, FakeService, fake_app

JSON = {"content-type": "application/json"}

# ---- what is sent, and what becomes of it ----


def test_every_kind_is_drawn_and_what_is_meant_well_is_answered():
    app = fake_app(FakeService(sync=True), model=dataclasses.replace(MODEL, context=2000))
    clients = Clients(call(app, "/v1/models").json()["data"], random.Random(0))
    seen: dict[str, list[tuple[ClientRequest, int]]] = collections.defaultdict(list)
    while set(seen) < set(SHARES) or len(seen["bad body"]) < 2:
        case = clients.draw()
        if len(seen[case.kind]) < 2:
            seen[case.kind].append((case, call(app, case.path, content=case.body, headers=JSON).status_code))
    well = {kind: {status for _, status in cases} for kind, cases in seen.items() if kind != "bad body"}
    assert set(well) == set(SHARES) - {"bad body"}
    assert {status for found in well.values() for status in found} == {200}
    bodies = {kind: [json.loads(case.body) for case, _ in cases] for kind, cases in seen.items() if kind in well}
    assert all(body["n"] == 2 for body in bodies["two choices"])
    assert all(body["temperature"] > 0 and "seed" in body for body in bodies["sampled"])
    assert {body["model"] for body in bodies["search"]} <= {"tiny:sla", "tiny:wide"}
    assert all(
        case.leaves_after is not None and b'"stream": true' in case.body for case, _ in seen["left in its stream"]
    )
    assert all(case.patience for case, _ in seen["impatient"]) and all(case.aborts_after for case, _ in seen["aborted"])


def test_a_body_that_is_no_request_is_none_at_the_route_it_is_meant_for():
    app = fake_app(FakeService(sync=True))
    for body in [*(text.encode() for text in mix.BAD_BODIES), mix.NOT_UTF8]:
        assert 400 <= call(app, CHAT, content=body, headers=JSON).status_code < 500, body


STREAM = "text/event-stream; charset=utf-8"


@pytest.mark.parametrize(
    ("status", "kind", "body", "word"),
    [
        (200, "application/json", b'{"choices":[{"finish_reason":"stop"}]}', "answered"),
        (200, "application/json", b'{"choices":[{"finish_reason":"abort"}]}', "aborted"),
        (200, STREAM, b'data: {"choices":[]}\n\ndata: [DONE]\n\n', "answered"),
        (200, STREAM, b'data: {"choices":[{"finish_reason":"abort"}]}\n\ndata: [DONE]\n\n', "aborted"),
        (200, STREAM, b'data: {"choices":[]}\n\n', "no end"),
        (200, STREAM, b'data: {"error":{"code":"timeout"}}\n\ndata: [DONE]\n\n', "out of time"),
        (200, STREAM, b'data: {"error":{"code":"overloaded"}}\n\ndata: [DONE]\n\n', "refused"),
        (200, STREAM, b'data: {"error":{"code":"engine_error"}}\n\ndata: [DONE]\n\n', "500"),
        (408, "application/json", b"{}", "out of time"),
        (503, "application/json", b"{}", "refused"),
        (429, "application/json", b"{}", "4xx"),
        (500, "application/json", b"{}", "500"),
        (502, "text/html", b"", "500"),
    ],
)
def test_an_end_is_told_in_a_word(status, kind, body, word):
    assert word_of(status, kind, body) == word


# ---- the verdict ----


def good() -> Observed:
    """A run with nothing to be said against it."""
    counts = {
        "sla_jax_compiled_programs_total": 40.0,
        f"{soak.OUTCOMES} length": 5.0,
        "sla_jax_committed_tokens_total": 7.0,
    }
    return Observed(
        ends=collections.Counter({("plain", "answered"): 95, ("plain", "refused"): 50}),
        seconds=100.0,
        memory=[(float(second), 1000.0 if second < 60 else 2000.0) for second in range(200)],
        probes=[True] * 4,
        before=counts,
        after={**counts, f"{soak.OUTCOMES} length": 100.0, f"{soak.OUTCOMES} timeout": 5.0},
    )


def failed(figures: Observed) -> list[str]:
    return [line.what for line in verdict(figures) if not line.holds]


def test_a_good_run_keeps_every_bound():
    assert failed(good()) == []
    assert Bound("answered", "95, 0.95 a second", "", True) in verdict(good())


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"ends": collections.Counter({("rewards", "500"): 1})}, "answered with 5xx"),
        ({"ends": collections.Counter({("search", "hung"): 1})}, "hung"),
        ({"ends": collections.Counter({("plain", "no end"): 1})}, "without an end"),
        ({"probes": [True, False]}, "probes"),
        ({"probes": []}, "probes"),
        ({"after": {"sla_jax_compiled_programs_total": 41.0}}, "compiled"),
        ({"after": {**good().after, f"{soak.OUTCOMES} timeout": 6.0}}, "out of time"),
        ({"memory": [(float(second), 1000.0 + second) for second in range(400)]}, "memory"),
    ],
)
def test_every_bound_can_be_broken(changes: dict[str, Any], what: str):
    (said,) = failed(dataclasses.replace(good(), **changes))
    assert what in said


def test_memory_is_not_judged_before_it_has_settled():
    short = dataclasses.replace(good(), memory=[(float(second), 1.0 + second) for second in range(170)])
    assert failed(short) == [] and any(line.seen == "too short a run" for line in verdict(short))


# ---- the program ----


def test_a_toy_comes_through_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soak.main(["1", "--tiny", "--requests", "60"])
    said = capsys.readouterr().out
    rows = {line.split("  ")[1].strip(): line for line in said.splitlines() if line.startswith("  ")}
    assert "yes" in rows["requests that hung"] and "0 of" in rows["ran out of time, of those taken"]
    assert "NO" not in said and {"plain", "sampled", "search", "bad body"} <= set(rows)
    assert "finishing what runs" in (tmp_path / "runs" / "soak.log").read_text()


def test_a_broken_bound_is_the_exit_code_and_the_tables_go_to_their_page(tmp_path, monkeypatch, capsys):
    async def ran(url: str, pid: int | None, options: Any) -> Observed:
        assert url == "http://127.0.0.1:1" and pid is None
        return dataclasses.replace(good(), probes=[False])

    page = tmp_path / "docs" / "serving.md"
    page.parent.mkdir()
    page.write_text((report.ROOT / "docs" / "serving.md").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(soak, "ROOT", tmp_path)
    monkeypatch.setattr(soak, "soak", ran)
    with pytest.raises(SystemExit) as stop:
        soak.main(["1", "--server", "http://127.0.0.1:1", "--write-docs"])
    assert stop.value.code == 1
    assert "0 of 1" in capsys.readouterr().out
    assert "| probes answered as before the load | 0 of 1 | all | NO |" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("words", [["0"], ["1", "--requests", "0"], ["1", "--workers", "0"]])
def test_what_cannot_be_run_is_said(words):
    with pytest.raises(UserError, match="at least 1"):
        soak.main(words)


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(UserError, match="cannot be reached"):
        soak.main(["1", "--server", "http://127.0.0.1:9"])


def test_a_server_that_does_not_get_ready_is_an_error(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="did not get ready"):
        soak.main(["1", "--config", str(tmp_path / "nowhere.yaml")])
    assert "nowhere.yaml" in (tmp_path / "runs" / "soak.log").read_text()
