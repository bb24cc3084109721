"""How the service ends: a request fails, the worker fails, a signal says stop."""

import threading

import pytest

from sla_jax.errors import UserError
from sla_jax.serving.metrics import Metrics
from sla_jax.serving.request import Request, Unavailable
from sla_jax.serving.service import Service
from sla_jax.serving.settings import Limits
from tests.serving.toy_house import FOREVER, SLOTS, Clock, House, expected, inspect
from tests.serving.toy_worker import PATIENCE, Listener, ToyWorker


def test_a_request_that_cannot_be_begun_fails_alone():
    with House() as house:
        steady = house.open("steady", tokens=FOREVER)
        assert steady.started.wait(PATIENCE)
        for error, said in (
            (UserError("no such token"), "no such token"),
            (ValueError("secret"), "the request failed"),
        ):
            house.worker.failures["begin"] = error
            bad = house.open(f"bad {said}").wait()
            assert (bad.finish, bad.events[0].error) == ("error", said)
        house.worker.failures.clear()
        house.service.cancel("steady")
        assert steady.wait().finish == "abort"
        assert house.open("next").wait().tokens == expected("next")


@pytest.mark.parametrize("method", ["read", "insert", "round", "free", "inspect"])
def test_a_worker_that_fails_ends_every_stream_once(method):
    house = House(slots={"greedy": 1})
    with house:
        running = house.open("running", tokens=FOREVER)
        assert running.started.wait(PATIENCE)
        house.hold()
        waiting = house.open("waiting")
        heard, done = inspect(house, "check")
        house.worker.failures[method] = RuntimeError("the device is gone")
        if method in ("free", "read", "insert"):
            house.service.cancel("running")
        house.worker.gate.open()
        assert house.service.wait(PATIENCE)
        assert house.service.state == "failed" and "the device is gone" in house.service.error
        assert waiting.wait().finish == "error" and "engine has failed" in waiting.events[-1].error
        assert running.wait().finish == ("abort" if method in ("read", "insert") else "error")
        assert done.wait(PATIENCE) and len(heard) == 1
        with pytest.raises(Unavailable, match="failed"):
            house.service.reserve("greedy")
        house.service.drain(1.0)
        assert house.service.state == "failed"
    assert house.used() == 0


def test_drain_finishes_what_was_taken_and_refuses_the_rest():
    with House(slots={"greedy": 1}) as house:
        running = house.open_held("running", tokens=300)
        waiting = house.open("waiting")
        ticket = house.service.reserve("greedy")
        house.service.drain(1000.0)
        assert house.service.state == "draining"
        with pytest.raises(Unavailable, match="shutting down"):
            house.service.reserve("greedy")
        late = Listener()
        with ticket:
            ticket.submit(Request(id="late", profile="greedy", prompt=(1,), max_tokens=5, ends=()), late)
        house.worker.gate.open()
        assert house.service.wait(PATIENCE) and house.service.state == "stopped"
    assert [x.finish for x in (running, waiting, late)] == ["length"] * 3
    assert house.service.error is None
    assert house.ask("sla_jax_rejections_total", reason="draining") == 1


def test_drain_aborts_what_takes_longer_than_the_grace_period():
    clock = Clock()
    with House(slots={"greedy": 1}, clock=clock) as house:
        running = house.open("running", tokens=FOREVER)
        waiting = house.open("waiting")
        assert running.started.wait(PATIENCE)
        house.service.drain(30.0)
        clock.now += 30.0
        assert house.service.wait(PATIENCE)
        assert [running.wait().finish, waiting.wait().finish] == ["abort", "abort"]
    assert house.service.state == "stopped"


def test_drain_waits_for_places_that_are_given_back_or_used():
    for is_used in (True, False):
        with House() as house:
            with house.service.reserve("greedy") as ticket:
                house.service.drain(1000.0)
                assert not house.service.wait(0.05)
                last = Listener()
                if is_used:
                    ticket.submit(Request(id="last", profile="greedy", prompt=(1,), max_tokens=5, ends=()), last)
            assert house.service.wait(PATIENCE) and house.service.state == "stopped"
            assert last.finish == ("length" if is_used else None)


def test_a_ticket_left_unused_ends_with_the_server():
    with House() as house:
        ticket = house.service.reserve("greedy")
        house.service.drain(0.0)
        assert house.service.wait(PATIENCE)
        with ticket, pytest.raises(Unavailable, match="has shut down"):
            ticket.submit(Request(id="x", profile="greedy", prompt=(1,), max_tokens=5, ends=()), Listener())


def test_nothing_is_taken_before_the_worker_is_there():
    metrics = Metrics(SLOTS)
    service = Service(SLOTS, Limits(), metrics)
    building, go_on = threading.Event(), threading.Event()

    def build():
        building.set()
        assert go_on.wait(PATIENCE)
        return ToyWorker(SLOTS)

    service.start(build)
    assert building.wait(PATIENCE) and service.state == "starting"
    with pytest.raises(Unavailable, match="being loaded"):
        service.reserve("greedy")
    service.drain(10.0)  # a signal that comes while loading does not wait for it
    assert service.wait(PATIENCE) and service.state == "stopped"
    go_on.set()
    assert service.gone(PATIENCE)


def test_a_worker_that_cannot_be_built_is_a_failure():
    service = Service(SLOTS, Limits(), Metrics(SLOTS))
    error = UserError("the checkpoint is broken")

    def build():
        raise error

    service.start(build)
    assert service.wait(PATIENCE)
    assert service.state == "failed" and service.failure is error
