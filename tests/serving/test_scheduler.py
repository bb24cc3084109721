"""The scheduler under random operations, against a plain list of what came in, and its policy by example."""

import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from sla_jax.serving.scheduler import PIECES, Job, Scheduler

SLOTS = {"greedy": 2, "sla": 1, "wide": 3}
QUEUE = 4
PROFILES = st.sampled_from(sorted(SLOTS))


def made(slots, queue, **options):
    """A scheduler whose queues are all as long."""
    return Scheduler(slots, dict.fromkeys(slots, queue), **options)


def make(scheduler, name, profile="greedy", *, prompt=None, needs_slot=True, deadline=None):
    """A job in the queue; its prompt is its own unless given."""
    job = Job(
        id=name, profile=profile, prompt=prompt or tuple(map(ord, name)), needs_slot=needs_slot, deadline=deadline
    )
    assert scheduler.reserve(profile, 1)
    scheduler.add(job)
    return job


def names(jobs):
    return [job.id for job in jobs]


class Machine(RuleBasedStateMachine):
    """Clients reserve, submit and leave; the service steps; jobs end whenever they like."""

    tickets = Bundle("tickets")
    jobs = Bundle("jobs")

    def __init__(self):
        super().__init__()
        self.scheduler = made(SLOTS, QUEUE)
        self.numbers = itertools.count()
        self.reserved = dict.fromkeys(SLOTS, 0)
        self.alive: list[Job] = []  # in the order of arrival
        self.left: dict[Job, int] = {}  # pieces of its prompt that are not read
        self.patience: dict[Job, int] = {}  # steps since a job that could be read was read

    @rule(target=tickets, profile=PROFILES, count=st.integers(1, 6))
    def reserve(self, profile, count):
        room = self.scheduler.room(profile)
        granted = self.scheduler.reserve(profile, count)
        assert granted == (count <= room)
        self.reserved[profile] += count if granted else 0
        return (profile, count if granted else 0)

    @rule(ticket=consumes(tickets))
    def give_back(self, ticket):
        self.scheduler.release(*ticket)
        self.reserved[ticket[0]] -= ticket[1]

    @rule(target=jobs, ticket=consumes(tickets), needs_slot=st.booleans(), pieces=st.integers(1, 5), twin=st.booleans())
    def submit(self, ticket, needs_slot, pieces, twin):
        profile, count = ticket
        number = next(self.numbers)
        prompt = (-1,) if twin else (number,)
        job = Job(id=str(number), profile=profile, prompt=prompt, needs_slot=needs_slot)
        if count:
            self.scheduler.add(job)
            self.scheduler.release(profile, count - 1)
            self.reserved[profile] -= count
            self.alive.append(job)
            self.left[job] = pieces
        return job

    @rule(job=consumes(jobs))
    def leave(self, job):
        if job in self.alive:
            self._end(job)

    @rule(steps=st.integers(1, 8))
    def step(self, steps):
        for _ in range(steps):
            self._step()

    def _step(self):
        had_running = any(job.stage == "running" and job.needs_slot for job in self.alive)
        self.scheduler.admit()
        served = []
        for job in self.scheduler.pieces():
            assert job.stage == "reading" and job not in served, "a prompt got two pieces"
            served.append(job)
            self.left[job] -= 1
            if self.left[job] == 0:
                self.scheduler.start(job)
        assert not had_running or len(served) <= PIECES
        seats = [job for _, row in self.scheduler.rounds() for job in row.values()]
        assert sorted(names(seats)) == sorted(names(j for j in self.alive if j.stage == "running" and j.needs_slot))
        inspection = self.scheduler.inspection()
        if inspection is not None:
            assert not inspection.needs_slot and inspection.stage == "running"
            self._end(inspection)
        self._check_patience(served)

    def _check_patience(self, served):
        """Nobody with a slot waits for a piece for more steps than there are prompts to read, its elder twins' too."""
        total = sum(SLOTS.values())
        for job in self.alive:
            waits = job.stage == "reading" and job not in served
            self.patience[job] = self.patience.get(job, 0) + 1 if waits else 0
            assert self.patience[job] <= 6 * total, f"{job} starves"

    def _end(self, job):
        self.scheduler.leave(job)
        self.alive.remove(job)
        assert job.stage == "done"

    @invariant()
    def nothing_is_lost_and_the_queue_is_bounded(self):
        assert sorted(self.scheduler.jobs) == sorted(names(self.alive))
        for profile, line in self.scheduler.lines.items():
            assert line.reserved == self.reserved[profile]
            assert line.queued <= QUEUE + len(line.free)

    @invariant()
    def every_slot_has_one_owner(self):
        for profile, line in self.scheduler.lines.items():
            held = [j.slot for j in self.alive if j.profile == profile and j.needs_slot and j.stage != "waiting"]
            assert sorted([*held, *line.free]) == list(range(SLOTS[profile]))

    @invariant()
    def slots_are_given_in_order_of_arrival(self):
        for profile in SLOTS:
            stages = [j.stage for j in self.alive if j.profile == profile and j.needs_slot]
            assert "waiting" not in stages or set(stages[stages.index("waiting") :]) == {"waiting"}

    @precondition(lambda self: self.alive)
    @rule()
    def run_dry(self):
        """Everybody is served in the end and every slot comes back."""
        while self.alive:
            before = (len(self.alive), sum(self.left.values()))
            self._step()
            for job in [job for job in self.alive if job.stage == "running"]:
                self._end(job)
            assert (len(self.alive), sum(self.left.values())) < before, "a step did nothing"
        assert self.scheduler.idle
        assert all(len(line.free) == line.slots for line in self.scheduler.lines.values())


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_place_is_reserved_for_all_or_none():
    scheduler = made({"greedy": 2}, 3)
    assert scheduler.room("greedy") == 5  # two could start at once, three may wait
    assert not scheduler.reserve("greedy", 6)
    assert scheduler.reserve("greedy", 5) and not scheduler.reserve("greedy", 1)
    scheduler.release("greedy", 2)
    assert scheduler.room("greedy") == 2


def test_running_jobs_do_not_count_against_the_queue():
    scheduler = made({"greedy": 1}, 1)
    first = make(scheduler, "first")
    make(scheduler, "second")
    assert scheduler.room("greedy") == 0
    scheduler.admit()
    assert scheduler.room("greedy") == 0  # the second waits still
    scheduler.leave(first)
    scheduler.admit()
    assert scheduler.room("greedy") == 1


def test_a_long_prompt_gets_one_piece_a_step_and_short_ones_pass_it():
    scheduler = made({"greedy": 4}, 4)
    for name in ("long", "one", "two", "three"):
        make(scheduler, name)
    order = []
    for _ in range(3):
        scheduler.admit()
        for job in scheduler.pieces():
            order.append(job.id)
            if job.id != "long":
                scheduler.start(job)
    assert order == ["long", "one", "two", "three", "long", "long"]


def test_pieces_are_few_while_somebody_runs_and_rotate():
    scheduler = made({"greedy": 8}, 8)
    scheduler.admit()
    runner = make(scheduler, "runner")
    scheduler.admit()
    list(scheduler.pieces())
    scheduler.start(runner)
    for name in "abcdef":
        make(scheduler, name)
    steps = []
    for _ in range(3):
        scheduler.admit()
        steps.append("".join(names(scheduler.pieces())))
    assert steps == ["abcd", "efab", "cdef"]


def test_nobody_running_means_nobody_to_hold_up():
    scheduler = made({"greedy": 8}, 8)
    for name in "abcdefgh":
        make(scheduler, name)
    scheduler.admit()
    assert names(scheduler.pieces()) == list("abcdefgh")


def test_equal_prompts_are_read_one_after_another_in_the_same_step():
    scheduler = made({"greedy": 4}, 4)
    for name in "abc":
        make(scheduler, name, prompt=(1, 2, 3))
    make(scheduler, "other")
    scheduler.admit()
    assert names(scheduler.pieces()) == ["a", "other"]  # a is not through: its twins wait for its prefix
    scheduler.admit()
    order = []
    for job in scheduler.pieces():
        order.append(job.id)
        scheduler.start(job)
    assert order[0] == "a" and set(order[1:]) == {"other", "b", "c"}


def test_profiles_take_turns():
    scheduler = made({"greedy": 2, "sla": 2, "wide": 2}, 4, pieces=1)
    runner = make(scheduler, "runner", "wide")
    scheduler.admit()
    list(scheduler.pieces())
    scheduler.start(runner)
    for name, profile in (("g", "greedy"), ("s", "sla"), ("w", "wide")):
        make(scheduler, name, profile)
    served, firsts = [], []
    for _ in range(6):
        scheduler.admit()
        served += [job.profile for job in scheduler.pieces()]
    assert sorted(served[:3]) == sorted(served[3:]) == ["greedy", "sla", "wide"]
    for job in [job for job in scheduler.jobs.values() if job.stage == "reading"]:
        scheduler.start(job)
    for _ in range(3):
        scheduler.admit()
        rounds = [profile for profile, _ in scheduler.rounds()]
        assert sorted(rounds) == ["greedy", "sla", "wide"]
        firsts.append(rounds[0])
    assert sorted(firsts) == ["greedy", "sla", "wide"]


def test_deadlines_and_inspections():
    scheduler = made({"greedy": 1}, 4)
    late = make(scheduler, "late", deadline=5.0)
    make(scheduler, "patient")
    check = make(scheduler, "check", needs_slot=False, deadline=7.0)
    assert scheduler.overdue(4.9) == []
    assert scheduler.overdue(5.0) == [late]
    assert scheduler.overdue(8.0) == [late, check]
    assert scheduler.inspection() is check and scheduler.inspection() is None
    scheduler.leave(check)
    assert names(scheduler.jobs.values()) == ["late", "patient"]


def test_what_goes_on_with_an_answer_is_first_and_needs_no_place():
    scheduler = made({"greedy": 1}, 1)
    running = make(scheduler, "running")
    scheduler.admit()
    waiting = make(scheduler, "waiting")
    assert not scheduler.reserve("greedy", 1)
    rest = Job(id="rest", profile="greedy", prompt=(1,), goes_on=True)
    scheduler.add(rest)
    assert scheduler.lines["greedy"].reserved == 0 and not scheduler.reserve("greedy", 1)
    scheduler.leave(running)
    scheduler.admit()
    assert (rest.stage, waiting.stage) == ("reading", "waiting")
    scheduler.leave(rest)
    scheduler.admit()
    assert waiting.stage == "reading" and scheduler.reserve("greedy", 1)
