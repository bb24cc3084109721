"""Progress where there is no terminal."""

from sla_jax import progress


def told(steps, total=10, first=0):
    """What is written when `steps` are (seconds since the last, done)."""
    now, written = [0.0], []
    tell = progress.lines("answers", written.append, lambda: now[0])
    tell(first, total, "")
    for seconds, done in steps:
        now[0] += seconds
        tell(done, total, "greedy")
    return written


def test_a_line_a_minute_says_how_far_and_how_long_it_takes():
    assert told([(30, 1), (31, 2), (30, 3), (29, 4), (1, 5)]) == [
        "answers: 2 of 10 after 0:01:01, 0:04:04 left  greedy",
        "answers: 5 of 10 after 0:02:01, 0:02:01 left  greedy",
    ]


def test_what_was_there_before_tells_nothing_of_the_time_it_takes():
    assert told([(100, 8)], first=6) == ["answers: 8 of 10 after 0:01:40, 0:01:40 left  greedy"]
    assert told([(100, 6)], first=6) == ["answers: 6 of 10 after 0:01:40  greedy"]


def test_the_end_is_told_of_what_took_longer_than_a_minute():
    assert told([(1, 5), (1, 10)]) == []
    assert told([(61, 5), (1, 10)])[-1] == "answers: 10 of 10 after 0:01:02, 0:00:00 left  greedy"
