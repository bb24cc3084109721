"""Traces: what is recorded comes back bit for bit, a replay finds what differs, and nothing that is damaged is read."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import eval as evaluate
import generate
import sla_jax
from sla_jax import sums
from sla_jax.decode.sampling import Sampling
from sla_jax.decode.snapshot import Branch
from sla_jax.errors import UserError
from sla_jax.text import spell
from sla_jax.trace import lines, replay, structure
from sla_jax.trace.record import fingerprint, record, traced
from tests.damage import unsummed

MESSAGES = [{"role": "user", "content": "How much is 12 + 30?"}]
WARM = Sampling(temperature=1.0, seed=7, logit_bias=((5, 0.5),))
TREE = sla_jax.SLA(width=2, chunk=3, depth=1, end_above=1.0)
SEARCHES = {
    "tree": (TREE, Sampling()),
    "warm": (TREE, WARM),  # the programs of "tree"
    "pool": (sla_jax.SpeculativeRejection(n=4, alpha=0.5, budget=32, chunk=4), WARM),
    "beam": (sla_jax.BeamSearch(beams=2), Sampling()),
}
RIGHT = list(SEARCHES)


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """A trace of each search, and the chunks that it came with."""
    directory, found = tmp_path_factory.mktemp("files"), {}
    for name, (search, sampling) in SEARCHES.items():
        path = directory / f"{name}.jsonl"
        found[name] = path, list(record(model, MESSAGES, path, search=search, max_tokens=22, sampling=sampling))
    return found


@pytest.fixture(scope="module")
def traces(files):
    return {name: lines.read(path) for name, (path, _) in files.items()}


def save(path, trace):
    rows = [trace.header, *trace.rounds, trace.end]
    path.write_text("".join(sums.with_member(lines.as_json(row) + "\n") for row in rows), encoding="utf-8")
    return path


def changed(trace, number, **changes):
    """The trace with another round `number`."""
    rounds = list(trace.rounds)
    rounds[number] = dataclasses.replace(rounds[number], **changes)
    return dataclasses.replace(trace, rounds=rounds)


def branch_changed(trace, number, lane, **changes):
    branches = list(trace.rounds[number].branches)
    branches[lane] = dataclasses.replace(branches[lane], **changes)
    return changed(trace, number, branches=branches)


def next_up(numbers, i):
    """The list with the next float32 in place of entry i."""
    return [*numbers[:i], float(np.nextafter(np.float32(numbers[i]), np.float32(np.inf))), *numbers[i + 1 :]]


@pytest.mark.parametrize("name", RIGHT)
def test_a_trace_says_what_the_chunks_say(files, traces, name):
    trace, (path, chunks) = traces[name], files[name]
    assert trace.end.text == "".join(chunk.text for chunk in chunks)
    assert trace.end.cost == chunks[-1].cost and trace.end.finish_reason == chunks[-1].finish_reason
    assert [line.tokens for line in trace.rounds] == [chunk.token_ids for chunk in chunks]
    assert [line.score for line in trace.rounds] == [chunk.score for chunk in chunks]
    for line, chunk in zip(trace.rounds, chunks, strict=True):
        if chunk.tree is not None:
            assert line.branches == chunk.tree.branches and line.margin == chunk.margin
        else:
            assert [one.tokens for one in line.candidates] == [one.tokens for one in chunk.ended]
    assert trace.header.checkpoint == "tiny" and trace.header.text.endswith("<|im_start|>assistant\n")
    again = save(path.with_suffix(".again"), trace)
    assert again.read_bytes() == path.read_bytes(), "what was read is written as it stood"


@pytest.mark.parametrize("name", RIGHT)
def test_every_replay_of_a_right_trace_agrees(traces, model, name):
    trace = traces[name]
    assert list(structure.faults(trace)) == []
    same = replay.search_again(trace, model)
    assert same.first is None and same.largest == 0 and same.values > 100
    read = replay.read_again(trace, model, 1e-2)
    assert read.first is None and read.values >= trace.end.cost.committed_tokens


def test_one_bit_of_one_branch_is_found_and_named(traces, model, tmp_path):
    trace = traces["tree"]
    lane = next(lane for lane, one in enumerate(trace.rounds[2].branches) if len(one.tokens) > 1 and lane)
    old = trace.rounds[2].branches[lane].logprobs
    wrong = lines.read(save(tmp_path / "flipped.jsonl", branch_changed(trace, 2, lane, logprobs=next_up(old, 1))))
    assert list(structure.faults(wrong)) == []
    found = replay.search_again(wrong, model)
    assert found.first.place == f"round 2, lane {lane}, logprobs[1]"
    assert np.float32(found.first.found) == np.float32(old[1]) != np.float32(found.first.recorded)
    near = replay.search_again(wrong, model, tolerance=1e-3)
    assert near.first is None and 0 < near.largest < 1e-3
    assert replay.read_again(wrong, model, 1e-2).first is None


def test_a_forward_pass_finds_a_reward_that_the_model_never_gave(traces, model):
    trace = traces["warm"]
    old = trace.rounds[1].branches[0].rewards
    wrong = branch_changed(trace, 1, 0, rewards=[old[0] + 0.5, *old[1:]])
    found = replay.read_again(wrong, model, 1e-2).first
    place = len(trace.rounds[0].branches[0].tokens)
    assert found.place.endswith(f"reward of the path's token {place}")
    assert found.recorded - found.found == pytest.approx(0.5, abs=1e-2)


def test_a_candidate_that_differs_is_named(traces, model):
    trace = traces["pool"]
    number = next(i for i, line in enumerate(trace.rounds) if line.candidates)
    one = trace.rounds[number].candidates[0]
    wrong = changed(
        trace, number, candidates=[dataclasses.replace(one, score=one.score + 1), *trace.rounds[number].candidates[1:]]
    )
    assert replay.search_again(wrong, model).first.place == f"round {number}, candidate 0, score"


def test_a_search_that_ends_elsewhere_is_found(traces, model):
    trace = traces["beam"]
    shorter = dataclasses.replace(trace, rounds=trace.rounds[:-1])
    assert replay.search_again(shorter, model).first[1:] == ("end", "round")


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda t: branch_changed(t, 2, 0, parent=9), "lane 0 goes on from lane 9; the round before kept"),
        (lambda t: branch_changed(t, 2, 1, rank=0, parent=0), "two children of rank 0"),
        (lambda t: branch_changed(t, 1, 0, logprobs=[]), "tokens and 0 logprobs"),
        (lambda t: branch_changed(t, 1, 0, finish="stop"), "lane 0 has finish stop, and its text says None"),
        (lambda t: branch_changed(t, 0, 0, kept=False), "lane 0 is dropped, against what the round committed"),
        (lambda t: changed(t, 0, tokens=[7, *t.rounds[0].tokens[1:]]), "against what the round committed"),
        (lambda t: changed(t, 1, explored=1), "round 1: explored is 1, and the branches say"),
        (lambda t: changed(t, 1, alive=7), "alive is 7"),
        (lambda t: changed(t, 1, steps=99), "steps grows by"),
        (lambda t: changed(t, 0, chosen=None), "tokens are committed of no branch"),
        (lambda t: changed(t, 0, chosen=3), "lane 3 is chosen and not among those that were kept"),
        (lambda t: changed(t, 0, score=9.0), "the score is 9.0"),
        (lambda t: changed(t, 1, round=5), "round 1 calls itself round 5"),
        (lambda t: dataclasses.replace(t, rounds=t.rounds[:-1]), "the end's cost has steps"),
        (lambda t: dataclasses.replace(t, end=dataclasses.replace(t.end, pieces={})), "has no text of the tokens"),
    ],
)
def test_a_tree_that_cannot_be_is_described(traces, break_it, says):
    assert any(says in fault for fault in structure.faults(break_it(traces["tree"])))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokens": [1]}, "the answer is not the text of candidate"),
        ({"chosen": None}, "the answer is no candidate's"),
        ({"alive": 99}, "99 candidates are alive in"),
        ({"explored": 0}, "explored goes down"),
    ],
)
def test_a_pool_that_cannot_be_is_described(traces, change, says):
    assert any(says in fault for fault in structure.faults(changed(traces["pool"], -1, **change)))


@given(st.floats(width=32))
def test_every_float32_comes_back_with_few_digits(value):
    branch = {"parent": 0, "rank": 0, "tokens": [1], "rewards": [0.0], "entropies": [0.0], "score": 0.5}
    branch |= {"logprobs": [value], "finish": None, "kept": True}
    counts = {"round": 0, "alive": 1, "steps": 1, "lane_steps": 1, "explored": 1, "drafted": 0, "accepted": 0}
    nothing = {"tokens": [], "chosen": None, "score": None, "margin": None}
    line = lines.TreeRound(**counts, **nothing, branches=[Branch(**branch)])
    text = lines.as_json(line)
    written = json.loads(text, parse_constant=pytest.fail)["branches"][0]["logprobs"][0]
    (back,) = lines.line_of(lines.TreeRound, json.loads(text), "here").branches[0].logprobs
    assert np.float32(back).tobytes() == np.float32(value).tobytes() or (math.isnan(back) and math.isnan(value))
    digits = repr(written).split("e")[0].strip("-0.").replace(".", "")
    assert isinstance(written, str) or len(digits) <= 9


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda rows: [], "is empty"),
        (lambda rows: rows[:3], "line 3, the last one, is a round and not the end: the trace was cut off"),
        (lambda rows: [*rows[:3], rows[3][:40]], "line 4: not JSON .*may have been cut off"),
        (
            lambda rows: [rows[0].replace('"format":1', '"format":2'), *rows[1:]],
            "has format 2 and this version reads 1",
        ),
        (lambda rows: rows[1:], "its first line is not a header"),
        (lambda rows: [*rows[:2], rows[2].replace('"alive"', '"alife"'), *rows[3:]], "line 3.*'alife'.*'alive'"),
        (lambda rows: [*rows[:2], rows[2].replace('"alive":', '"alive":"x'[:-1]), *rows[3:]], "line 3"),
        (lambda rows: [*rows[:2], "[]", *rows[3:]], "line 3: no object"),
    ],
)
def test_a_file_that_is_no_whole_trace_is_refused(files, tmp_path, damage, says):
    rows = damage(unsummed(files["tree"][0].read_text(encoding="utf-8")).split("\n")[:-1])
    (tmp_path / "bad.jsonl").write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(UserError, match=says):
        lines.read(tmp_path / "bad.jsonl")


def test_a_file_that_is_not_there_or_cannot_be_written_is_named(model, tmp_path):
    with pytest.raises(UserError, match="there is no file .*nothing.jsonl"):
        lines.read(tmp_path / "nothing.jsonl")
    with pytest.raises(UserError, match="there is no directory"):
        record(model, MESSAGES, tmp_path / "no" / "trace.jsonl")
    with pytest.raises(UserError, match="cannot be written"):
        list(record(model, MESSAGES, tmp_path, search=TREE, max_tokens=22))


def test_another_checkpoint_is_refused_and_a_scorer_cannot_be_run_again(traces, model):
    other = dataclasses.replace(traces["tree"].header, fingerprint="0" * 16)
    with pytest.raises(UserError, match=r"recorded with the checkpoint tiny .*0000\), and tiny is another one"):
        replay.search_again(dataclasses.replace(traces["tree"], header=other), model)
    judged = dataclasses.replace(traces["pool"].header, scorer="rules")
    with pytest.raises(UserError, match="ranked by the scorer rules.*--teacher-forced"):
        replay.search_again(dataclasses.replace(traces["pool"], header=judged), model)
    unknown = dataclasses.replace(traces["tree"].header, method="slaa")
    with pytest.raises(UserError, match="Did you mean 'sla'"):
        replay.decoder_of(unknown)


def test_the_fingerprint_sees_a_bit_and_an_order():
    one = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float32)}
    first = fingerprint(one)
    assert first == fingerprint(one) and len(first) == 16
    swapped = one | {"a": one["a"][::-1].copy()}
    bit = one | {"b": np.array([1, 1, 1, np.nextafter(np.float32(1), np.float32(2))], np.float32)}
    assert len({first, fingerprint(swapped), fingerprint(bit), fingerprint(one | {"a": one["a"].T.copy()})}) == 4


def test_pieces_are_what_tokens_read_like_behind_others(tiny_tokenizer):
    ids = tiny_tokenizer("What is the capital", add_special_tokens=False)["input_ids"]
    assert "".join(spell(tiny_tokenizer, token) for token in ids) == "What is the capital"
    assert spell(tiny_tokenizer, 2) == "<|im_end|>"


def test_trees_are_for_those_that_grow_them(model):
    with pytest.raises(UserError, match="a tree is grown by Greedy and SLA"):
        model.stream(MESSAGES, search=sla_jax.BeamSearch(), return_tree=True)
    *_, (_, rows) = traced(model, MESSAGES, search=TREE, max_tokens=22)
    assert [row.kind for row in rows] == ["round", "end"]


def test_the_programs_record_and_replay(checkpoint, tmp_path, capsys):
    path = tmp_path / "search.jsonl"
    flags = ["--max-tokens", "22", "--search.chunk", "3", "--search.depth", "1", "--trace", str(path)]
    generate.main([str(checkpoint), MESSAGES[0]["content"], *flags])
    capsys.readouterr()
    evaluate.main(["replay", str(path)])
    said = capsys.readouterr().out
    assert "sla on tiny" in said and "it agrees with itself" in said
    evaluate.main(["replay", str(path), "--checkpoint", str(checkpoint)])
    assert "the same search gives the same, bit for bit" in capsys.readouterr().out
    evaluate.main(["replay", str(path), "--checkpoint", str(checkpoint), "--teacher-forced", "--tolerance", "0.01"])
    assert "one forward pass a path gives the same within 0.01" in capsys.readouterr().out

    trace = lines.read(path)
    rewards = next_up(trace.rounds[1].branches[0].rewards, 0)
    save(path, branch_changed(trace, 1, 0, rewards=rewards))
    with pytest.raises(SystemExit, match="1"):
        evaluate.main(["replay", str(path), "--checkpoint", str(checkpoint)])
    assert "the same search differs: round 1, lane 0, rewards[0]: the trace has" in capsys.readouterr().out
    save(path, changed(trace, 1, alive=9))
    with pytest.raises(SystemExit, match="1"):
        evaluate.main(["replay", str(path)])
    assert "does not agree with itself" in capsys.readouterr().out
    with pytest.raises(UserError, match="give --checkpoint DIR"):
        evaluate.main(["replay", str(path), "--teacher-forced"])
