"""Who waits, who is read, who runs: queues, slots and turns in plain Python, without arrays, threads or a clock.

The policy:
- Each profile has its own slots and its own bounded queue. Bounded is what may have to wait: reserved places and
  waiting jobs together are at most the queue's length plus the slots that are free. A place is reserved before its text
  is tokenized, so that overload costs nothing.
- Slots are given in the order of arrival, as soon as they are free, the lowest first: a round costs less when only the
  first slots are taken. A prompt is read into the slot it will run in. What goes on with an answer that has begun is
  first, and needs no place: there are at most as many of these as slots.
- Reading a prompt goes piece by piece. One prompt gets at most one piece between two rounds, so that a long prompt
  never stalls running streams; several prompts get one each, so that short ones need not wait for a round each, up to
  `PIECES` while anything runs and without a limit while nothing does. Pieces are dealt to the profiles in turn, and
  inside a profile to the prompt that was served longest ago: a short prompt overtakes a long one.
- Equal prompts of one profile (the n choices of one request) are read one after another, so that the later find the
  first's keys and values in the prefix cache.
- Every profile with running jobs gets a round per step, the first of them in turn; so does one inspection.
"""

import dataclasses
import heapq
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Literal

PIECES = 4  # pieces of prompts read between two rounds while streams are running
Stage = Literal["new", "waiting", "reading", "running", "done"]


@dataclasses.dataclass(eq=False, kw_only=True)
class Job:
    """Something that wants the device: an answer, which needs a slot, or an inspection, which does not."""

    id: str
    profile: str
    prompt: tuple[int, ...]
    needs_slot: bool = True
    goes_on: bool = False  # with an answer that another job began
    deadline: float | None = None
    limit: int = 0  # tokens that its answer may have
    said: int = 0  # tokens of its answer so far
    stage: Stage = "new"
    slot: int = -1
    waited: bool = False  # no slot was free when it came
    begun: bool = False  # its first piece has been dealt


class Line:
    """One profile's queue and slots."""

    def __init__(self, name: str, slots: int, queue: int):
        self.name = name
        self.slots = slots
        self.queue = queue  # how many may have to wait
        self.free = list(range(slots))  # a heap
        self.reserved = 0
        self.waiting: deque[Job] = deque()
        self.inspections: deque[Job] = deque()
        self.reading: deque[Job] = deque()  # the one served longest ago first
        self.running: dict[int, Job] = {}

    @property
    def queued(self) -> int:
        """Jobs and reserved places that have no slot."""
        return self.reserved + len(self.waiting) + len(self.inspections)

    @property
    def deserted(self) -> bool:
        """Whether nobody has a slot, nor waits or has a place for one."""
        return len(self.free) == self.slots and not self.waiting and not self.reserved

    def admit(self) -> None:
        """Give free slots to whoever waits, in order."""
        while self.waiting and self.free:
            job = self.waiting.popleft()
            job.stage, job.slot = "reading", heapq.heappop(self.free)
            self.reading.append(job)

    def next_reader(self, served: set[Job]) -> Job | None:
        """The prompt to read a piece of, other than those served already; it goes to the end of the row."""
        for job in self.reading:
            if job not in served and (job.begun or not self._has_twin(job)):
                self.reading.remove(job)
                self.reading.append(job)
                job.begun = True
                return job
        return None

    def _has_twin(self, job: Job) -> bool:
        return any(other.begun and other.prompt == job.prompt for other in self.reading)

    def leave(self, job: Job) -> None:
        """Take a job out, wherever it is; its slot is free again."""
        if job.stage == "waiting":
            (self.waiting if job.needs_slot else self.inspections).remove(job)
        elif job.stage == "reading":
            self.reading.remove(job)
        elif job.stage == "running" and job.needs_slot:
            del self.running[job.slot]
        if job.stage in ("reading", "running") and job.needs_slot:
            heapq.heappush(self.free, job.slot)


class Scheduler:
    """The order of things. Not thread-safe: its caller holds a lock around every call but `pieces` and `rounds`,
    which touch only what jobs with a slot touch."""

    def __init__(self, slots: Mapping[str, int], queues: Mapping[str, int], pieces: int = PIECES):
        self.lines = {name: Line(name, count, queues[name]) for name, count in slots.items()}
        self.jobs: dict[str, Job] = {}
        self._pieces = pieces
        self._turns = deque(self.lines.values())

    # ---- coming and going ----

    def room(self, profile: str) -> int:
        """Places that can still be reserved."""
        line = self.lines[profile]
        return line.queue + len(line.free) - line.queued

    def reserve(self, profile: str, count: int) -> bool:
        """Reserve all `count` places or none."""
        granted = count <= self.room(profile)
        if granted:
            self.lines[profile].reserved += count
        return granted

    def release(self, profile: str, count: int) -> None:
        """Give reserved places back."""
        self.lines[profile].reserved -= count
        assert self.lines[profile].reserved >= 0, "more places were given back than reserved"

    def add(self, job: Job) -> None:
        """Queue a job in a place that was reserved, or before all others if it goes on with an answer."""
        assert job.stage == "new" and job.id not in self.jobs, f"the job {job.id} is here already"
        line = self.lines[job.profile]
        if job.goes_on:
            line.waiting.appendleft(job)
        else:
            self.release(job.profile, 1)
            job.waited = job.needs_slot and len(line.waiting) >= len(line.free)
            (line.waiting if job.needs_slot else line.inspections).append(job)
        self.jobs[job.id], job.stage = job, "waiting"

    def leave(self, job: Job) -> None:
        """A job is over, whatever it was doing: finished, cancelled, failed."""
        self.lines[job.profile].leave(job)
        del self.jobs[job.id]
        job.stage = "done"

    def holding(self, profile: str) -> list[Job]:
        """Jobs that have a slot of a profile."""
        having = (job for job in self.jobs.values() if job.profile == profile and job.needs_slot)
        return [job for job in having if job.stage in ("reading", "running")]

    def overdue(self, now: float) -> list[Job]:
        """Jobs whose deadline has come."""
        return [job for job in self.jobs.values() if job.deadline is not None and job.deadline <= now]

    @property
    def idle(self) -> bool:
        """Whether nobody wants the device. (Who waits, waits for somebody who runs.)"""
        return not self.jobs

    # ---- one step ----

    def admit(self) -> None:
        """Give out the free slots and the next turn."""
        self._turns.rotate(-1)
        for line in self._turns:
            line.admit()

    def pieces(self) -> Iterator[Job]:
        """Prompts to read one piece of in this step. Whose prompt is read, says so with `start` before going on."""
        running = any(line.running for line in self._turns)
        budget = self._pieces if running else sum(line.slots for line in self._turns)
        served: set[Job] = set()
        turns = deque(self._turns)
        while turns and len(served) < budget:
            line = turns.popleft()
            if job := line.next_reader(served):
                served.add(job)
                turns.append(line)
                yield job

    def start(self, job: Job) -> None:
        """A prompt is read: from now on its slot takes part in rounds."""
        line = self.lines[job.profile]
        assert job.stage == "reading" and job.slot not in line.running, f"slot {job.slot} of {line.name} is taken"
        line.reading.remove(job)
        line.running[job.slot], job.stage = job, "running"

    def rounds(self) -> list[tuple[str, dict[int, Job]]]:
        """Profiles to run a round of in this step, and who sits in their slots."""
        return [(line.name, dict(line.running)) for line in self._turns if line.running]

    def inspection(self) -> Job | None:
        """The inspection to make in this step; it is running from now on."""
        for line in self._turns:
            if line.inspections:
                job = line.inspections.popleft()
                job.stage = "running"
                return job
        return None
