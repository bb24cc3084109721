"""Votes and pass@k by search-and-learn's formulas, and when two answers are the same."""

import json
import multiprocessing
import resource
import threading
from fractions import Fraction
from itertools import combinations

import pytest

from sla_jax.errors import UserError
from sla_jax.evaluation.report import equivalence
from sla_jax.evaluation.report.equivalence import Equivalence
from sla_jax.evaluation.report.voting import VOTES, classes, majority, naive, pass_at_k, powers, weighted

GROUPS, SCORES = [0, 1, 1, 2], [0.9, 0.5, 0.45, 0.1]


@pytest.mark.parametrize(("k", "winners"), [(1, (0, 0, 0)), (2, (0, 0, 0)), (3, (0, 1, 1)), (4, (0, 1, 1))])
def test_votes_at_k(k: int, winners: tuple[int, int, int]):
    assert tuple(vote(GROUPS[:k], SCORES[:k]) for vote in VOTES.values()) == winners
    assert list(VOTES) == ["naive", "weighted", "majority"]


def test_ties_go_to_what_came_first():
    assert naive([3, 1], [0.5, 0.5]) == 3
    assert weighted([2, 0, 0], [0.5, 0.25, 0.25]) == 2
    assert majority([4, 1, 1, 4], [0.0, 1.0, 1.0, 0.0]) == 4


@pytest.mark.parametrize(("n", "right", "k", "value"), [(4, 1, 2, 0.5), (5, 2, 3, 0.9), (5, 3, 3, 1.0), (4, 0, 4, 0.0)])
def test_pass_at_k(n: int, right: int, k: int, value: float):
    assert pass_at_k(n, right, k) == pytest.approx(value)


def test_pass_at_k_is_the_share_of_all_choices_of_k():
    for n in range(1, 8):
        for right in range(n + 1):
            for k in range(1, n + 1):
                some = [any(one < right for one in chosen) for chosen in combinations(range(n), k)]
                assert pass_at_k(n, right, k) == pytest.approx(float(Fraction(sum(some), len(some))))


def test_powers_of_two():
    assert powers(1) == [1] and powers(8) == [1, 2, 4, 8] and powers(10) == [1, 2, 4, 8] and powers(0) == []


def test_classes_are_numbered_as_they_are_seen():
    assert classes(["a", "b", "A", "c", "B", "a"], lambda one, two: one.lower() == two.lower()) == [0, 1, 0, 2, 1, 0]
    assert classes(["", "x", ""], lambda one, two: False) == [0, 1, 0]


@pytest.mark.parametrize(
    ("reference", "text", "right"),
    [
        (r"\frac{3}{4}", r"So the answer is $\boxed{0.75}$.", True),
        (r"\frac{3}{4}", r"So the answer is $\boxed{\frac{6}{8}}$.", True),
        (r"\frac{3}{4}", r"So the answer is $\boxed{\frac{4}{3}}$.", False),
        ("x^2 + 2x + 1", r"It is $\boxed{(x+1)^2}$.", True),
        ("3 * 4 = <<3*4=12>>12\n#### 1,012", "That makes 1012 pens.", True),
        ("12", "I do not know.", False),
        (r"\$18.90", "It is $18.90.", True),
        (r"\$18.90", r"It costs \$18.90, not \$5.", False),
        (r"\$32,\!348", r"$\boxed{32348}$", True),
        ("$36", r"$\boxed{\$36}$ leaves 4.", True),
        ("1,000", r"\boxed{1\,000}", True),
        (r"50\%", r"\boxed{50\%} of 8", True),
        ("x=5", r"\boxed{5}", True),
        ("5", "So $x = 5$.", True),
        (r"\text{(C)}", "The answer is (C).", True),
        (r"\text{(C)}", "I read 2 times. The answer is **C**.", True),
        (r"\text{(C)}", "The answer is B.", False),
        (r"\text{Evelyn}", "The answer is Evelyn.", True),
        (r"5 \text{ cm}", r"\boxed{5\,\mathrm{cm}}", True),
        (r"\[\frac12\]", r"\boxed{0.5}", True),
        (r"**\(\frac12\)**", r"\boxed{0.5}", True),
        ("42", "#### 42\nThat is 6 times 7.", True),
        ("42", "#### 42 dollars, in 3 days", True),
        ("3", "#### 42 dollars, in 3 days", False),
        ("42", r"\boxed{42}. This took 7 steps and $2^3$ tries.", True),
        ("42", "The answer is **42**.", True),
        ("6,7", r"$\boxed{6}$ and $\boxed{7}$", True),
        ("7", r"\boxed{3}, no: \boxed{7}. Twice: \boxed{7}", True),
        ("3", r"\boxed{3}, no: \boxed{7}", False),
        ("36", r"\fbox{36}", True),
        (r"So $x$ is $\boxed{7}$, as 2 + 5 is.", "It is 7.", True),
        ("10 + 32 = 42\n#### 42\nas 6 times 7", "42", True),
    ],
)
def test_answers_are_compared_as_mathematics(reference: str, text: str, right: bool):
    pytest.importorskip("math_verify")
    pair = Equivalence()
    assert pair.same(pair.reference(reference), pair.final(text)) is right


def test_equal_answers_share_a_class_and_no_answer_is_one_of_its_own():
    pytest.importorskip("math_verify")
    pair = Equivalence()
    texts = [r"$\boxed{\frac{1}{2}}$", "no idea", r"$\boxed{0.5}$", "none", r"$\boxed{2}$"]
    assert classes([pair.final(text) for text in texts], pair.same) == [0, 1, 0, 1, 2]


class Asked:
    """A library that says what it is told to, and keeps what it was asked."""

    def __init__(self, *replies):
        self.replies, self.requests = list(replies), []

    def ask(self, *request):
        self.requests.append(request)
        return self.replies.pop(0)


def test_what_cannot_be_compared_equals_nothing_but_the_same_text(monkeypatch):
    pytest.importorskip("math_verify")
    library = Asked([0, "1"], [0, "2"], None, [0, "1"], None, None)
    monkeypatch.setattr(equivalence, "library", lambda timeout: library)
    pair = Equivalence(timeout=2)
    one, two = pair.final(r"$\boxed{1}$"), pair.final(r"$\boxed{2}$")
    assert not pair.same(one, two) and not pair.same(one, two)
    assert pair.same(pair.reference("1"), pair.final("It is 1.")) and pair.final("Hm.") == ""
    names = [request[0] for request in library.requests]
    assert names == ["read", "read", "same", "read", "same", "read"], "each is asked once"
    assert library.requests[2] == ("same", (r"$\boxed{1}$", "1"), (r"$\boxed{2}$", "2"))


def test_a_process_that_takes_too_long_or_too_much_is_ended_and_another_one_answers():
    pytest.importorskip("math_verify")
    pair = Equivalence(timeout=1)
    assert pair._library is Equivalence(timeout=1)._library, "one process for all"
    gold = pair.reference("42")
    for power in (r"\boxed{9^{9^{9}} \bmod 7}", r"\boxed{2^{10^{10}}}"):
        assert pair.same(gold, pair.final(r"\boxed{42}"))
        answer = pair.final(power)
        assert answer == "" or not pair.same(gold, answer)
    assert pair.same(pair.reference("0.5"), pair.final(r"\boxed{\frac12}"))
    pair._library.close()
    assert pair.same(pair.reference("7"), pair.final("So it is 7.")), "also after it was ended"


def test_a_library_that_does_not_start_is_told(monkeypatch, tmp_path):
    program = tmp_path / "broken.py"
    program.write_text("raise SystemExit(3)")
    monkeypatch.setattr(equivalence, "PROGRAM", program)
    library = equivalence.Library(1)
    with pytest.raises(UserError, match=r"does not start \(exit code 3\)"):
        library.ask("read", ["1"])


def test_every_request_has_a_limit_of_the_kernel(monkeypatch):
    """Also when nobody is left to end the process: its processor time and its memory."""
    pytest.importorskip("math_verify")
    from sla_jax.evaluation.report import mathematics

    limits: dict[int, list[int]] = {}
    monkeypatch.setattr(mathematics, "bound", lambda kind, most: limits.setdefault(kind, []).append(most))
    mine, its = multiprocessing.Pipe()
    for request in (["read", ["$2$"]], ["read", [3]], ["same", ["$2$", "2"], [None, "three"]]):
        mine.send_bytes(json.dumps(request).encode())
    heard = []

    def listen():
        heard.extend(json.loads(mine.recv_bytes()) for _ in range(4))
        mine.close()

    with its:
        thread = threading.Thread(target=listen)
        thread.start()
        mathematics.serve(its, 5, 1000)  # ends with the pipe; here, because math-verify's own alarm is for main threads
        thread.join()
    assert heard == ["ready", [0, "2"], None, False]
    assert limits[resource.RLIMIT_AS] == [1000] and limits[resource.RLIMIT_CORE] == [0]
    assert len(limits[resource.RLIMIT_CPU]) == 3 and min(limits[resource.RLIMIT_CPU]) > 5
