"""The tree that a round brings along is the oracle's: every leaf, what was read in it, and what was kept."""

import dataclasses
from typing import Any, NamedTuple

import pytest

from sla_jax.decode import program as programs
from sla_jax.decode.greedy import Greedy
from sla_jax.decode.sampling import Sampling
from sla_jax.decode.sla import SLA
from sla_jax.decode.snapshot import Tree
from tests import oracles, toys
from tests.decode.test_adaptive import some_rows
from tests.toys import Row

SEARCHES: list[dict[str, Any]] = [
    {"width": 2, "chunk": 2, "depth": 1},
    {"width": 3, "chunk": 3, "depth": 1, "branch_first": True},
    {"width": 2, "chunk": 3, "depth": 2, "end_above": 0.9137, "least": 1},
    {"width": 2, "chunk": 2, "depth": 2, "budget": 3, "logprob_weight": 0.7137},
    {"width": 3, "chunk": 2, "depth": 1, "behind": 0.3137, "branch_above": 0.5137},
    {"width": 2, "chunk": 2, "depth": 1, "early_margin": 0.1137},
    {"width": 2, "chunk": 4, "depth": 1, "draft": 2},
]


class Leaf(NamedTuple):
    """A leaf as both sides know it: the whole answer up to it."""

    text: tuple[int, ...]
    rewards: list[float]
    logprobs: list[float]
    entropies: list[float]
    finish: str | None


class Watching(oracles.Search):
    """The oracle, and what it has for leaves when a round has been read, and which it keeps."""

    def __init__(self, world: oracles.World, settings: oracles.Settings) -> None:
        super().__init__(world, settings)
        self.rounds: list[tuple[list[oracles.Node], list[oracles.Node]]] = []

    def grow(self, root: oracles.Node, level: int) -> None:
        """Note the leaves; all are kept unless something is committed."""
        super().grow(root, level)
        self.rounds.append((root.leaves(), root.leaves()))

    def select(self, root: oracles.Node, rounds: list[oracles.Round]) -> oracles.Node:
        """Note what is left."""
        node = super().select(root, rounds)
        self.rounds[-1] = (self.rounds[-1][0], node.leaves())
        return node

    def leaf(self, node: oracles.Node) -> Leaf:
        """A node in the terms of a trace."""
        finish = None
        if self.ended(node):
            finish = "stop" if node.text[-1] in self.settings.end_tokens else "length"
        scores = [self.world([node.text[:i]])[0][0] for i in range(len(node.text))]
        entropies = [oracles.entropy(one) for one in scores]
        return Leaf(node.text, [float(one) for one in node.rewards], node.logprobs, entropies, finish)


def watched(row: Row, decoder: SLA) -> Watching:
    """The oracle's search of one row, played."""
    names = {field.name for field in dataclasses.fields(oracles.Settings)}
    knobs = {name: value for name, value in dataclasses.asdict(decoder).items() if name in names}
    ends = frozenset(row.ends)
    settings = oracles.Settings(**knobs | {"least": decoder.shortest}, max_tokens=row.limit, end_tokens=ends)
    search = Watching(toys.plain(row.tables, row.start), settings)
    search.run()
    return search


def grown(parents: list[Leaf], tree: Tree) -> list[Leaf]:
    """The leaves after a round, out of those before it and the branches alone."""
    found = []
    for one in tree.branches:
        text, rewards, logprobs, entropies, finish = parents[one.parent]
        assert bool(one.tokens) == (finish is None)
        leaf = (text + tuple(one.tokens), rewards + one.rewards, logprobs + one.logprobs, entropies + one.entropies)
        found.append(Leaf(*leaf, one.finish))
    return found


def trees(decoder: Any, rows: list[Row]) -> list[list[Tree]]:
    """Each row's trees, those of rounds after its end left out."""
    log = list(toys.program(decoder, trace=True).stream(None, toys.state(decoder, rows)))
    of_rows = [[rounds[i].tree for rounds in log] for i in range(len(rows))]
    return [[tree for tree in found if tree is not None and tree.branches] for found in of_rows]


@pytest.mark.parametrize("options", SEARCHES, ids=lambda options: "-".join(f"{v}" for v in options.values()))
def test_every_tree_is_the_oracles(options: dict[str, Any]) -> None:
    decoder = SLA(**options)
    rows = some_rows(seed=23, worlds=3)
    for row, found in zip(rows, trees(decoder, rows), strict=True):
        search = watched(row, decoder)
        leaves = [Leaf((), [], [], [], None)]
        assert len(found) == len(search.rounds)
        for tree, (nodes, kept) in zip(found, search.rounds, strict=True):
            leaves = grown(leaves, tree)
            assert tree.anchor == row.tables.rewards[row.start]
            assert len(leaves) == len(nodes)
            for branch, leaf, node in zip(tree.branches, leaves, nodes, strict=True):
                other = search.leaf(node)
                assert (leaf.text, leaf.rewards, leaf.finish) == (other.text, other.rewards, other.finish)
                assert leaf.logprobs == pytest.approx(other.logprobs, abs=1e-5)
                assert leaf.entropies == pytest.approx(other.entropies, abs=1e-5)
                assert branch.score == pytest.approx(float(node.score()), abs=1e-5)
                assert branch.kept == any(node is one for one in kept)
            best = max(range(len(nodes)), key=lambda i: (any(nodes[i] is k for k in kept), nodes[i].score(), -i))
            assert tree.best == best


def test_ranks_count_the_children_of_a_leaf() -> None:
    for found in trees(SLA(**SEARCHES[0]), some_rows(3, worlds=3)):
        for tree in found:
            of_parents: dict[int, list[int]] = {}
            for one in tree.branches:
                of_parents.setdefault(one.parent, []).append(one.rank)
            assert all(ranks == list(range(len(ranks))) for ranks in of_parents.values())
        assert {one.rank for tree in found[1:2] for one in tree.branches} <= {0, 1}
        assert [len(tree.branches) for tree in found[:1]] == [1]


@pytest.mark.parametrize("decoder", [SLA(**SEARCHES[2]), Greedy(chunk=3)], ids=repr)
def test_a_trace_changes_nothing_else_and_is_not_there_unless_asked_for(decoder: Any) -> None:
    rows = [row._replace(sampling=Sampling(temperature=1.0, seed=i)) for i, row in enumerate(some_rows(4, worlds=3))]
    plain, traced = toys.program(decoder), toys.program(decoder, trace=True)
    without = list(plain.stream(None, toys.state(decoder, rows)))
    assert all(round_.tree is None for rounds in without for round_ in rounds)
    with_trees = list(traced.stream(None, toys.state(decoder, rows)))
    assert [[round_._replace(tree=None) for round_ in rounds] for rounds in with_trees] == without
    packed = [program.round(None, toys.state(decoder, rows))[1] for program in (plain, traced)]
    assert packed[1].shape[1] - packed[0].shape[1] == 1 + decoder.lanes * (5 + 4 * decoder.chunk)


def test_a_tree_comes_in_the_rounds_own_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, copies = SLA(**SEARCHES[0]), []
    fetch = programs.fetch

    def counted(array: Any) -> Any:
        copies.append(array.ndim)
        return fetch(array)

    monkeypatch.setattr(programs, "fetch", counted)
    rows = some_rows(5, worlds=3)
    rounds = list(toys.program(decoder, trace=True).stream(None, toys.state(decoder, rows)))
    assert copies == [2] * len(rounds)
