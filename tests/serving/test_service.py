"""The service with a toy worker: answers, order, one round late, cancellation, overload, deadlines, inspections."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from sla_jax.errors import UserError
from sla_jax.serving.request import Overloaded
from tests.serving.toy_house import FOREVER, Clock, House, expected, inspect
from tests.serving.toy_worker import PATIENCE

# ---- answers ----


def test_answers_are_the_prompts_own_whatever_else_runs():
    with House(slots={"greedy": 3, "sla": 2}, queue=50) as house:
        lengths = {f"{profile}{i}": (profile, 1 + 5 * i % 17) for profile in ("greedy", "sla") for i in range(12)}
        for name, (profile, tokens) in lengths.items():
            house.open(name, profile, tokens=tokens)
        for name, (_, tokens) in lengths.items():
            assert house.listeners[name].wait().tokens == expected(name, tokens)
            assert house.listeners[name].finish == "length"
    assert len(house.worker.threads) == 1


def test_events_are_numbered_by_round_and_empty_rounds_are_not_sent():
    with House(ramp=2) as house:
        events = house.open("alone", tokens=7).wait().events
    assert [event.round for event in events] == [None, 2, 3, 4]
    assert [event.repeated for event in events] == [0, 1, 0, 0]
    assert [event.finish for event in events] == [None, None, None, "length"]
    assert [event.explored for event in events] == [0, 9, 12, 15]


def test_results_are_read_one_round_late_and_first_tokens_at_once():
    with House() as house:
        house.open("it", tokens=9).wait()
    log = [what if name == "get" else name for name, what in house.worker.log]
    assert log[:5] == ["begin", "read", "insert", "round", "first"]
    assert log[5:] == ["round", "round 1", "round", "round 2", "round", "round 3", "round 4"]  # 3 was the last


def test_requests_of_one_profile_share_rounds():
    with House() as house:
        house.open_held("one", tokens=30)
        house.open("two", tokens=30)
        house.open("other", "sla", tokens=30)
        house.worker.gate.open()
        for listener in house.listeners.values():
            listener.wait()
    # ten rounds of tokens, and those that were dispatched before somebody came or after the last had gone
    assert 10 <= house.worker.log.count(("round", "greedy")) <= 13
    assert 10 <= house.worker.log.count(("round", "sla")) <= 11


def test_a_long_prompt_does_not_stall_a_running_stream():
    with House(piece=1) as house:
        runner = house.open("runner", tokens=FOREVER)
        assert runner.started.wait(PATIENCE)
        house.open("a prompt of many pieces", tokens=3).wait()
        house.service.cancel("runner")
    steps = "".join("p" if name == "read" else "r" if name == "round" else "" for name, _ in house.worker.log[7:])
    first, last = steps.index("p"), steps.rindex("p")
    assert steps[first : last + 1] == "pr" * 22 + "p"


def test_several_short_prompts_need_not_wait_for_a_round_each():
    with House(slots={"greedy": 5}) as house:
        runner = house.open("runner", tokens=FOREVER)
        assert runner.started.wait(PATIENCE)
        house.hold()
        for name in "abcd":
            house.open(name)
        house.worker.gate.open()
        for name in "abcd":
            house.listeners[name].wait()
        house.service.cancel("runner")
    log = [name for name, _ in house.worker.log]
    assert log[log.index("insert") + 1 :].count("insert") == 4
    second = log.index("insert", log.index("insert") + 1)
    assert "round" not in log[second : len(log) - log[::-1].index("insert")]


def test_an_answer_that_is_cut_off_on_purpose_counts_as_it_is_told_to():
    """HTTP ends an answer at a stop string; that is no abort."""
    with House(slots={"greedy": 1}) as house:
        runner = house.open("runner", tokens=FOREVER)
        assert runner.started.wait(PATIENCE)
        assert house.service.cancel("runner", "stop")
        runner.wait()
    assert runner.events[-1].finish == "stop"
    assert house.ask("sla_jax_requests_total", profile="greedy", outcome="stop") == 1


def test_a_freed_slot_goes_to_the_next_at_once_and_stale_results_go_to_nobody():
    with House(slots={"greedy": 1}) as house:
        old = house.open("old", tokens=FOREVER)
        assert old.started.wait(PATIENCE)
        house.hold()  # two rounds of `old` are dispatched and not read
        house.service.cancel("old")
        new = house.open("new", tokens=9)
        house.worker.gate.open()
        assert new.wait().tokens == expected("new")
        assert [event.round for event in new.events] == [None, 0, 1, 2]
        assert old.wait().finish == "abort"
        assert old.tokens == expected("old", len(old.tokens))


# ---- cancellation ----


def test_cancel_while_waiting_reading_running_and_after():
    with House(slots={"greedy": 2}, piece=1) as house:
        running = house.open("running", tokens=FOREVER)
        assert running.started.wait(PATIENCE)
        house.worker.on_call = lambda name, what: house.worker.gate.shut() if what == "reading" else None
        reading = house.open("reading")
        house.worker.gate.await_somebody()  # one letter of seven is read
        waiting = house.open("waiting")
        third = house.open("third")
        for name in ("waiting", "reading", "running"):
            assert house.service.cancel(name)
        house.worker.gate.open()
        for name, listener in (("waiting", waiting), ("reading", reading), ("running", running)):
            assert listener.wait().finish == "abort"
            assert not house.service.cancel(name)
        assert third.wait().tokens == expected("third")
        assert not house.service.cancel("third") and not house.service.cancel("nobody")
    assert [event.tokens for event in reading.events + waiting.events] == [[], []]
    assert house.worker.log.count(("read", "reading")) == 1
    assert house.worker.calls["free"] == 1  # only one had been inserted
    assert house.used() == 0


def test_eight_streams_dropped_mid_answer_fifty_times():
    with House(slots={"greedy": 8}, queue=8) as house:
        for turn in range(50):
            streams = [house.open(f"{turn}/{i}", tokens=FOREVER) for i in range(8)]
            for stream in streams:
                assert stream.started.wait(PATIENCE)
            house.hold()
            before = house.worker.calls["round"]
            for i in range(8):
                assert house.service.cancel(f"{turn}/{i}")
            house.worker.gate.open()
            for stream in streams:
                assert stream.wait().finish == "abort"
            assert house.used() == 0
            assert house.worker.calls["round"] - before <= 2
        assert house.open("next").wait().tokens == expected("next")
        assert not house.service._scheduler.jobs and not house.service._cancelled
    assert house.worker.calls["free"] == 400
    assert house.ask("sla_jax_requests_total", profile="greedy", outcome="abort") == 400


def test_a_sink_that_raises_ends_its_own_request_only():
    calls = []

    def broken(event):
        calls.append(event)
        raise RuntimeError("Event loop is closed")

    with House() as house:
        house.open("broken", tokens=FOREVER, sink=broken)
        assert house.open("well").wait().tokens == expected("well")
        assert house.open("after").wait().tokens == expected("after")
    assert [event.finish for event in calls] == [None, "abort"]
    assert house.service.state == "stopped"


# ---- overload, deadlines ----


def test_two_hundred_requests_at_concurrency_32_are_answered_or_refused():
    with House(slots={"greedy": 8}, queue=16) as house:

        def client(number):
            try:
                return house.open(f"{number}", tokens=1 + number % 40).wait().finish
            except Overloaded as error:
                assert 1 <= error.retry_after <= 60 and "greedy is full" in str(error)
                return "refused"

        with ThreadPoolExecutor(32) as pool:
            outcomes = Counter(pool.map(client, range(200)))
    assert set(outcomes) <= {"length", "refused"} and outcomes["length"] >= 24
    assert house.ask("sla_jax_requests_total", profile="greedy", outcome="length") == outcomes["length"]
    assert house.ask("sla_jax_rejections_total", reason="queue") == outcomes["refused"]
    for number, listener in house.listeners.items():
        assert listener.tokens == expected(number, 1 + int(number) % 40)


def test_places_are_counted_before_anything_is_submitted():
    with House(slots={"greedy": 1}, queue=2) as house:
        with house.service.reserve("greedy", 3):
            assert house.ask("sla_jax_waiting", profile="greedy") == 3
            with pytest.raises(Overloaded, match="needs 2 places"):
                house.service.reserve("greedy", 2)
        assert house.ask("sla_jax_waiting", profile="greedy") == 0
        with house.service.reserve("greedy", 3):
            pass
        with pytest.raises(UserError, match="needs 4 places and the profile greedy has 3"):
            house.service.reserve("greedy", 4)


def test_retry_after_follows_the_pace_of_the_latest_answers():
    clock = Clock()
    with House(slots={"greedy": 1}, queue=1, clock=clock, timeout=1e9) as house:
        for i in range(4):
            house.open(f"{i}").wait()
            clock.now += 7.0
        with house.service.reserve("greedy", 2), pytest.raises(Overloaded) as caught:
            house.service.reserve("greedy")
        assert caught.value.retry_after == 7
        clock.now += 10**6
        with house.service.reserve("greedy", 2), pytest.raises(Overloaded) as caught:
            house.service.reserve("greedy")
        assert caught.value.retry_after == 60


def test_deadlines_end_waiting_and_running_requests():
    clock = Clock()
    with House(slots={"greedy": 1}, clock=clock) as house:
        running = house.open("running", tokens=FOREVER, deadline=150.0)
        assert running.started.wait(PATIENCE)
        waiting = house.open("waiting", deadline=120.0)
        patient = house.open("patient", deadline=10.0**4)
        clock.now = 120.0
        assert waiting.wait().finish == "timeout" and waiting.tokens == []
        assert not running.done.is_set()
        clock.now = 150.0
        assert running.wait().finish == "timeout" and running.tokens
        assert patient.wait().finish == "length"
    assert house.ask("sla_jax_requests_total", profile="greedy", outcome="timeout") == 2


# ---- inspections ----


def test_inspections_need_no_slot_and_run_between_rounds():
    with House(slots={"greedy": 1}) as house:
        runner = house.open("runner", tokens=FOREVER)
        checks = [inspect(house, f"check{i}") for i in range(5)]
        for heard, done in checks:
            assert done.wait(PATIENCE)
            assert heard[0].rewards == [0.25] * 3 and heard[0].error is None
        house.service.cancel("runner")
        runner.wait()
    log = [name for name, _ in house.worker.log]
    first = log.index("inspect")
    last = len(log) - log[::-1].index("inspect")
    assert "".join(name[0] for name in log[first:last]).count("ii") == 0
    assert house.ask("sla_jax_inspections_total", outcome="stop") == 5


def test_an_inspection_may_fail_alone_be_cancelled_or_be_too_late():
    clock = Clock()
    with House(slots={"greedy": 1}, clock=clock) as house:
        house.worker.failures["inspect"] = UserError("this text is bad")
        heard, done = inspect(house, "bad")
        assert done.wait(PATIENCE) and heard[0].error == "this text is bad"
        del house.worker.failures["inspect"]
        runner = house.open_held("runner", tokens=FOREVER)
        cancelled, late = inspect(house, "cancelled"), inspect(house, "late")
        assert house.service.cancel("cancelled")
        clock.now += 10**4
        house.worker.gate.open()
        assert cancelled[1].wait(PATIENCE) and "abort" in cancelled[0][0].error
        assert late[1].wait(PATIENCE) and "timeout" in late[0][0].error
        house.service.cancel("runner")
        runner.wait()
    assert [len(heard) for heard, _ in (cancelled, late)] == [1, 1]
