"""Who is taken, and who is told at once to come again: when a queue is full, or when time would run out.

A request is refused when it comes if the load would make it late: if it is likelier by `LATE` to run out of its time,
after the wait that is foreseen (times `MARGIN`) and at the present pace, than it would be alone. Whoever has waited so
long that it is likelier by `HOPELESS` is refused then, and its slot goes to one that has the time. The estimates are
those of `forecast.py`, and true while somebody runs, who is measured: a profile in which nobody is takes whoever comes,
and before anything is measured only the queue's length refuses.

In plain Python, without a clock; its caller holds the lock that guards the scheduler.
"""

from collections import deque

from sla_jax.errors import UserError
from sla_jax.serving.forecast import LATEST, Pace, seconds_to_slot
from sla_jax.serving.request import Finish, Overloaded
from sla_jax.serving.scheduler import Job, Line, Scheduler

LATE = 0.05
HOPELESS = 0.5
MARGIN = 1.5  # how much longer than foreseen a wait may turn out
LONGEST = 60  # seconds after which a client shall come again, however long the wait


class Admission:
    """Decides about requests. `timeout`: seconds that one may take, waiting included."""

    def __init__(self, scheduler: Scheduler, timeout: float):
        self._scheduler, self._timeout = scheduler, timeout
        self._ends = {name: deque[float](maxlen=LATEST) for name in scheduler.lines}
        self.paces = {name: Pace() for name in scheduler.lines}

    def reserve(self, profile: str, count: int, tokens: int | None, now: float) -> None:
        """Reserve places for answers of at most `tokens` (None: as many as there may be; 0: no answers).

        Raises Overloaded, and UserError for more than there can ever be.
        """
        line = self._scheduler.lines[profile]
        most = line.queue + line.slots
        if count > most:
            raise UserError(f"this needs {count} places and the profile {profile} has {most}; ask for fewer answers.")
        if tokens != 0 and not line.deserted:
            self._check_time(line, count, tokens, now)
        if not self._scheduler.reserve(profile, count):
            raise self._full(line, count, now)

    def hopeless(self, now: float) -> list[Job]:
        """Those who had to wait and will hardly end in time any more."""
        return [job for job in self._scheduler.jobs.values() if self._is_hopeless(job, now)]

    def _is_hopeless(self, job: Job, now: float) -> bool:
        if job.stage != "waiting" or not job.waited or job.deadline is None:
            return False
        pace = self.paces[job.profile]
        late = pace.late_anyway(self._timeout, job.limit) + HOPELESS
        return now + pace.most(job.limit, late, len(job.prompt)) > job.deadline

    def wait(self, line: Line, now: float, more: int = 0, tokens: int | None = None) -> float:
        """Seconds until a slot is free for who comes now, behind `more` answers that come with it."""
        pace = self.paces[line.name]
        ahead = [self._mean(job) for job in line.waiting]
        ahead += [pace.mean()] * line.reserved + [pace.mean(tokens)] * more
        return seconds_to_slot([self._left(job, now) for job in self._scheduler.holding(line.name)], ahead, line.slots)

    def retry_after(self, profile: str, now: float) -> int:
        """Seconds after which whoever waited in vain may come again."""
        return _polite(self.wait(self._scheduler.lines[profile], now))

    def left(self, job: Job, outcome: Finish, now: float) -> None:
        """Note that a job is over."""
        if job.needs_slot:
            self._ends[job.profile].append(now)
        if job.said:
            self.paces[job.profile].answer(job.said, outcome == "stop" and job.said < job.limit)

    def _check_time(self, line: Line, count: int, tokens: int | None, now: float) -> None:
        """Raise Overloaded if the last of `count` answers is likely to be late."""
        pace, wait = self.paces[line.name], self.wait(line, now, count - 1, tokens)
        answer = pace.most(tokens, pace.late_anyway(self._timeout, tokens) + LATE)
        beyond = MARGIN * wait + answer - self._timeout
        if beyond > 0:
            retry_after = _polite(beyond)
            raise Overloaded(
                f"the profile {line.name} is too busy to answer in time: about {wait:.0f} s until a slot is free "
                f"({line.queued} waiting) and up to {answer:.0f} s for the answer are too close to the "
                f"{self._timeout:g} s that a request may take. Try again in about {retry_after} s.",
                retry_after,
                "deadline",
            )

    def _full(self, line: Line, count: int, now: float) -> Overloaded:
        """How long until `count` requests have ended, going by the latest of this profile."""
        ends = self._ends[line.name]
        pace = (now - ends[0]) / len(ends) if ends else 1.0
        retry_after = _polite(pace * count)
        asked = "this request needs one place" if count == 1 else f"this request needs {count} places"
        return Overloaded(
            f"the queue of the profile {line.name} is full ({line.queued} waiting, {line.queue} allowed; {asked}); "
            f"try again in about {retry_after} s.",
            retry_after,
        )

    def _mean(self, job: Job) -> float:
        return self.paces[job.profile].mean(job.limit, len(job.prompt))

    def _left(self, job: Job, now: float) -> float:
        """Seconds until a job leaves its slot, at its deadline at the latest."""
        seconds = self.paces[job.profile].left(job.limit, job.said) if job.stage == "running" else self._mean(job)
        return seconds if job.deadline is None else min(seconds, max(job.deadline - now, 0.0))


def _polite(seconds: float) -> int:
    """Whole seconds for Retry-After."""
    return max(1, min(LONGEST, round(seconds)))
