"""Judges that read with a model give what their scorers give, and perplexity what PyTorch's formula gives."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sla_jax import checkpoint
from sla_jax.errors import UserError
from sla_jax.evaluation.judges.config import JudgeConfig, JudgeRun
from sla_jax.evaluation.judges.make import make_judge
from sla_jax.evaluation.judges.perplexity import PerplexityJudge
from sla_jax.evaluation.judges.protocol import Judge
from sla_jax.evaluation.judges.run import run_judges
from sla_jax.evaluation.rows import read_judgements
from sla_jax.model import forward
from sla_jax.scoring import rows
from sla_jax.scoring.channel import ChannelScorer
from sla_jax.scoring.registry import ScorerConfig
from sla_jax.text import response_ids
from tests.evaluation.answers import answer, judged, write_run
from tests.programs import tiny_checkpoint
from tests.tiny import byte_level_tokenizer

TALK = answer("a", "Paris.", "It is 42, and 7 more is 49.")
CUT = answer("b", "Please do not be rude")
CUT = CUT._replace(turns=(CUT.turns[0]._replace(finish_reason="length"),))
OTHER = answer("a", "I do not know, and nobody does.", method="sla")  # to TALK's prompt


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BATCH_TOKENS", 256)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("channel") / "model", sharpness=5.0)


def test_the_second_turn_is_scored_behind_the_first(directory: Path) -> None:
    judge = make_judge(JudgeConfig(kind="channel", scorer=ScorerConfig(kind="channel", checkpoint=str(directory))))
    assert isinstance(judge, Judge)
    found = judge.score([TALK, CUT])
    candidates = [*TALK.candidates(), *CUT.candidates()]
    assert [message["role"] for message in candidates[1].messages] == ["user", "assistant", "user"]
    want = ChannelScorer(directory).score(candidates)
    np.testing.assert_allclose([*found[0].scores, *found[1].scores], want, rtol=1e-5)
    assert found[0].score == pytest.approx(np.mean(want[:2]), rel=1e-5)
    assert list(found[0].details) == ["parts"] and len(found[0].details["parts"]) == 2


def test_steps_are_kept_turn_by_turn(directory: Path) -> None:
    scorer = ScorerConfig(kind="prm", checkpoint=str(directory), format="channel", aggregate="min")
    judge = make_judge(JudgeConfig(kind="prm", scorer=scorer))
    assert isinstance(judge, Judge)
    one = answer("a", "First this.\n\nThen that.", "Paris.")
    (found,) = judge.score([one])
    assert [len(parts) for parts in found.details["parts"]] == [2, 1]
    assert found.scores == tuple(min(parts.values()) for parts in found.details["parts"])


def test_perplexity_is_that_of_the_answers_tokens(directory: Path) -> None:
    """log_softmax of PyTorch over our logits, for every token of the answer; an answer cut off has no end of turn."""
    loaded = checkpoint.load(directory, dtype=jnp.dtype(jnp.float32))
    found = PerplexityJudge(directory).score([TALK, CUT, OTHER])
    means = []
    for candidate in (*TALK.candidates(), *CUT.candidates(), *OTHER.candidates()):
        prompt, said = response_ids(byte_level_tokenizer(), candidate.messages, candidate.text)
        said = said if candidate.finished else said[:-1]
        ids = [*prompt, *said]
        hidden = forward.trunk(loaded.policy, loaded.config, jnp.asarray([ids], jnp.int32)).hidden
        logits = torch.tensor(np.array(forward.logits(loaded.policy, hidden)))[0]
        logprobs = torch.log_softmax(logits.double(), dim=-1)
        means.append(float(np.mean([logprobs[len(prompt) - 1 + i, token] for i, token in enumerate(said)])))
    np.testing.assert_allclose([score for one in found for score in one.scores], means, rtol=1e-4)
    np.testing.assert_allclose(found[1].details["perplexity"], [np.exp(-means[2])], rtol=1e-3)


def test_a_run_is_judged_by_a_model_and_an_overlong_answer_is_named(directory: Path, tmp_path: Path) -> None:
    config = JudgeConfig(kind="perplexity", checkpoint=str(directory))
    out = write_run(tmp_path / "run", TALK, CUT, answer("c", "rude " * 300))
    with pytest.raises(UserError, match=r"greedy\.jsonl, line 3: .*context holds 256"):
        run_judges(JudgeRun(out=str(out), judges=(config,)))
    assert [one.id for one in read_judgements(judged(out, "perplexity"))] == ["a", "b"]
    with pytest.raises(UserError, match="no checkpoint at"):
        run_judges(JudgeRun(out=str(out), judges=(JudgeConfig(kind="armo", checkpoint=str(tmp_path / "none")),)))
