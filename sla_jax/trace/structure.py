"""Whether a trace agrees with itself: the search is rebuilt from the file alone, without a model."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sla_jax.decode.snapshot import Branch
from sla_jax.trace.lines import Header, PoolRound, Round, Trace, TreeRound, tokens_of

CLOSE = 1e-5  # two float32 results of the same numbers, added in another order


class Leaf(NamedTuple):
    """A branch and all that leads to it."""

    tokens: list[int]
    logprobs: list[float]
    rewards: list[float]
    finish: str | None

    def grown(self, branch: Branch) -> "Leaf":
        """The leaf that a branch makes of its parent."""
        return Leaf(
            self.tokens + branch.tokens,
            self.logprobs + branch.logprobs,
            self.rewards + branch.rewards,
            branch.finish,
        )


ROOT = Leaf([], [], [], None)


def faults(trace: Trace) -> Iterator[str]:
    """Everything that cannot be, each with the round that it is in."""
    committed: list[int] = []
    before: Round | None = None
    leaves, candidates = {0: ROOT}, dict[int, Leaf]()
    for number, line in enumerate(trace.rounds):
        if isinstance(line, TreeRound):
            parents, leaves = leaves, {}
            found = [*_tree_faults(trace.header, line, parents, leaves, committed, before)]
        else:
            found = [*_pool_faults(trace.header, line, candidates, before)]
        yield from (f"round {number}: {fault}" for fault in found)
        if line.round != number:
            yield f"round {number} calls itself round {line.round}"
        committed, before = committed + line.tokens, line
    yield from _end_faults(trace, committed, before)


def leaves_of(trace: Trace) -> Iterator[tuple[str, Leaf]]:
    """Every path that was explored, to where nothing follows, and where that is; of a trace without faults."""
    leaves, named = dict[int, Leaf](), dict[int, str]()
    for line in trace.rounds:
        if isinstance(line, PoolRound):
            for one in line.candidates:
                yield f"candidate {one.candidate}", Leaf(one.tokens, one.logprobs, one.rewards, one.finish)
            continue
        gone = leaves.keys() - {branch.parent for branch in line.branches}
        yield from ((named[lane], leaves[lane]) for lane in sorted(gone))
        leaves = {lane: leaves.get(one.parent, ROOT).grown(one) for lane, one in enumerate(line.branches)}
        named = {lane: f"round {line.round}, lane {lane}" for lane in leaves}
    yield from ((named[lane], leaves[lane]) for lane in leaves)


def _tree_faults(
    header: Header,
    line: TreeRound,
    parents: dict[int, Leaf],
    leaves: dict[int, Leaf],
    committed: Sequence[int],
    before: Round | None,
) -> Iterator[str]:
    """Of one round; `leaves` is filled with those that it keeps."""
    text = [*committed, *line.tokens]
    children = Counter((branch.parent, branch.rank) for branch in line.branches)
    yield from (f"lane {p} has two children of rank {rank}" for (p, rank), n in children.items() if n > 1)
    for lane, branch in enumerate(line.branches):
        if branch.parent not in parents:
            known = ", ".join(map(str, sorted(parents)))
            yield f"lane {lane} goes on from lane {branch.parent}; the round before kept {known}"
            continue
        leaf = parents[branch.parent].grown(branch)
        yield from (f"lane {lane} {fault}" for fault in _branch_faults(header, branch, parents[branch.parent], leaf))
        if branch.kept != (leaf.tokens[: len(text)] == text):
            yield f"lane {lane} is {'kept' if branch.kept else 'dropped'}, against what the round committed"
        if branch.kept:
            leaves[lane] = leaf
    yield from _choice_faults(line)
    read = [len(branch.tokens) for branch in line.branches]
    counts = {"alive": len(read), "explored": _of(before, "explored") + sum(read)}
    yield from _count_faults(line, counts)
    steps, longest = line.steps - _of(before, "steps"), max(read, default=0)
    if not min(longest, 1) <= steps <= longest:
        yield f"steps grows by {steps}, and the longest branch by {longest} tokens"
    if line.lane_steps - _of(before, "lane_steps") < sum(read):
        yield f"lane_steps grows by less than the {sum(read)} tokens that were read"


def _branch_faults(header: Header, branch: Branch, parent: Leaf, leaf: Leaf) -> Iterator[str]:
    """Of one branch; `leaf` is all of it."""
    for name in ("logprobs", "rewards", "entropies"):
        if len(getattr(branch, name)) != len(branch.tokens):
            yield f"has {len(branch.tokens)} tokens and {len(getattr(branch, name))} {name}"
    if bool(branch.tokens) == (parent.finish is not None):
        yield "reads on though it had ended" if branch.tokens else "reads nothing though it had not ended"
    if leaf.tokens and branch.finish != _finish(header, leaf.tokens):
        yield f"has finish {branch.finish}, and its text says {_finish(header, leaf.tokens)}"


def _choice_faults(line: TreeRound) -> Iterator[str]:
    if (line.chosen is None) != (not line.tokens):
        yield "tokens are committed of no branch" if line.tokens else "a branch is chosen and nothing committed"
    if line.chosen is None:
        return
    if not 0 <= line.chosen < len(line.branches) or not line.branches[line.chosen].kept:
        yield f"lane {line.chosen} is chosen and not among those that were kept"
        return
    chosen = line.branches[line.chosen].score
    better = [lane for lane, one in enumerate(line.branches) if one.kept and one.score > chosen]
    yield from (f"lane {line.chosen} is chosen and lane {lane} scores higher" for lane in better)
    if line.score is None or not _close(line.score, chosen):
        yield f"the score is {line.score}, and {chosen} that of the chosen lane"


def _pool_faults(header: Header, line: PoolRound, candidates: dict[int, Leaf], before: Round | None) -> Iterator[str]:
    """Of one round; its candidates are added to `candidates`."""
    for one in line.candidates:
        if one.candidate in candidates:
            yield f"candidate {one.candidate} had ended before"
        candidates[one.candidate] = Leaf(one.tokens, one.logprobs, one.rewards, one.finish)
        for name in ("logprobs", "rewards"):
            size = len(getattr(one, name))
            if size != len(one.tokens) and not (name == "rewards" and size == 0):
                yield f"candidate {one.candidate} has {len(one.tokens)} tokens and {size} {name}"
        if one.finish != "rejected" and one.finish != _finish(header, one.tokens):
            yield f"candidate {one.candidate} has finish {one.finish}, against its text"
    if line.chosen is not None and line.tokens != candidates.get(line.chosen, ROOT).tokens:
        yield f"the answer is not the text of candidate {line.chosen}"
    if line.chosen is None and line.tokens:
        yield "the answer is no candidate's"
    if line.alive > line.lanes:
        yield f"{line.alive} candidates are alive in {line.lanes} lanes"
    for name in ("steps", "lane_steps", "explored", "phase"):
        if getattr(line, name) < _of(before, name):
            yield f"{name} goes down from {_of(before, name)} to {getattr(line, name)}"


def _end_faults(trace: Trace, committed: Sequence[int], last: Round | None) -> Iterator[str]:
    header, end = trace.header, trace.end
    if not committed or end.finish_reason != _finish(header, committed):
        yield f"the end says {end.finish_reason}, and the text {_finish(header, committed)}"
    counts = {name: _of(last, name) for name in ("steps", "lane_steps", "explored")}
    counts["explored_tokens"], counts["committed_tokens"] = counts.pop("explored"), len(committed)
    for name, value in counts.items():
        if getattr(end.cost, name) != value:
            yield f"the end's cost has {name} {getattr(end.cost, name)}, and the rounds {value}"
    missing = {str(token) for line in trace.rounds for token in tokens_of(line)} - end.pieces.keys()
    if missing:
        yield f"the end has no text of the tokens {', '.join(sorted(missing))}"


def _count_faults(line: Round, counts: dict[str, int]) -> Iterator[str]:
    for name, value in counts.items():
        if getattr(line, name) != value:
            yield f"{name} is {getattr(line, name)}, and the branches say {value}"


def _finish(header: Header, tokens: Sequence[int]) -> str | None:
    if tokens and tokens[-1] in header.end_tokens:
        return "stop"
    return "length" if len(tokens) >= header.max_tokens else None


def _of(line: Any, name: str) -> int:
    return 0 if line is None else getattr(line, name)


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=CLOSE, abs_tol=CLOSE) or (math.isnan(a) and math.isnan(b))
