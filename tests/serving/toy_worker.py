"""A worker without a device: every prompt has its answer, every call is counted, and it fails or halts when told to."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from sla_jax.serving.request import Event, Finish, Inspected, Inspection, Request

PATIENCE = 60.0  # seconds that a test waits for what has to come; no test is that slow


def answer(prompt: tuple[int, ...], count: int, start: int = 0) -> list[int]:
    """`count` tokens of what follows a prompt."""
    return [(sum(prompt) * 31 + len(prompt) + i * 7) % 97 for i in range(start, start + count)]


class Gate:
    """Results wait here for the device; open unless a test shuts it. `pace`: seconds that the device takes for one."""

    def __init__(self, pace: float = 0.0):
        self.pace = pace
        self._news = threading.Condition()
        self._is_open, self._somebody = True, False

    def shut(self) -> None:
        with self._news:
            self._is_open, self._somebody = False, False

    def open(self) -> None:
        with self._news:
            self._is_open = True
            self._news.notify_all()

    def await_somebody(self) -> None:
        """Return when the service stands at the shut gate."""
        with self._news:
            assert self._news.wait_for(lambda: self._somebody, PATIENCE), "nobody came to the gate"

    def wait(self) -> None:
        if self.pace:
            time.sleep(self.pace)
        with self._news:
            self._somebody = not self._is_open
            self._news.notify_all()
            assert self._news.wait_for(lambda: self._is_open, PATIENCE), "the gate was never opened"


class ToyPending:
    def __init__(self, worker: "ToyWorker", what: str, events: dict[int, Event]):
        self._worker, self._what, self._events, self._waited = worker, what, events, False

    def wait(self) -> None:
        self._worker.gate.wait()
        self._waited = True

    def get(self) -> dict[int, Event]:
        assert self._waited, "a result was read before it was there"
        self._worker.log.append(("get", self._what))
        return self._events


class ToyReading:
    def __init__(self, request: Request, pieces: int):
        self.request, self.left, self.cached = request, pieces, 0


class Seat:
    """A slot's occupant, as the device knows it."""

    def __init__(self, request: Request):
        self.request, self.rounds, self.sent, self.explored = request, 0, 0, 0


class ToyWorker:
    """`chunk` tokens a round after `ramp` rounds without any; prompts are read in pieces of `piece` tokens."""

    def __init__(self, slots: Mapping[str, int], chunk: int = 3, ramp: int = 0, piece: int = 8):
        self.slots, self.chunk, self.ramp, self.piece = dict(slots), chunk, ramp, piece
        self.seats: dict[str, dict[int, Seat]] = {name: {} for name in slots}
        self.calls: Counter[str] = Counter()
        self.log: list[tuple[str, str]] = []
        self.failures: dict[str, Exception] = {}  # method → what it raises
        self.length_of: Callable[[Request], int] = lambda request: request.max_tokens  # at which it ends by itself
        self.on_call: Callable[[str, str], None] = lambda name, what: None
        self.gate = Gate()
        self.threads: set[int] = set()

    def _called(self, name: str, what: str) -> None:
        self.calls[name] += 1
        self.log.append((name, what))
        self.threads.add(threading.get_ident())
        self.on_call(name, what)
        if name in self.failures:
            raise self.failures[name]

    def begin(self, request: Request) -> ToyReading:
        self._called("begin", request.id)
        return ToyReading(request, -(-len(request.prompt) // self.piece))

    def read(self, reading: ToyReading) -> bool:
        self._called("read", reading.request.id)
        reading.left -= 1
        return reading.left <= 0

    def insert(self, request: Request, reading: ToyReading, slot: int) -> ToyPending:
        self._called("insert", request.id)
        assert reading.left == 0 and 0 <= slot < self.slots[request.profile]
        assert slot not in self.seats[request.profile], f"slot {slot} is taken"
        self.seats[request.profile][slot] = Seat(request)
        return ToyPending(self, "first", {slot: Event(tokens=answer(request.prompt, 1), alive=1)})

    def round(self, profile: str) -> ToyPending:
        self._called("round", profile)
        seats = self.seats[profile]
        events = {slot: event for slot, seat in seats.items() if (event := self._advance(seat))}
        for slot, event in events.items():
            if event.finish:
                del seats[slot]
        return ToyPending(self, f"round {self.calls['round']}", events)

    def _advance(self, seat: Seat) -> Event | None:
        seat.rounds += 1
        seat.explored += self.chunk
        if seat.rounds <= self.ramp:
            return None
        limit = seat.request.max_tokens
        end = min(limit, self.length_of(seat.request))
        tokens = answer(seat.request.prompt, min(self.chunk, end - seat.sent), seat.sent)
        repeated = 1 if seat.sent == 0 else 0
        seat.sent += len(tokens)
        finish: Finish | None = None if seat.sent < end else "length" if end == limit else "stop"
        return Event(
            tokens=tokens,
            repeated=repeated,
            rewards=[0.5] * len(tokens),
            score=1.0,
            alive=1,
            explored=seat.explored,
            finish=finish,
        )

    def free(self, profile: str, slot: int) -> None:
        self._called("free", f"{profile}/{slot}")
        self.seats[profile].pop(slot, None)

    def inspect(self, inspection: Inspection) -> Callable[[], Inspected]:
        self._called("inspect", inspection.id)
        count = len(inspection.tokens)
        return lambda: Inspected([0.25] * count, [None] + [-1.0] * (count - 1), [[] for _ in range(count)])


class Listener:
    """A sink that remembers; nothing may come after the finishing event."""

    def __init__(self):
        self.events: list[Event] = []
        self.started = threading.Event()
        self.done = threading.Event()

    def __call__(self, event: Event) -> None:
        assert not self.done.is_set(), "an event came after the last one"
        self.events.append(event)
        self.started.set()
        if event.finish:
            self.done.set()

    def wait(self) -> "Listener":
        assert self.done.wait(PATIENCE), f"no end came after {self.events}"
        return self

    @property
    def finish(self) -> str | None:
        return self.events[-1].finish if self.events else None

    @property
    def tokens(self) -> list[int]:
        return [token for event in self.events for token in event.tokens[event.repeated :]]
