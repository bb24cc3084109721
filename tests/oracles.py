"""Streaming look-ahead and greedy decoding, the slow and obvious way: the yardstick of every fast version.

Written from the algorithm's text, not from `sla_jax/decode`: explicit tree nodes, one token at a time, exact arithmetic
(a score is a `Fraction`, so a tie is a tie). The world is a function from response prefixes to (next-token scores,
reward of the last token); anything can stand behind it: a toy table or a PyTorch model without a cache.

A response token's reward is the reward after reading that token; a score is the mean over all response tokens so far.
"""

import dataclasses
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

Text = tuple[int, ...]
# response prefixes (the prompt is closed over) → for each: next token's log-probabilities [V], last token's reward
World = Callable[[list[Text]], list[tuple[np.ndarray, float]]]
# what was decided ("argmax", "width" or "selection"), by how much, and how many tokens were committed at that time
Watch = Callable[[str, float, int], None]


class Round(NamedTuple):
    """One committed chunk; `explored` counts every token read so far, in every branch."""

    tokens: Text
    rewards: tuple[float, ...]
    score: float
    margin: float | None
    explored: int


class Answer(NamedTuple):
    """A whole answer; `finish` is "stop" (it ends with an end token) or "length"."""

    tokens: Text
    rounds: list[Round]
    finish: str
    explored: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Width n, chunk k, depth d and where an answer ends."""

    width: int
    chunk: int
    depth: int
    max_tokens: int
    end_tokens: frozenset[int] = frozenset()
    branch_first: bool = False


@dataclasses.dataclass
class Node:
    """A chunk of the tree: `text` is the whole response up to this chunk's end, `rewards` has one entry a token."""

    text: Text
    chunk_length: int
    rewards: list[Fraction]
    next_logprobs: np.ndarray | None = None
    children: list["Node"] = dataclasses.field(default_factory=list)

    def leaves(self) -> list["Node"]:
        """Every leaf below this node (itself, if it has no children), left to right."""
        if not self.children:
            return [self]
        return [leaf for child in self.children for leaf in child.leaves()]

    def score(self) -> Fraction:
        """Mean reward of all response tokens up to here."""
        return sum(self.rewards, Fraction(0)) / len(self.rewards)

    def best(self) -> Fraction:
        """The best leaf's score."""
        return max(leaf.score() for leaf in self.leaves())


class Search:
    """One SLA search over a world; `run` gives the answer."""

    def __init__(self, world: World, settings: Settings, watch: Watch = lambda what, gap, committed: None) -> None:
        self.world, self.settings, self.watch = world, settings, watch
        self.explored, self.committed = 0, 0

    def run(self) -> Answer:
        """Commit chunks until the text has ended."""
        root = self.root()
        rounds: list[Round] = []
        if not self.settings.branch_first:
            root = self.first_chunk(root, rounds)
        while not self.ended(root):
            self.grow(root)
            root = self.select(root, rounds)
        finish = "stop" if root.text[-1] in self.settings.end_tokens else "length"
        return Answer(root.text, rounds, finish, self.explored)

    def root(self) -> Node:
        """The empty response: only the scores of its next token matter, never the last prompt token's reward."""
        ((logprobs, _),) = self.world([()])
        return Node((), 0, [], logprobs)

    def first_chunk(self, root: Node, rounds: list[Round]) -> Node:
        """k greedy tokens, committed at once."""
        (node,) = self.expand([root], width=1)
        rounds.append(self.commit(node, None))
        return node

    def ended(self, node: Node) -> bool:
        """An end token, or max_tokens."""
        return bool(node.text) and (
            node.text[-1] in self.settings.end_tokens or len(node.text) >= self.settings.max_tokens
        )

    def grow(self, root: Node) -> None:
        """Expand until every unfinished leaf is depth + 1 levels below the committed text."""
        for level in range(self.settings.depth + 1):
            self.expand([node for node in self.at_level(root, level) if not node.children], self.settings.width)

    def at_level(self, root: Node, level: int) -> list[Node]:
        """The nodes `level` levels below the root."""
        nodes = [root]
        for _ in range(level):
            nodes = [child for node in nodes for child in node.children]
        return nodes

    def expand(self, leaves: list[Node], width: int) -> list[Node]:
        """Give every unfinished leaf its `width` most probable children and roll each out greedily to k tokens."""
        fresh: list[Node] = []
        for leaf in leaves:
            if self.ended(leaf):
                continue
            first = self.top(leaf.next_logprobs, width, "width")
            leaf.children = [Node((*leaf.text, token), 1, list(leaf.rewards)) for token in first]
            fresh += leaf.children
        made = list(fresh)
        while fresh:
            self.read(fresh)
            fresh = [node for node in fresh if node.chunk_length < self.settings.chunk and not self.ended(node)]
            for node in fresh:
                node.text = (*node.text, *self.top(node.next_logprobs, 1, "argmax"))
                node.chunk_length += 1
        return made

    def read(self, nodes: list[Node]) -> None:
        """Each node reads its last token: its reward and the scores of the next one."""
        for node, (logprobs, reward) in zip(nodes, self.world([node.text for node in nodes]), strict=True):
            node.rewards.append(Fraction(float(reward)))
            node.next_logprobs = logprobs
            self.explored += 1

    def top(self, logprobs: np.ndarray | None, count: int, what: str) -> list[int]:
        """The `count` most probable tokens, ties to the lower id."""
        assert logprobs is not None
        order = np.argsort(-np.asarray(logprobs), kind="stable")
        if count < len(order):
            self.watch(what, float(logprobs[order[count - 1]] - logprobs[order[count]]), self.committed)
        return [int(token) for token in order[:count]]

    def select(self, root: Node, rounds: list[Round]) -> Node:
        """The first-level node with the best leaf; ties to the more probable one."""
        scores = [child.best() for child in root.children]
        winner = max(range(len(scores)), key=lambda child: (scores[child], -child))
        others = scores[:winner] + scores[winner + 1 :]
        margin = float(scores[winner] - max(others)) if others else None
        if margin is not None:
            self.watch("selection", margin, self.committed)
        rounds.append(self.commit(root.children[winner], margin))
        return root.children[winner]

    def commit(self, node: Node, margin: float | None) -> Round:
        """The chunk becomes text; the score is its best leaf's."""
        self.committed = len(node.text)
        count = node.chunk_length
        rewards = tuple(float(reward) for reward in node.rewards[-count:])
        return Round(node.text[-count:], rewards, float(node.best()), margin, self.explored)


def sla(world: World, settings: Settings, watch: Watch = lambda what, gap, committed: None) -> Answer:
    """The whole answer of streaming look-ahead."""
    return Search(world, settings, watch).run()


def greedy(world: World, max_tokens: int, end_tokens: frozenset[int] = frozenset()) -> Text:
    """The argmax token at every step (ties: the lower id), up to an end token (kept) or max_tokens."""
    text: Text = ()
    while len(text) < max_tokens and not (text and text[-1] in end_tokens):
        ((logprobs, _),) = world([text])
        text = (*text, int(np.argmax(np.asarray(logprobs))))
    return text


class NearTies:
    """A `Watch` that remembers decisions taken by less than `gap`: a differing answer can be excused, and counted."""

    def __init__(self, gap: float = 1e-4) -> None:
        self.gap = gap
        self.seen: list[tuple[str, float, int]] = []

    def __call__(self, what: str, gap: float, committed: int) -> None:
        """Note the decision if it was close."""
        if gap < self.gap:
            self.seen.append((what, gap, committed))

    def excuse(self, ours: Sequence[int], theirs: Sequence[int]) -> bool:
        """Whether a near-tie came before the first token that differs."""
        pairs = zip(ours, theirs, strict=False)
        shorter = min(len(ours), len(theirs))
        first = next((place for place, (a, b) in enumerate(pairs) if a != b), shorter)
        return any(committed <= first for _, _, committed in self.seen)
