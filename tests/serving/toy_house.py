"""A running service with a toy worker, and how tests open streams in it and stop its device."""

import threading

from sla_jax.serving.metrics import Metrics
from sla_jax.serving.request import Inspection, Request
from sla_jax.serving.service import Service
from sla_jax.serving.settings import Limits
from tests.serving.toy_worker import PATIENCE, Listener, ToyWorker, answer

SLOTS = {"greedy": 2, "sla": 1}


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class House:
    """A running service, its worker and its metrics. Every stream opened here has to end."""

    def __init__(self, slots=None, queue=16, clock=None, timeout=600.0, **toy):
        slots = slots or SLOTS
        self.worker = ToyWorker(slots, **toy)
        self.metrics = Metrics(slots, "toy")
        self.clock = clock or Clock()
        self.service = Service(slots, Limits(queue=queue, timeout=timeout), self.metrics, clock=self.clock)
        self.listeners: dict[str, Listener] = {}

    def __enter__(self):
        self.service.start(lambda: self.worker)
        assert self.service.wait_ready(PATIENCE)
        return self

    def __exit__(self, *failure):
        self.worker.gate.open()
        self.service.drain(PATIENCE)
        assert self.service.wait(PATIENCE), "the service did not stop"
        assert self.service.gone(PATIENCE)
        for listener in self.listeners.values():
            listener.wait()

    def open(self, name, profile="greedy", *, tokens=9, prompt=None, deadline=None, began=None, sink=None):
        """Submit a request; its listener."""
        listener = sink or Listener()
        prompt = prompt or tuple(map(ord, name))
        times = {"deadline": deadline, "began": began}
        request = Request(id=name, profile=profile, prompt=prompt, max_tokens=tokens, ends=(), **times)
        with self.service.reserve(profile, int(began is None), tokens) as ticket:
            ticket.submit(request, listener)
        if sink is None:
            self.listeners[name] = listener
        return listener

    def ask(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def used(self, profile="greedy"):
        return self.ask("sla_jax_slots_used", profile=profile)

    def hold(self):
        """Stop the device under streams that run, and return when the service waits for it."""
        self.worker.gate.shut()
        self.worker.gate.await_somebody()

    def open_held(self, name, **options):
        """Open the first stream of all; the device stops before its first results."""
        self.worker.gate.shut()
        listener = self.open(name, **options)
        self.worker.gate.await_somebody()
        return listener


FOREVER = 10**6  # more tokens than any test waits for: whoever asks for them has to be cancelled


def expected(name, tokens=9):
    return answer(tuple(map(ord, name)), tokens)


def inspect(house, name, profile="greedy"):
    heard, done = [], threading.Event()
    with house.service.reserve(profile, tokens=0) as ticket:
        ticket.inspect(Inspection(id=name, tokens=(1, 2, 3)), lambda result: (heard.append(result), done.set()))
    return heard, done
