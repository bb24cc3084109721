"""The one thread that owns the worker: step = schedule → run → emit, for ever.

A step applies cancellations and deadlines, gives out slots, reads pieces of prompts, dispatches one round for every
profile with live slots, and only then reads what the round before has brought: the device is never without work while
the host emits. With every result the service keeps who sat in which slot when it was dispatched, so a late result never
reaches a slot's next occupant. What a prompt's first token is, is read in its own step. With nothing to do the
thread sleeps on a condition.

Whatever happens, a sink gets exactly one finishing event, and all events come from this thread, in order. Other threads
only reserve, submit, ask to cancel and ask to drain. Imports no jax; of the device it sees only the worker.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Literal

from sla_jax.errors import UserError, for_the_user
from sla_jax.serving.admission import Admission
from sla_jax.serving.jobs import CLOSED, Check, Flight, State, Stream, Worker, new_check, new_stream
from sla_jax.serving.metrics import Metrics
from sla_jax.serving.request import Answer, Event, Finish, Inspected, Inspection, Overloaded, Request, Sink, Unavailable
from sla_jax.serving.scheduler import Job, Scheduler
from sla_jax.serving.settings import Limits

log = logging.getLogger(__name__)


class Ticket:
    """Places in a profile's queue. Leaving it gives back those that were not used."""

    def __init__(self, service: "Service", profile: str, count: int):
        self._service, self._profile, self._left = service, profile, count

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(self, *failure: object) -> None:
        self._service._release(self._profile, self._left)
        self._left = 0

    def submit(self, request: Request, sink: Sink) -> None:
        """Queue a request; from now on its sink hears of it. Raises Unavailable if the server has ended meanwhile."""
        assert request.profile == self._profile, f"a ticket for {self._profile} was used for {request.profile}"
        self._use(new_stream(request, sink, self._service._clock()))

    def inspect(self, inspection: Inspection, answer: Answer) -> None:
        """Queue an inspection. Raises Unavailable if the server has ended meanwhile."""
        deadline = self._service._clock() + self._service._limits.timeout
        self._use(new_check(inspection, self._profile, answer, deadline))

    def _use(self, job: Job) -> None:
        assert self._left > 0 or job.goes_on, "every place of this ticket is used"
        self._service._add(job)
        self._left -= not job.goes_on


class Service:
    """Everything that HTTP may ask for, from any thread; see the module's docstring for what happens then."""

    def __init__(
        self,
        profiles: Mapping[str, int],
        limits: Limits,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.failure: Exception | None = None
        self._limits, self._metrics, self._clock = limits, metrics, clock
        queues = {name: limits.queue_of(slots) for name, slots in profiles.items()}
        self._scheduler = Scheduler(profiles, queues)
        self._admission = Admission(self._scheduler, limits.timeout)
        self._state: State = "starting"
        self._news = threading.Condition()  # guards the scheduler, the admission, the state and the two below
        self._cancelled: dict[str, Finish] = {}  # by request: how it is to end
        self._drain_until: float | None = None
        self._begun = threading.Event()  # the state is not "starting" any more
        self._ended = threading.Event()
        # the thread's own
        self._flights: list[Flight] = []
        self._checks: list[Check] = []
        self._waited = 0.0

    # ---- for every thread ----

    @property
    def state(self) -> State:
        """starting → ready → draining → stopped, or failed."""
        return self._state

    @property
    def error(self) -> str | None:
        """Why it failed."""
        return None if self.failure is None else f"{type(self.failure).__name__}: {self.failure}"

    def start(self, build: Callable[[], Worker]) -> None:
        """Start the thread; it makes the worker first, so that the device belongs to one thread."""
        self._thread = threading.Thread(target=self._run, args=[build], name="service", daemon=True)
        self._thread.start()

    def reserve(self, profile: str, count: int = 1, tokens: int | None = None) -> Ticket:
        """`count` places in a profile's queue, to be had before any work is done; `tokens` bounds each answer.

        Raises Overloaded, Unavailable, and UserError for more than there can ever be.
        """
        with self._news:
            if self._state != "ready":
                self._metrics.rejections.labels(self._state).inc()
                raise Unavailable(f"{CLOSED[self._state]}.")
            try:
                self._admission.reserve(profile, count, tokens, self._clock())
            except Overloaded as error:
                self._metrics.rejections.labels(error.reason).inc()
                raise
            self._show_load(profile)
        return Ticket(self, profile, count)

    def cancel(self, request_id: str, finish: Finish = "abort") -> bool:
        """Ask for an end, which comes as an event. False: no such request (any more)."""
        with self._news:
            known = request_id in self._scheduler.jobs
            if known:
                self._cancelled[request_id] = finish
                self._news.notify()
        return known

    def drain(self, grace: float) -> None:
        """Take nothing new; what was taken may finish within `grace` seconds and is aborted then. Does not wait."""
        with self._news:
            if self._state == "starting":
                self._state = "stopped"
                self._begun.set()
                self._ended.set()
            elif self._state in ("ready", "draining"):
                self._state = "draining"
                until = self._clock() + grace
                self._drain_until = until if self._drain_until is None else min(until, self._drain_until)
                self._news.notify()

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Whether it is ready, after waiting until it is or never will be."""
        self._begun.wait(timeout)
        return self._state == "ready"

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it has stopped or failed, within `timeout` seconds."""
        return self._ended.wait(timeout)

    def gone(self, timeout: float) -> bool:
        """Whether its thread has ended, within `timeout` seconds; one that is still compiling has not."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _release(self, profile: str, count: int) -> None:
        with self._news:
            self._scheduler.release(profile, count)
            self._show_load(profile)
            self._news.notify()

    def _add(self, job: Job) -> None:
        with self._news:
            if self._state not in ("ready", "draining"):
                raise Unavailable(f"{CLOSED[self._state]}.")
            self._scheduler.add(job)
            self._news.notify()

    def _show_load(self, profile: str) -> None:
        line = self._scheduler.lines[profile]
        self._metrics.load(profile, used=line.slots - len(line.free), waiting=line.queued)

    # ---- the thread ----

    def _run(self, build: Callable[[], Worker]) -> None:
        try:
            self._worker = build()
            if self._become_ready():
                while self._has_work():
                    self._step()
                self._end("stopped")
        except Exception as error:
            if for_the_user(error) is None:
                log.exception("the engine has failed")
            self.failure = error
            self._end("failed")

    def _become_ready(self) -> bool:
        with self._news:
            if self._state == "starting":
                self._metrics.ready()
                self._state = "ready"
                self._begun.set()
            return self._state == "ready"

    def _has_work(self) -> bool:
        """Sleep until there is something to do; False when drained."""
        with self._news:
            while self._scheduler.idle and not self._flights and not self._checks:
                left = None if self._drain_until is None else self._drain_until - self._clock()
                places = any(line.reserved for line in self._scheduler.lines.values())
                if left is not None and (left <= 0 or not places):
                    return False
                self._news.wait(left)
        return True

    def _step(self) -> None:
        began, self._waited, now = time.perf_counter(), 0.0, self._clock()
        self._sweep()
        with self._news:
            self._scheduler.admit()
        first_tokens = self._read_prompts()
        rounds = self._dispatch_rounds()
        checks = self._dispatch_check()
        gains = [(flight.profile, self._emit(flight)) for flight in [*self._flights, *first_tokens]]
        for check in self._checks:
            self._answer(check)
        self._metrics.step(time.perf_counter() - began, self._waited, len(self._flights))
        self._flights, self._checks = rounds, checks
        with self._news:
            for profile, tokens in gains:
                if profile is not None and tokens:
                    self._admission.paces[profile].round(self._clock() - now, tokens)
            for profile in self._scheduler.lines:
                self._show_load(profile)

    # ---- schedule ----

    def _sweep(self) -> None:
        """End what was cancelled, what is or must become too late, and after the grace period everything."""
        now = self._clock()
        with self._news:
            jobs = self._scheduler.jobs
            over = [(jobs[name], finish) for name, finish in self._cancelled.items() if name in jobs]
            over += [(job, "timeout") for job in self._scheduler.overdue(now)]
            over += [(job, "refused") for job in self._admission.hopeless(now)]
            if self._drain_until is not None and self._drain_until <= now:
                over = [(job, "abort") for job in jobs.values()]
            self._cancelled.clear()
        for job, finish in over:
            if job.stage != "done":  # for more than one reason
                self._stop(job, finish)

    def _stop(self, job: Job, finish: Finish, error: str | None = None) -> None:
        """End a job before its time."""
        if job.needs_slot and job.stage == "running":
            self._worker.free(job.profile, job.slot)
        self._close(job, finish, error)

    def _close(self, job: Job, finish: Finish, error: str | None) -> None:
        """Take a job out and tell whoever waits for it."""
        with self._news:
            retry_after = self._admission.retry_after(job.profile, self._clock()) if finish == "refused" else 0
        self._leave(job, finish)
        if isinstance(job, Stream):
            cached = 0 if job.reading is None else job.reading.cached
            event = Event(explored=job.explored, cached=cached, finish=finish, error=error, retry_after=retry_after)
            self._tell(job, event)
        elif isinstance(job, Check):
            self._tell_check(job, Inspected(None, [], [], error or f"the inspection was ended ({finish})"))

    def _leave(self, job: Job, outcome: Finish) -> None:
        now = self._clock()
        with self._news:
            self._scheduler.leave(job)
            self._admission.left(job, outcome, now)
            self._show_load(job.profile)
        if isinstance(job, Stream):
            self._metrics.ended(job.profile, outcome, now - job.began)
        else:
            self._metrics.inspections.labels(outcome).inc()

    # ---- run ----

    def _read_prompts(self) -> list[Flight]:
        """Read pieces of prompts; insert those that are done. Their first tokens are on the way then."""
        first_tokens = []
        for job in self._scheduler.pieces():
            assert isinstance(job, Stream)
            if job.reading is None and not self._begin(job):
                continue
            assert job.reading is not None
            if self._worker.read(job.reading):
                pending = self._worker.insert(job.request, job.reading, job.slot)
                with self._news:
                    self._scheduler.start(job)
                    self._admission.paces[job.profile].prompt(self._clock() - job.read_since, len(job.prompt))
                self._metrics.prompt(len(job.prompt), job.reading.cached)
                first_tokens.append(Flight(pending, {job.slot: job}, None))
        return first_tokens

    def _begin(self, stream: Stream) -> bool:
        """Whether a request can be begun; its own data may be at fault, which is nobody else's trouble."""
        stream.read_since = self._clock()
        try:
            stream.reading = self._worker.begin(stream.request)
        except Exception as error:
            if not isinstance(error, UserError):
                log.exception("a request could not be begun")
            self._stop(stream, "error", str(error) if isinstance(error, UserError) else "the request failed")
        return stream.reading is not None

    def _dispatch_rounds(self) -> list[Flight]:
        rounds = self._scheduler.rounds()
        for profile, _ in rounds:
            self._metrics.rounds.labels(profile).inc()
        return [Flight(self._worker.round(profile), seats, profile) for profile, seats in rounds]

    def _dispatch_check(self) -> list[Check]:
        with self._news:
            job = self._scheduler.inspection()
        if job is None:
            return []
        assert isinstance(job, Check)
        try:
            job.result = self._worker.inspect(job.inspection)
        except UserError as error:
            self._stop(job, "error", str(error))
            return []
        return [job]

    # ---- emit ----

    def _emit(self, flight: Flight) -> list[int]:
        """Read a result and pass it on to those who sat there and still do; the tokens that it brought each of them."""
        began, gains = time.perf_counter(), list[int]()
        flight.pending.wait()
        self._waited += time.perf_counter() - began
        events = flight.pending.get()
        for slot, job in flight.seats.items():
            assert isinstance(job, Stream) and job.reading is not None
            if job.stage == "done":
                continue
            number = None if flight.profile is None else job.rounds
            job.rounds += flight.profile is not None
            event, said = events.get(slot), job.said
            if event is not None and (event.tokens or event.finish or event.progress or event.tree):
                self._pass_on(job, event._replace(round=number, cached=job.reading.cached))
            gains.append(job.said - said)
        return gains

    def _pass_on(self, stream: Stream, event: Event) -> None:
        now = self._clock()
        explored = max(event.explored, stream.explored)
        self._metrics.tokens(stream.profile, event, explored - stream.explored)
        stream.explored = explored
        new = len(event.tokens) - event.repeated
        stream.said = max(stream.said, event.progress.tokens) if event.progress else stream.said + new
        if new:
            self._metrics.text(stream.profile, now - stream.since, new, stream.started)
            stream.since, stream.started = now, True
        if event.finish is not None:
            self._leave(stream, event.finish)
        self._tell(stream, event)

    def _tell(self, stream: Stream, event: Event) -> None:
        """Call a sink. One that raises (its event loop is closed) ends its own request and no other."""
        try:
            stream.sink(event)
        except Exception as error:
            log.warning("nobody hears the request %s any more (%s); it is ended", stream.id, error)
            if event.finish is None:
                self._stop(stream, "abort")

    def _answer(self, check: Check) -> None:
        if check.stage == "done" or check.result is None:
            return
        began = time.perf_counter()
        try:
            inspected = check.result()
        except UserError as error:
            self._stop(check, "error", str(error))
            return
        finally:
            self._waited += time.perf_counter() - began
        self._leave(check, "stop")
        self._tell_check(check, inspected)

    def _tell_check(self, check: Check, inspected: Inspected) -> None:
        try:
            check.answer(inspected)
        except Exception as error:
            log.warning("nobody hears the inspection %s any more (%s)", check.id, error)

    # ---- the end ----

    def _end(self, state: Literal["stopped", "failed"]) -> None:
        """Nothing is taken from here on; whoever still waits is told why."""
        with self._news:
            if self._state != "stopped":
                self._state = state
            left = list(self._scheduler.jobs.values())
        for job in left:
            self._close(job, "error", CLOSED["failed"])
        self._flights, self._checks = [], []
        self._begun.set()
        self._ended.set()
