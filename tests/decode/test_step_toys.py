"""Step beam search and DVTS against the oracle on toys, and what ties them to each other and to other decoders."""

import functools
import itertools
from typing import Any

import jax
import pytest

from sla_jax.decode import step_lanes
from sla_jax.decode.best_of_n import BestOfN
from sla_jax.decode.completion import Completion, PoolRound, best
from sla_jax.decode.dvts import DVTS
from sla_jax.decode.program import Engine
from sla_jax.decode.separator import separator_table
from sla_jax.decode.step_beam import StepBeam
from sla_jax.decode.step_program import Run, StepProgram, phase_of
from sla_jax.errors import UserError
from tests import step_oracles, toys
from tests.decode.test_pool import completions, draws_of, some_rows
from tests.step_oracles import Asked, Found
from tests.toys import Row

LIMIT = 9
PIECES = (b"a", b"\n", b"b\n\nc", b"\nd")  # a separator in one token, or in a token that ends and one that begins
SIZES = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)]
Steps = StepBeam | DVTS


@functools.cache
def program() -> StepProgram:
    """Compiled once a number of lanes and room."""
    return StepProgram(Engine(prefill=toys.no_prefill, steps=lambda params, decoder: toys.steps(decoder.chunk)))


_plant = jax.jit(step_lanes.plant, static_argnames="phase")


def play(decoder: Steps, rows: list[Row], **given: Any) -> list[list[PoolRound]]:
    """Run all rows, which have one limit, to the end: the rounds of each."""
    phase = phase_of(decoder, rows[0].limit)
    table = separator_table(PIECES, decoder.separator.encode())
    started = _plant(*toys.planted(phase, rows), phase=phase)
    run = Run(None, decoder, phase, table, **given)
    return [list(log) for log in zip(*program().play(run, started), strict=True)]


def fates(decoder: Steps, rows: list[Row]) -> list[dict[int, Completion]]:
    """Every request's candidates."""
    return [completions(log) for log in play(decoder, rows)]


def expected(decoder: Steps, row: Row) -> Found:
    """What the oracle says of one row."""
    names = ("n", "width", "lookahead", "aggregate", "max_steps")
    given = {name: getattr(decoder, name) for name in names} | {"separator": decoder.separator.encode()}
    only = getattr(decoder, "filter_duplicates", False)
    asked = Asked(**given, trees=isinstance(decoder, DVTS), pieces=PIECES, filter_duplicates=only)
    return step_oracles.search(toys.plain(row.tables, row.start), asked, draws_of(row))


def same(log: list[PoolRound], theirs: Found) -> None:
    """Tokens, fates, steps, the account and the answer exactly; float32 scores nearly."""
    ours = completions(log)
    assert {c: (tuple(one.tokens), one.finish, one.round) for c, one in ours.items()} == {
        c: fate[:3] for c, fate in theirs.fates.items()
    }
    for number, one in ours.items():
        assert one.score == pytest.approx(float(theirs.fates[number].score), abs=1e-5)
        assert one.step_scores == pytest.approx([float(score) for score in theirs.fates[number].scores], abs=1e-5)
    assert (log[-1].explored, log[-1].steps) == (theirs.explored, theirs.passes)
    assert best(list(ours.values()), complete_first=True).candidate == theirs.answer
    assert [round_.done for round_ in log].index(True) <= len(log) - 1


@pytest.mark.parametrize("kind", [StepBeam, DVTS])
@pytest.mark.parametrize(("n", "width"), SIZES)
def test_every_small_search_is_the_oracles(kind: type[Steps], n: int, width: int) -> None:
    rows = some_rows(seed=10 * n + width, limit=LIMIT)
    aggregates = ("last", "min", "prod", "mean") if (n, width) == (4, 2) else ("last",)
    seen = set()
    for lookahead, aggregate, max_steps in itertools.product((0, 1, 2), aggregates, (1, 2, 40)):
        decoder = kind(n=n, width=width, lookahead=lookahead, aggregate=aggregate, max_steps=max_steps, chunk=3)
        for log, row in zip(play(decoder, rows), rows, strict=True):
            same(log, expected(decoder, row))
            seen |= {one.finish for one in completions(log).values()}
    assert seen == {"stop", "length", *(["rejected"] if width > 1 else [])}


@pytest.mark.parametrize("lookahead", [0, 1])
def test_duplicates_leave(lookahead: int) -> None:
    rows = some_rows(seed=3, limit=LIMIT)
    plain = StepBeam(n=4, width=2, lookahead=lookahead, chunk=3)
    decoder = StepBeam(n=4, width=2, lookahead=lookahead, chunk=3, filter_duplicates=True)
    logs = play(decoder, rows)
    for log, row in zip(logs, rows, strict=True):
        same(log, expected(decoder, row))
    assert [completions(log) for log in logs] != fates(plain, rows)


@pytest.mark.parametrize("kind", [StepBeam, DVTS])
def test_width_1_is_best_of_n_sample_for_sample(kind: type[Steps]) -> None:
    rows = some_rows(seed=4, limit=LIMIT)
    pools = [completions(log) for log in toys.play_pool(BestOfN(n=4, chunk=3), rows)]
    for ours, theirs in zip(fates(kind(n=4, width=1, lookahead=1, chunk=3), rows), pools, strict=True):
        assert {c: one.tokens for c, one in ours.items()} == {c: one.tokens for c, one in theirs.items()}
        assert all(ours[c].rewards == one.rewards for c, one in theirs.items())


def test_dvts_of_one_tree_is_a_step_beam_that_ends_with_its_best() -> None:
    """Candidate for candidate, until the best one of a step has ended."""
    rows = some_rows(seed=5, limit=LIMIT, worlds=12)
    shorter = 0
    for tree, beam in zip(
        play(DVTS(n=4, width=4, chunk=3), rows), play(StepBeam(n=4, width=4, chunk=3), rows), strict=True
    ):
        ended = [round_.ended for round_ in tree if round_.ended]
        theirs = [round_.ended for round_ in beam if round_.ended]
        assert [_undecided(one) for one in ended[:-1]] == [_undecided(one) for one in theirs[: len(ended) - 1]]
        by_number = {one.candidate: one for one in theirs[len(ended) - 1]}
        assert {one.candidate for one in ended[-1]} >= set(by_number)
        assert all(one == by_number.get(one.candidate, one) for one in ended[-1])
        top = max(ended[-1], key=lambda one: one.score)
        assert top.finish != "rejected"
        shorter += len(ended) < len(theirs)
    assert 0 < shorter < len(rows)


def _undecided(ended: list[Completion]) -> list[Completion]:
    return sorted(ended)


@pytest.mark.parametrize("decoder", [StepBeam(n=4, width=2, lookahead=1, chunk=3), DVTS(n=4, width=2, chunk=3)])
def test_progress_and_company_change_nothing(decoder: Steps) -> None:
    """Neither the chunk nor who else is in the batch, nor in which order."""
    rows = some_rows(seed=6, limit=LIMIT)
    whole = type(decoder)(**{**vars(decoder), "chunk": LIMIT})
    assert fates(decoder, rows) == fates(whole, rows) == fates(decoder, rows[::-1])[::-1]
    assert [fates(decoder, [row])[0] for row in rows[:2]] == fates(decoder, rows)[:2]


def test_a_judge_replaces_the_measure_and_sees_what_was_looked_at() -> None:
    """The fewest tokens of kind 0 win; what is judged is the answer so far with its look-ahead."""
    rows = some_rows(seed=7, limit=8)[:2]
    seen: list[Completion] = []

    def judge(request: int, found: list[Completion]) -> list[float]:
        seen.extend(found)
        return [-float(one.tokens.count(0)) for one in found]

    logs = play(StepBeam(n=4, width=2, lookahead=1, aggregate="min", chunk=3), rows, judge=judge)
    for log in logs:
        assert all(one.score == min(one.step_scores) for one in completions(log).values())
        ended = [one for one in completions(log).values() if one.finish != "rejected"]
        assert all(one.step_scores[-1] == -one.tokens.count(0) for one in ended)
    told = [one for log in logs for one in completions(log).values() if one.finish == "rejected"]
    assert any(
        len(one.tokens) > len(short.tokens) for one in seen for short in told if one.candidate == short.candidate
    )


def test_an_answer_may_be_complete_without_an_end_token() -> None:
    """Complete is what has the token 2 in it: looked for after steps, and then nothing is looked ahead."""
    rows = [row._replace(ends=()) for row in some_rows(seed=8, limit=LIMIT)]
    logs = play(DVTS(n=4, width=2, chunk=3, boxed=True, lookahead=1), rows, over=lambda tokens: 2 in tokens)
    ended = [one for log in logs for one in completions(log).values()]
    assert all((2 in one.tokens) == (one.finish == "stop") for one in ended if len(one.tokens) < LIMIT)
    assert {one.finish for one in ended} >= {"stop", "rejected"}
    assert any(one.finish == "stop" and len(one.tokens) < LIMIT for one in ended)


def test_what_looking_ahead_holds_and_how_far_a_step_is() -> None:
    (row,) = some_rows(seed=9, limit=LIMIT, worlds=1)
    (log,) = play(StepBeam(n=2, width=2, lookahead=2, chunk=1), [row])
    assert {round_.copies for round_ in log} == {1, 2}
    assert [round_.phase for round_ in log] == sorted(round_.phase for round_ in log)
    assert [round_.explored for round_ in log] == sorted(round_.explored for round_ in log)
    (log,) = play(StepBeam(n=2, width=2, chunk=1), [row])
    assert {round_.copies for round_ in log} == {1}


def test_nothing_compiles_for_other_settings_of_one_size(compiled: list[str]) -> None:
    rows = some_rows(seed=10, limit=LIMIT)
    play(StepBeam(n=4, width=2, lookahead=1, chunk=3), rows)
    count = len(compiled)
    play(DVTS(n=4, width=4, lookahead=2, aggregate="mean", max_steps=3, chunk=3), rows[::-1])
    play(StepBeam(n=4, width=1, chunk=3), rows)
    assert len(compiled) == count


@pytest.mark.parametrize("separator", ["\n", "\n\n", "aab", "abab"])
def test_the_table_finds_what_a_search_in_the_text_finds(separator: str) -> None:
    """Every sequence of up to 4 tokens, by the table from the step's start, and by looking into the bytes."""
    pieces = [b"", b"a", b"b", b"ab", b"aa", b"\n", b"\n\n\n", b"b\na", b"ba"]
    table = separator_table(pieces, separator.encode())
    for tokens in itertools.product(range(1, len(pieces)), repeat=4):
        state = 0
        for count, token in enumerate(tokens, 1):
            state = int(table[state, token])
            assert (state == len(separator)) == (separator.encode() in b"".join(pieces[t] for t in tokens[:count]))
            if state == len(separator):
                break
    assert not table[:, 0].any()


@pytest.mark.parametrize("kind", [StepBeam, DVTS])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n": 0}, "n=0 is out of range"),
        ({"n": 6, "width": 4}, "n=6 candidates are not a multiple of width=4; give n=4 or n=8"),
        ({"n": 2}, "width=4 is out of range; it has to be 1 to 2"),
        ({"lookahead": -1}, "lookahead=-1 is out of range"),
        ({"max_steps": 0}, "max_steps=0 is out of range"),
        ({"aggregate": "lst"}, "'lst'; known: last, min, prod, mean. Did you mean"),
        ({"separator": ""}, "the separator is empty"),
        ({"separator": "x" * 65}, "65 bytes long"),
        ({"score": "rewards"}, "'rewards'; known: reward"),
    ],
)
def test_bad_settings_say_what_is_wrong(kind: type[Steps], given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind(**given)
