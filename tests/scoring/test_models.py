"""Scores that a model gives: batched by length, they are what one pass over one answer gives."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sla_jax
from sla_jax import checkpoint
from sla_jax.errors import UserError
from sla_jax.model import forward
from sla_jax.model.config import from_hf
from sla_jax.model.policy import init_policy
from sla_jax.scoring import rows
from sla_jax.scoring.candidate import Candidate, Scorer
from sla_jax.scoring.channel import ChannelScorer
from sla_jax.scoring.registry import ScorerConfig, make_scorer
from sla_jax.scoring.reward_model import RewardModelScorer
from sla_jax.scoring.rows import BATCH_TOKENS, SHARED_TOKENS, Batch, Row, packs, read
from sla_jax.text import chat_ids, response_ids
from tests.tiny import byte_level_tokenizer, tiny_hf

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
TEXTS = ("Paris.", "It is 42, and 7 more is 49. " * 4, "Please do not be rude", "naïve café")


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of a few rows. At 4,096 tokens a batch XLA:CPU gave NaN in about one process of ten, with finite weights
    and gone once compiled anew: not understood yet, and not what these tests are about.
    """
    monkeypatch.setattr(rows, "BATCH_TOKENS", 256)


def candidates(finished: bool) -> list[Candidate]:
    return [Candidate(QUESTION, text, [], finished) for text in TEXTS]


@pytest.fixture(scope="module")
def reward_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reward_checkpoint(tmp_path_factory.mktemp("reward") / "model", num_labels=1)


def reward_checkpoint(directory: Path, num_labels: int) -> Path:
    raw = tiny_hf(vocab_size=320, architectures=["LlamaForSequenceClassification"], num_labels=num_labels)
    policy = init_policy(from_hf(raw), jax.random.key(5))
    byte_level_tokenizer().save_pretrained(directory.parent / "tokenizer")
    checkpoint.save(directory, policy, raw, extras=directory.parent / "tokenizer", provenance={"source": "tests"})
    return directory


@pytest.mark.usefixtures("small_batches")
def test_the_channels_score_is_the_mean_reward_of_the_answer(checkpoint: Path) -> None:
    scorer = ChannelScorer(checkpoint)
    model = sla_jax.load(checkpoint)
    assert isinstance(scorer, Scorer) and str(checkpoint) in scorer.name
    want = [np.mean(model.rewards(QUESTION, text)) for text in TEXTS]
    np.testing.assert_allclose(scorer.score(candidates(True)), want, rtol=1e-4, atol=1e-6)
    unfinished = [np.mean(model.rewards(QUESTION, text)[:-1]) for text in TEXTS]
    np.testing.assert_allclose(scorer.score(candidates(False)), unfinished, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("small_batches")
def test_an_answer_without_tokens_is_read_at_the_prompts_end(checkpoint: Path) -> None:
    model = sla_jax.load(checkpoint)
    prompt = chat_ids(model.tokenizer, QUESTION)
    want = model.token_rewards(prompt[:-1], prompt[-1:])
    np.testing.assert_allclose(ChannelScorer(checkpoint).score([Candidate(QUESTION, "", [], False)]), want, rtol=1e-4)


@pytest.mark.usefixtures("small_batches")
def test_a_reward_model_scores_at_the_last_token(reward_dir: Path) -> None:
    scorer = make_scorer(ScorerConfig(kind="reward_model", checkpoint=str(reward_dir)))
    loaded = checkpoint.load(reward_dir, dtype=jnp.dtype(jnp.float32))
    tokenizer = byte_level_tokenizer()
    want = [one_score(loaded, response_ids(tokenizer, QUESTION, text)) for text in TEXTS]
    np.testing.assert_allclose(scorer.score(candidates(True)), want, rtol=1e-4, atol=1e-6)
    assert len(set(want)) == len(TEXTS)


def one_score(loaded: Any, ids: tuple[list[int], list[int]]) -> float:
    """One answer, unpadded: hidden state of the last token times the head, in numpy."""
    tokens = jnp.asarray([[*ids[0], *ids[1]]], jnp.int32)
    hidden = forward.trunk(loaded.policy, loaded.config, tokens).hidden[0, -1]
    return float(np.asarray(hidden) @ np.asarray(loaded.policy.score.weight[...])[:, 0])


def test_wrong_kinds_of_checkpoint_are_refused(checkpoint: Path, reward_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no reward channel"):
        ChannelScorer(reward_dir)
    with pytest.raises(UserError, match="no score head"):
        RewardModelScorer(checkpoint)
    with pytest.raises(UserError, match="3 outputs"):
        RewardModelScorer(reward_checkpoint(tmp_path / "three", num_labels=3))


def test_an_answer_beyond_the_context_is_refused(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="context holds 256"):
        ChannelScorer(checkpoint).score([Candidate(QUESTION, "rude " * 300, [], True)])


def test_every_row_is_read_once_in_few_shapes() -> None:
    lengths = [*range(1, 200, 7), *[60] * 100]
    rows = [Row([length] * length, [0, length - 1]) for length in lengths]
    shapes = []

    def reader(batch: Batch) -> np.ndarray:
        shapes.append(batch.tokens.shape)
        assert batch.tokens.size <= BATCH_TOKENS
        return batch.tokens + 1000 * np.arange(batch.tokens.shape[1])

    found = [values.tolist() for values in read(rows, reader)]
    assert found == [[length, length + 1000 * (length - 1)] for length in lengths]
    assert len(set(shapes)) == len({length for _, length in shapes}) < len(shapes)


def sums(batch: Batch) -> np.ndarray:
    """At every token the sum of its own text up to it, gathered as attention gathers it, and along `before`."""
    columns = np.arange(batch.tokens.shape[1])
    own = (batch.branch[:, :, None] == batch.branch[:, None, :]) | (batch.branch[:, None, :] == 0)
    reads = own & (columns[:, None] >= columns[None, :])
    found = np.einsum("bts,bs->bt", reads, batch.tokens)
    previous = np.where(batch.positions > 0, np.take_along_axis(found, batch.before, axis=1), 0)
    real = batch.tokens > 0
    np.testing.assert_array_equal((previous + batch.tokens)[real], found[real])
    return found * 1000 + batch.positions


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(1, 9), max_size=90)), min_size=1, max_size=40))
def test_answers_to_one_prompt_share_its_row_and_read_nothing_of_each_other(
    drawn: list[tuple[int, list[int]]],
) -> None:
    prompts: list[list[int]] = [[], [3], [7, 1] * 40, [5] * 300]
    rows = [Row([*prompts[i], *answer], [], len(prompts[i])) for i, answer in drawn if prompts[i] or answer]
    rows = [row._replace(places=list(range(len(row.ids)))) for row in rows]
    for row, values in zip(rows, read(rows, sums), strict=True):
        assert values.tolist() == (np.cumsum(row.ids) * 1000 + np.arange(len(row.ids))).tolist()


def test_a_prompts_answers_are_divided_evenly_over_rows_that_are_not_too_long() -> None:
    rows = [Row([1] * 300 + [2] * 65, [364], 300) for _ in range(13)]
    found = packs(rows)
    assert [len(pack.members) for pack in found] == [7, 6]
    assert max(pack.length for pack in found) <= SHARED_TOKENS
    assert [len(pack.members) for pack in packs([Row([1] * 2000, [0], 1900), Row([1] * 1950, [0], 1900)])] == [1, 1]


def test_answers_side_by_side_score_as_they_do_alone(checkpoint: Path, reward_dir: Path) -> None:
    texts = ("I am sorry.", "Go away, you rude one.", "", "Please.")
    four = [Candidate(QUESTION, text, [], True) for text in texts]
    for scorer in (ChannelScorer(checkpoint), RewardModelScorer(reward_dir)):
        alone = [scorer.score([candidate])[0] for candidate in four]
        np.testing.assert_allclose(scorer.score(four), alone, rtol=1e-4, atol=1e-6)
        assert len(packs([scorer.row(candidate) for candidate in four])) == 1
