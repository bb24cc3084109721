"""Candidates that come again and again: each token is read once, and scores are those of reading everything anew."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sla_jax
from sla_jax import checkpoint
from sla_jax.decode.completion import Completion
from sla_jax.decode.sampling import Sampling
from sla_jax.scoring import rows
from sla_jax.scoring.candidate import Candidate, ReadingScorer
from sla_jax.scoring.channel import ChannelScorer
from sla_jax.scoring.judge import Judge
from sla_jax.scoring.memory import Memory
from sla_jax.scoring.model_scorer import ModelScorer
from sla_jax.scoring.process import ProcessScorer
from sla_jax.scoring.registry import ScorerConfig, Weighted, make_scorer
from sla_jax.scoring.reward_model import RewardModelScorer
from sla_jax.scoring.rows import Row
from tests.process_models import MODELS
from tests.programs import tiny_checkpoint
from tests.scoring.test_models import reward_checkpoint

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
PIECES = ("Par", "is.", " 12", "é", "東", "\n", "\n\n", " is", "👍")
KINDS = ("reward_model", "channel", "math_shepherd", "rlhflow")

# ---- the memory alone, on a toy whose values depend on every token before ----


def toy() -> tuple[Memory, list[tuple[int, ...]]]:
    """A memory, and the shapes of keys and values that it had at each reading."""
    shapes: list[tuple[int, ...]] = []

    def blank(count: int, capacity: int) -> Any:
        keys = jnp.full((count, 1, capacity, 1), -7)
        return ((keys, keys),)

    def reread(tokens: np.ndarray, starts: np.ndarray, kept: Any) -> tuple[Any, Any]:
        ((keys, _),) = kept
        shapes.append(keys.shape)
        held, found = np.array(keys), np.zeros(tokens.shape)
        for row, start in enumerate(starts):
            held[row, 0, start : start + tokens.shape[1], 0] = tokens[row]
            sums = np.cumsum(held[row, 0, :, 0] * np.arange(1, held.shape[2] + 1))
            found[row] = sums[start : start + tokens.shape[1]]
        return found, ((jnp.asarray(held),) * 2,)

    return Memory(blank, reread), shapes


def toy_value(text: Sequence[int]) -> float:
    return float(sum(token * place for place, token in enumerate(text, 1)))


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


token_lists = st.lists(st.integers(0, 2), min_size=1, max_size=9)
calls = st.lists(st.lists(token_lists, min_size=1, max_size=4), min_size=1, max_size=4)


@given(calls, st.integers(0, 120))
@settings(max_examples=60)
def test_every_token_is_read_once(calls: list[list[list[int]]], prompt: int) -> None:
    """Texts of three tokens have much in common, and little in order; values and the count are exact."""
    memory, shapes = toy()
    before: list[list[int]] = []
    wanted = 0
    for number, call in enumerate(calls):
        texts = [[1] * prompt + text for text in call]
        if not number and len(texts) > 1:
            common = min(shared(texts[0], text) for text in texts)
            before, wanted = [texts[0][:common]], common
        wanted += sum(len(text) - max((shared(text, old) for old in before), default=0) for text in texts)
        found = memory.read([Row(text, [0, len(text) - 1]) for text in texts])
        assert [values.tolist() for values in found] == [[toy_value(text[:1]), toy_value(text)] for text in texts]
        assert memory.tokens_read == wanted
        before = texts
    assert all(count in (1, 2, 4) for count, *_ in shapes)


def test_memory_of_those_that_are_gone_is_let_go() -> None:
    memory, shapes = toy()
    for survivors in (8, 4, 1):
        memory.read([Row([5, number], [1]) for number in range(survivors)])
        memory.read([Row([5, number, 6], [2]) for number in range(survivors)])
        assert shapes[-1][0] == survivors
    assert memory.read([]) == []


# ---- models ----


@pytest.fixture(autouse=True, scope="module")
def small_batches() -> Iterator[None]:
    """As in test_models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "BATCH_TOKENS", 512)
        yield


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelScorer]:
    folder = tmp_path_factory.mktemp("models")
    found: dict[str, ModelScorer] = {
        "reward_model": RewardModelScorer(reward_checkpoint(folder / "reward" / "model", num_labels=1)),
        "channel": ChannelScorer(tiny_checkpoint(folder / "channel")),
    }
    for name in ("math_shepherd", "rlhflow"):
        MODELS[name](folder / name)
        checkpoint.import_checkpoint(str(folder / name), folder / f"{name}-ours")
        found[name] = ProcessScorer(folder / f"{name}-ours", format=name, aggregate="mean")
    return found


# the norms of a channel that nobody trained make rounding larger: up to 4.5e-4 in 7,000 rounds; a wrong token, about 1
ROUNDING = {"channel": 3e-3}
growth = st.lists(
    st.tuples(
        st.lists(st.lists(st.sampled_from(PIECES), max_size=5).map("".join), min_size=3, max_size=3), st.booleans()
    ),
    min_size=2,
    max_size=4,
)


@pytest.mark.parametrize("kind", KINDS)
@given(growth, st.permutations(range(3)))
@settings(max_examples=8)
def test_a_session_scores_as_reading_all_anew(
    scorers: dict[str, ModelScorer], kind: str, growth: list[tuple[list[str], bool]], order: list[int]
) -> None:
    """Three candidates grow, some end, and after the first round they come in another order and one is gone."""
    scorer = scorers[kind]
    session, texts = scorer.session(), ["", "", ""]
    assert isinstance(scorer, ReadingScorer)
    for number, (pieces, finished) in enumerate(growth):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        chosen = [texts[i] for i in (order[:2] if number else range(3))]
        candidates = [Candidate(MESSAGES, text, [], finished and not i) for i, text in enumerate(chosen)]
        close = ROUNDING.get(kind, 1e-5)
        np.testing.assert_allclose(session.score(candidates), scorer.score(candidates), rtol=close, atol=close)


def completions(texts: Sequence[list[int]]) -> list[Completion]:
    return [Completion(i, tokens, [], [], "rejected", 0, 0.0) for i, tokens in enumerate(texts)]


def test_a_judge_counts_what_is_read(scorers: dict[str, ModelScorer]) -> None:
    scorer = scorers["reward_model"]
    tokenizer = scorer.model.tokenizer
    texts = [tokenizer.encode(text) for text in ("Paris. It is", "The quick brown fox", "Please do")]
    judge = Judge(scorer, MESSAGES, tokenizer)
    judge(0, completions(texts))
    lengths = [len(scorer.row(Candidate(MESSAGES, tokenizer.decode(text), text, False)).ids) for text in texts]
    prompt = len(scorer.row(Candidate(MESSAGES, "", [], False)).ids)
    first = judge.tokens
    assert first == prompt + sum(length - prompt for length in lengths)
    longer = [text + tokenizer.encode(" Paris") for text in texts[:2]]
    scores = judge(0, completions(longer))
    assert judge.tokens - first == sum(len(tokenizer.encode(" Paris")) for _ in longer)
    fresh = [Candidate(MESSAGES, tokenizer.decode(text), text, False) for text in longer]
    np.testing.assert_allclose(scores, scorer.score(fresh), rtol=0, atol=1e-5)
    assert judge.seconds > 0


def test_a_sum_of_scorers_has_a_session_too(scorers: dict[str, ModelScorer]) -> None:
    """What models read, and what a scorer without one was given, are added."""
    both = Weighted([(scorers["reward_model"], 2.0), (make_scorer(ScorerConfig()), 1.0)])
    session = both.session()
    assert isinstance(session, ReadingScorer) and session.tokens_read == 0
    text = [Candidate(MESSAGES, "Paris.", [7, 8, 9], True)]
    for _ in range(2):
        np.testing.assert_allclose(session.score(text), both.score(text), rtol=0, atol=1e-5)
    length = len(scorers["reward_model"].row(text[0]).ids)
    assert session.tokens_read == length + 2 * 3


def test_nothing_compiles_for_a_second_request(scorers: dict[str, ModelScorer], compiled: list[str]) -> None:
    """Nor for the tenth round of one, while texts stay within a bucket."""
    scorer = scorers["reward_model"]

    def play(words: str) -> None:
        session = scorer.session()
        for end in range(2, 6):
            session.score([Candidate(MESSAGES, words[:end] + tail, [], False) for tail in ("", "a", "b 1")])

    play("Paris.")
    count = len(compiled)
    play("The fox")
    assert len(compiled) == count


def test_speculative_rejection_with_a_reward_model_reads_each_token_once(scorers: dict[str, ModelScorer]) -> None:
    """The answer is the one that full reading gives, and the account is smaller than what the scorer was given."""
    scorer = scorers["reward_model"]
    model = sla_jax.load(Path(scorers["channel"].name.removeprefix("channel ")))
    search = sla_jax.SpeculativeRejection(n=4, alpha=0.5, budget=32, chunk=4)

    class Anew:
        """The same scorer without a session."""

        name = "anew"
        given = 0

        def score(self, candidates: Sequence[Candidate]) -> list[float]:
            self.given += sum(len(scorer.row(one).ids) for one in candidates)
            return scorer.score(candidates)

    anew = Anew()
    common: dict[str, Any] = {"search": search, "max_tokens": 22, "sampling": Sampling(temperature=1.0, seed=7)}
    (*_, slow), (*_, fast) = (list(model.stream(MESSAGES, scorer=one, **common)) for one in (anew, scorer))
    assert fast.token_ids == slow.token_ids
    np.testing.assert_allclose(fast.score, slow.score, rtol=0, atol=1e-5)
    assert 0 < fast.cost.scorer_tokens < anew.given
