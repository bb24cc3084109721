"""Scores that a model gives: batched by length, they are what one pass over one answer gives."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
from sla_jax.scoring.rows import BATCH_TOKENS, Row, read
from sla_jax.text import chat_ids, response_ids
from tests.programs import tiny_checkpoint
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
def channel_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("channel") / "model")


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
def test_the_channels_score_is_the_mean_reward_of_the_answer(channel_dir: Path) -> None:
    scorer = ChannelScorer(channel_dir)
    model = sla_jax.load(channel_dir)
    assert isinstance(scorer, Scorer) and str(channel_dir) in scorer.name
    want = [np.mean(model.rewards(QUESTION, text)) for text in TEXTS]
    np.testing.assert_allclose(scorer.score(candidates(True)), want, rtol=1e-4, atol=1e-6)
    unfinished = [np.mean(model.rewards(QUESTION, text)[:-1]) for text in TEXTS]
    np.testing.assert_allclose(scorer.score(candidates(False)), unfinished, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("small_batches")
def test_an_answer_without_tokens_is_read_at_the_prompts_end(channel_dir: Path) -> None:
    model = sla_jax.load(channel_dir)
    prompt = chat_ids(model.tokenizer, QUESTION)
    want = model.token_rewards(prompt[:-1], prompt[-1:])
    np.testing.assert_allclose(ChannelScorer(channel_dir).score([Candidate(QUESTION, "", [], False)]), want, rtol=1e-4)


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


def test_wrong_kinds_of_checkpoint_are_refused(channel_dir: Path, reward_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no reward channel"):
        ChannelScorer(reward_dir)
    with pytest.raises(UserError, match="no score head"):
        RewardModelScorer(channel_dir)
    with pytest.raises(UserError, match="3 outputs"):
        RewardModelScorer(reward_checkpoint(tmp_path / "three", num_labels=3))


def test_an_answer_beyond_the_context_is_refused(channel_dir: Path) -> None:
    with pytest.raises(UserError, match="context holds 256"):
        ChannelScorer(channel_dir).score([Candidate(QUESTION, "rude " * 300, [], True)])


def test_every_row_is_read_once_in_few_shapes() -> None:
    lengths = [*range(1, 200, 7), *[60] * 100]
    rows = [Row([length] * length, [0, length - 1]) for length in lengths]
    shapes = []

    def reader(tokens: np.ndarray) -> np.ndarray:
        shapes.append(tokens.shape)
        assert tokens.size <= BATCH_TOKENS
        return tokens + 1000 * np.arange(tokens.shape[1])

    found = [values.tolist() for values in read(rows, reader)]
    assert found == [[length, length + 1000 * (length - 1)] for length in lengths]
    assert len(set(shapes)) == len({length for _, length in shapes}) < len(shapes)
