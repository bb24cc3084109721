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
    """What one round committed; `explored` counts every token read so far, in every branch; the rest is of its end."""

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
    early: bool = True  # commit as soon as no other branch can win: the same text, in fewer and larger rounds
    early_margin: float | None = None  # commit as soon as a branch leads by more than this
    budget: int | None = None  # leaves at most: the best pairs of leaf and token
    token_weight: float = 0.0  # of the token's log-probability in what a pair is worth
    branch_above: float = 0.0  # branch only where the next token's entropy is at least this
    end_above: float | None = None  # a chunk of at least `least` tokens ends where it is at least this
    least: int = 1
    behind: float | None = None  # leaves whose score is further than this behind the best leave the tree
    logprob_weight: float = 0.0  # of the mean log-probability in a score


@dataclasses.dataclass
class Node:
    """A chunk of the tree: `text` is the whole response up to this chunk's end, `rewards` has one entry a token."""

    text: Text
    chunk_length: int
    rewards: list[Fraction]
    next_logprobs: np.ndarray | None = None
    logprobs: list[float] = dataclasses.field(default_factory=list)  # of the response's tokens
    logprob_weight: float = 0.0
    children: list["Node"] = dataclasses.field(default_factory=list)

    def leaves(self) -> list["Node"]:
        """Every leaf below this node (itself, if it has no children), left to right."""
        if not self.children:
            return [self]
        return [leaf for child in self.children for leaf in child.leaves()]

    def score(self) -> Fraction:
        """Mean reward of all response tokens up to here, and their mean log-probability as far as it counts."""
        beside = Fraction(self.logprob_weight * sum(self.logprobs))
        return (sum(self.rewards, Fraction(0)) + beside) / max(len(self.rewards), 1)

    def prune(self, kept: list["Node"]) -> bool:
        """Drop all leaves but those kept, and what has none left below it; whether anything is left."""
        if not self.children:
            return any(self is leaf for leaf in kept)
        self.children = [child for child in self.children if child.prune(kept)]
        return bool(self.children)

    def best(self) -> Fraction:
        """The best leaf's score."""
        return max(leaf.score() for leaf in self.leaves())


class Search:
    """One SLA search over a world; `run` gives the answer."""

    def __init__(self, world: World, settings: Settings, watch: Watch = lambda what, gap, committed: None) -> None:
        self.world, self.settings, self.watch = world, settings, watch
        self.explored, self.committed = 0, 0

    def run(self) -> Answer:
        """Grow the tree by a level and commit what is decided, until the text has ended."""
        root, level = self.root(), 0
        rounds: list[Round] = []
        while not self.ended(root):
            self.grow(root, level)
            level += 1
            while level > self.settings.depth or (level > 0 and self.decided(root)):
                root, level = self.select(root, rounds), level - 1
        finish = "stop" if root.text[-1] in self.settings.end_tokens else "length"
        return Answer(root.text, rounds, finish, self.explored)

    def root(self) -> Node:
        """The empty response: only the scores of its next token matter, never the last prompt token's reward."""
        ((logprobs, _),) = self.world([()])
        return Node((), 0, [], logprobs, logprob_weight=self.settings.logprob_weight)

    def ended(self, node: Node) -> bool:
        """An end token, or max_tokens."""
        return bool(node.text) and (
            node.text[-1] in self.settings.end_tokens or len(node.text) >= self.settings.max_tokens
        )

    def grow(self, root: Node, level: int) -> None:
        """Expand every unfinished leaf; all of them are `level` levels below the committed text."""
        leaves = [leaf for leaf in root.leaves() if not self.ended(leaf)]
        assert all(leaf in self.at_level(root, level) for leaf in leaves)
        pairs = self.pairs(root)
        root.prune([leaf for leaf, _ in pairs])
        self.expand([(leaf, token) for leaf, token in pairs if token is not None])

    def pairs(self, root: Node) -> list[tuple[Node, int | None]]:
        """The next leaves: (leaf, next token), and (leaf, nothing) for a leaf that has ended."""
        first = not root.text and not self.settings.branch_first
        most = max(leaf.score() for leaf in root.leaves())
        pairs: list[tuple[Node, int | None, float]] = []
        for leaf in root.leaves():
            if self.settings.behind is not None and leaf.score() < most - Fraction(self.settings.behind):
                continue
            if self.ended(leaf):
                pairs.append((leaf, None, float(leaf.score())))
                continue
            alone = first or entropy(leaf.next_logprobs) < self.settings.branch_above
            tokens = self.top(leaf.next_logprobs, 1 if alone else self.settings.width, "width")
            assert leaf.next_logprobs is not None
            own, weight = log_softmax(leaf.next_logprobs), self.settings.token_weight
            pairs += [(leaf, token, float(leaf.score()) + weight * float(own[token])) for token in tokens]
        if self.settings.budget is not None:
            order = sorted(range(len(pairs)), key=lambda i: (-pairs[i][2], i))[: self.settings.budget]
            pairs = [pair for i, pair in enumerate(pairs) if i in order]
        return [(leaf, token) for leaf, token, _ in pairs]

    def decided(self, root: Node) -> bool:
        """Whether one first-level node wins whatever the others still grow. The unbranched first chunk always does."""
        if not root.text and not self.settings.branch_first:
            return True
        if not root.children:
            return False
        ranked = sorted((child.best() for child in root.children), reverse=True)
        margin = self.settings.early_margin
        if margin is not None and (len(ranked) == 1 or ranked[0] - ranked[1] > Fraction(margin)):
            return True
        return self.settings.early and any(
            all(self.beaten(other, node, i < j) for i, other in enumerate(root.children) if other is not node)
            for j, node in enumerate(root.children)
        )

    def beaten(self, other: Node, node: Node, before: bool) -> bool:
        """Whether all of `other` is finished and worse than a finished leaf of `node` (a tie goes to the first)."""
        finished = [leaf.score() for leaf in node.leaves() if self.ended(leaf)]
        if not finished or not all(self.ended(leaf) for leaf in other.leaves()):
            return False
        return other.best() < max(finished) if before else other.best() <= max(finished)

    def at_level(self, root: Node, level: int) -> list[Node]:
        """The nodes `level` levels below the root."""
        nodes = [root]
        for _ in range(level):
            nodes = [child for node in nodes for child in node.children]
        return nodes

    def expand(self, pairs: list[tuple[Node, int]]) -> None:
        """Give the leaves these children and roll each out greedily to the end of its chunk."""
        fresh: list[Node] = []
        for leaf, token in pairs:
            child = Node((*leaf.text, token), 1, list(leaf.rewards), leaf.next_logprobs, list(leaf.logprobs))
            child.logprob_weight = leaf.logprob_weight
            leaf.children.append(child)
            fresh.append(child)
        while fresh:
            self.read(fresh)
            fresh = [node for node in fresh if not self.full(node) and not self.ended(node)]
            for node in fresh:
                node.text = (*node.text, *self.top(node.next_logprobs, 1, "argmax"))
                node.chunk_length += 1

    def full(self, node: Node) -> bool:
        """Whether a chunk ends here: k tokens, or sooner where the next one is uncertain."""
        above, length = self.settings.end_above, node.chunk_length
        early = above is not None and length >= self.settings.least and entropy(node.next_logprobs) >= above
        return length == self.settings.chunk or early

    def read(self, nodes: list[Node]) -> None:
        """Each node reads its last token: its reward and the scores of the next one."""
        for node, (logprobs, reward) in zip(nodes, self.world([node.text for node in nodes]), strict=True):
            assert node.next_logprobs is not None
            node.logprobs.append(float(log_softmax(node.next_logprobs)[node.text[-1]]))
            node.rewards.append(Fraction(float(reward)))
            node.next_logprobs = logprobs
            self.explored += 1

    def top(self, logprobs: np.ndarray | None, count: int, what: str) -> list[int]:
        """The `count` most probable tokens, ties to the lower id; a token scored -inf is no choice."""
        assert logprobs is not None
        order = np.argsort(-np.asarray(logprobs), kind="stable")
        order = order[: max(1, int(np.sum(np.asarray(logprobs) != -np.inf)))]
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
        self.commit(root.children[winner], margin, rounds)
        return root.children[winner]

    def commit(self, node: Node, margin: float | None, rounds: list[Round]) -> None:
        """The chunk becomes text; the score is its best leaf's. What no token was read between is one round."""
        self.committed = len(node.text)
        count = node.chunk_length
        round_ = Round(
            node.text[-count:],
            tuple(float(reward) for reward in node.rewards[-count:]),
            float(node.best()),
            margin,
            self.explored,
        )
        if rounds and rounds[-1].explored == self.explored:
            last = rounds.pop()
            round_ = round_._replace(tokens=last.tokens + round_.tokens, rewards=last.rewards + round_.rewards)
        rounds.append(round_)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Log-probabilities, in float64."""
    shifted = np.asarray(scores, np.float64) - np.max(scores)
    return shifted - np.log(np.exp(shifted).sum())


def entropy(scores: np.ndarray | None) -> float:
    """Of the next token, in nats."""
    assert scores is not None
    logprobs = log_softmax(scores)
    return -float(sum(np.exp(one) * one for one in logprobs if one != -np.inf))


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
