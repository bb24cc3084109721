"""Whom the service takes under overload: by example, and in simulated time at twice the load that it can bear."""

import itertools
import random
import threading
from collections import Counter, deque
from typing import NamedTuple

import pytest

from sla_jax.serving.admission import Admission
from sla_jax.serving.forecast import ROUNDS
from sla_jax.serving.request import Overloaded
from sla_jax.serving.settings import Limits
from tests.serving.asgi import call
from tests.serving.fake import FakeService, fake_app
from tests.serving.toy_house import FOREVER, Clock, House, expected, inspect
from tests.serving.toy_worker import PATIENCE

# ---- by example: every round takes a second and brings three tokens ----


class Timed(House):
    """A house whose device takes a second for a round."""

    def __init__(self, **options):
        super().__init__(clock=Clock(), **options)
        self.worker.on_call = self._called

    def _called(self, name: str, what: str) -> None:
        self.clock.now += name == "round"

    def measured(self, tokens=30):
        """An answer has ended, and so everything is measured."""
        self.open("first", tokens=tokens).wait()
        return self

    def busy(self):
        """A stream has the only slot, and the device stands still."""
        self.open_held("runner", tokens=FOREVER)

    def go_on(self):
        """The stream leaves, and the device goes on."""
        assert self.service.cancel("runner")
        self.worker.gate.open()


def test_a_request_that_cannot_end_in_time_is_refused_before_it_is_taken():
    with Timed(slots={"greedy": 1}, timeout=70.0) as house:
        house.measured()
        house.busy()
        waiting = [house.open(f"waiting{i}", tokens=30, deadline=1e6) for i in range(2)]
        with pytest.raises(Overloaded, match="too busy") as caught:
            house.open("late", tokens=30)
        assert caught.value.reason == "deadline" and 1 <= caught.value.retry_after <= 60
        assert house.ask("sla_jax_rejections_total", reason="deadline") == 1
        assert house.ask("sla_jax_waiting", profile="greedy") == 2, "it took no place"
        inspect(house, "check")  # needs no slot
        house.go_on()
        assert [listener.wait().finish for listener in waiting] == ["length", "length"]
        house.open("later", tokens=30).wait()


def test_a_profile_in_which_nobody_is_takes_whoever_comes():
    """What was measured under load may be wrong when there is none, and could never be put right."""
    with Timed(slots={"greedy": 1}, timeout=1.0) as house:
        house.measured()
        assert house.open("next", tokens=300).wait().finish == "length"


def test_a_free_slot_is_refused_if_the_others_leave_it_no_time():
    with Timed(slots={"greedy": 2}, timeout=12.0) as house:
        house.measured()  # 10 seconds for 30 tokens, alone
        house.busy()
        for _ in range(ROUNDS):
            house.service._admission.paces["greedy"].round(2.0, [3, 3])  # what a second stream would make of it
        with pytest.raises(Overloaded, match="too busy"):
            house.open("long", tokens=30)
        short = house.open("short", tokens=14)
        house.go_on()
        assert short.wait().finish == "length"


def test_before_anything_is_measured_only_the_queue_refuses():
    with Timed(slots={"greedy": 1}, queue=3, timeout=1e-9) as house:
        runner = house.open_held("runner", tokens=3)
        for name in "abc":
            house.open(name)
        with pytest.raises(Overloaded, match="is full") as caught:
            house.open("d")
        assert caught.value.reason == "queue"
        house.worker.gate.open()
        runner.wait()


def test_many_answers_of_one_request_have_to_end_together():
    with Timed(slots={"greedy": 2}, timeout=40.0) as house:
        house.measured()
        with house.service.reserve("greedy", 2, 30), pytest.raises(Overloaded, match="too busy"):
            house.service.reserve("greedy", 6, 30)
        with house.service.reserve("greedy", 4, 30):
            pass


def test_whoever_has_waited_too_long_is_refused_and_the_slot_goes_to_one_with_time():
    with Timed(slots={"greedy": 1}) as house:
        house.measured()
        house.busy()
        now = house.clock.now
        late = house.open("late", tokens=30, deadline=now + 100)  # needs 10 s
        patient = house.open("patient", tokens=30, deadline=now + 1000)
        house.clock.now = now + 95
        house.go_on()
        assert late.wait().finish == "refused" and late.events[-1].retry_after >= 1
        assert patient.wait().tokens == expected("patient", 30)
    assert ("begin", "late") not in house.worker.log
    assert house.ask("sla_jax_requests_total", profile="greedy", outcome="refused") == 1


def test_whoever_has_a_slot_may_use_all_of_its_time():
    with Timed(slots={"greedy": 1}) as house:
        house.measured()
        running = house.open("running", tokens=300, deadline=house.clock.now + 50)
        assert running.wait().finish == "timeout" and len(running.tokens) > 100


# ---- the length of a queue ----


def test_a_queue_is_as_long_as_its_page_says():
    page = Limits()
    assert [page.queue_of(slots) for slots in (8, 100)] == [64, 800]
    assert page.queue_of(1) == 2 * page.choices, "the largest request fits into the shortest queue"
    assert Limits(queue=3).queue_of(100) == 3 and Limits(queue=0).queue_of(1) == 0


# ---- what HTTP says of a request before it is taken ----

HELLO = [{"role": "user", "content": "Hello?"}]


@pytest.mark.parametrize(
    ("path", "body", "tokens"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 5, "n": 2}, 5),
        ("/v1/chat/completions", {"messages": HELLO}, None),
        ("/v1/completions", {"prompt": "a"}, 16),
        ("/v1/completions", {"prompt": "a", "max_tokens": 0, "echo": True, "logprobs": 1}, 0),
        ("/v1/rewards", {"prompt": "a", "response": "b"}, 0),
        ("/ck_generate", {"prompt": "a", "max_tokens": 7}, 7),
        ("/ck_check_reward_score", {"prompt": "a", "response": "b"}, 0),
        ("/v1/generate", {"max_tokens": 9, "text_content": {"text": "a"}}, 9),
    ],
)
def test_places_are_reserved_for_as_many_tokens_as_are_asked_for(path, body, tokens):
    """What an answer may need decides whether it can end in time; what needs no slot is not refused for want of one."""
    service = FakeService()
    assert call(fake_app(service), path, body).status_code == 200
    assert service.bounds == [tokens]


# ---- in simulated time ----

ROUND = 0.4  # seconds of the device for a round of one profile
CHUNK = 3


class Asked(NamedTuple):
    """A request of the simulation."""

    when: float
    profile: str
    tokens: int
    length: int  # at which it would end by itself


class Simulation(Timed):
    """A house at an overload; the clock goes on with the device's work, during which the next requests come."""

    def __init__(self, slots, timeout, shared, requests):
        super().__init__(slots=slots, queue=64, timeout=timeout)
        self._shared = shared
        self.worker.chunk = CHUNK
        self.worker.length_of = lambda request: self.lengths[request.id]
        self.lengths: dict[str, int] = {}
        self.outcomes: Counter[str] = Counter()
        self.done = threading.Event()
        self._timeout, self._coming = timeout, deque(requests)
        self._begun = self.clock.now

    def _called(self, name: str, what: str) -> None:
        if name == "read":
            self.clock.now += ROUND / 10
        if name == "round":
            self.clock.now += self._round(what)
            while self._coming and self._begun + self._coming[0].when <= self.clock.now:
                self._ask()

    def _round(self, profile: str) -> float:
        """Seconds of a round: of all slots, or only of those that are taken where they share the device's time."""
        return ROUND * len(self.worker.seats[profile]) / self.worker.slots[profile] if self._shared else ROUND

    def _ask(self) -> None:
        asked, name = self._coming.popleft(), str(len(self.lengths))
        self.lengths[name] = asked.length
        try:
            self.open(name, asked.profile, tokens=asked.tokens, deadline=self.clock.now + self._timeout)
        except Overloaded:
            self.outcomes["not taken"] += 1
        if not self._coming:
            self.done.set()

    def run(self) -> None:
        """Return when everybody has an answer or a refusal. From the second on, requests come during rounds."""
        self._ask()
        assert self.done.wait(PATIENCE)
        self.outcomes.update(str(listener.wait().finish) for listener in self.listeners.values())

    @property
    def seconds(self) -> float:
        return self.clock.now - self._begun

    @property
    def answers(self) -> int:
        return self.outcomes["stop"] + self.outcomes["length"]

    @property
    def taken(self) -> int:
        return sum(self.outcomes.values()) - self.outcomes["not taken"]


def traffic(slots, count, limits, seed=0):
    """Requests at twice the rate that the slots can serve, with answers of any length up to theirs."""
    chance = random.Random(seed)
    drawn = [
        (profile, limit, 1 + int(chance.expovariate(1 / 60)))
        for profile, limit in zip(
            chance.choices(list(slots), list(slots.values()), k=count), chance.choices(limits, k=count), strict=True
        )
    ]
    mean = sum(min(limit, length) for _, limit, length in drawn) / count
    served = sum(slots.values()) / (mean / CHUNK * ROUND * len(slots))  # requests a second
    moments = itertools.accumulate(chance.expovariate(2 * served) for _ in drawn)
    first = 3  # so many come at once, so that there is always a round that moves the clock
    return [Asked(when if number > first else 0.0, *drawn[number]) for number, when in enumerate(moments)]


@pytest.mark.parametrize(
    ("slots", "timeout", "limits", "shared"),
    [
        ({"greedy": 8}, 20.0, [16, 48, 200, 400], False),
        ({"greedy": 1}, 60.0, [16, 48, 200], False),
        ({"greedy": 4, "sla": 2}, 60.0, [48, 400], False),
        ({"greedy": 4}, 30.0, [60], False),
        ({"greedy": 16}, 15.0, [16, 48, 200], True),  # with all slots taken an answer is late
    ],
)
def test_at_twice_the_capacity_what_is_taken_ends_in_time_and_no_less_is_answered(
    slots, timeout, limits, shared, monkeypatch
):
    requests = traffic(slots, 300, limits)
    with Simulation(slots, timeout, shared, requests) as careful:
        careful.run()
    monkeypatch.setattr(Admission, "_check_time", lambda *_: None)
    monkeypatch.setattr(Admission, "hopeless", lambda *_: [])
    with Simulation(slots, timeout, shared, requests) as careless:
        careless.run()
    assert sum(careful.outcomes.values()) == sum(careless.outcomes.values()) == 300
    assert careless.outcomes["timeout"] > 0.1 * careless.taken, "nothing was to be prevented"
    assert careful.outcomes["timeout"] <= 0.05 * careful.taken
    assert careful.outcomes["refused"] <= 0.05 * careful.taken, "no is said soon"
    assert careful.answers / careful.seconds >= careless.answers / careless.seconds
