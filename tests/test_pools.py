"""Best-of-N and Speculative Rejection on a model, by the library and generate.py: answers, cost, scorers, refusals."""

import json

import numpy as np
import pytest

import generate
import sla_jax
from sla_jax.decode.sampling import Sampling
from sla_jax.errors import UserError
from sla_jax.scoring.candidate import Candidate

MESSAGES = [{"role": "user", "content": "How much is 12 + 30?"}]
WARM = Sampling(temperature=1.0, seed=7)
HALVING = sla_jax.SpeculativeRejection(n=4, alpha=0.5, budget=32, chunk=4)  # 4 lanes to 8 tokens, 2 to 16, 1 to the end


class Even:
    """Ranks by how many tokens are even; keeps what it was given."""

    name = "even"

    def __init__(self):
        self.seen: list[Candidate] = []

    def score(self, candidates):
        self.seen += candidates
        return [float(sum(token % 2 == 0 for token in one.tokens)) for one in candidates]


def play(model, search, **changes):
    """Chunks, and all candidates by number."""
    chunks = list(model.stream(MESSAGES, search=search, **{"max_tokens": 22, "sampling": WARM, **changes}))
    return chunks, {one.candidate: one for chunk in chunks for one in chunk.ended}


def test_the_answer_comes_at_the_end_and_is_the_best_candidate(model):
    chunks, ended = play(model, HALVING)
    assert sorted(ended) == [0, 1, 2, 3]
    finished = [one for one in ended.values() if one.finish != "rejected"]
    won = max(finished, key=lambda one: one.score)
    assert [chunk.text for chunk in chunks[:-1]] == [""] * (len(chunks) - 1)
    assert chunks[-1].text == model.tokenizer.decode(won.tokens, skip_special_tokens=True)
    assert (chunks[-1].token_ids, chunks[-1].finish_reason) == (won.tokens, won.finish)
    assert "rejected" in {one.finish for one in ended.values()}


@pytest.mark.parametrize("search", [HALVING, sla_jax.BestOfN(n=4, chunk=8)], ids=["rejection", "best of n"])
def test_rewards_of_every_candidate_are_those_of_a_fresh_prefill(model, search):
    """Also of those whose lanes were gathered into fewer: the keys and values they carry are the right ones."""
    _, ended = play(model, search)
    prompt = model.prompt_ids(MESSAGES)
    for one in ended.values():
        fresh = model.token_rewards(prompt, one.tokens)
        np.testing.assert_allclose(one.rewards, fresh, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(one.score, np.mean(fresh), rtol=1e-3)


def test_no_rejection_is_best_of_n_and_candidate_0_plain_sampling(model):
    _, ours = play(model, sla_jax.SpeculativeRejection(n=3, alpha=0.0, chunk=8))
    _, best = play(model, sla_jax.BestOfN(n=3, chunk=8))
    assert {number: one.tokens for number, one in ours.items()} == {number: one.tokens for number, one in best.items()}
    plain = model.stream(MESSAGES, search=sla_jax.Greedy(chunk=4), max_tokens=22, sampling=WARM)
    assert best[0].tokens == [token for chunk in plain for token in chunk.token_ids]


def test_the_account_is_exact(model):
    chunks, ended = play(model, HALVING, sampling=Sampling(temperature=1.0, seed=7, min_tokens=22))
    cost = chunks[-1].cost
    assert cost.steps == 22
    assert cost.lane_steps == 4 * 8 + 2 * 8 + 1 * 6
    assert cost.explored_tokens == sum(len(one.tokens) for one in ended.values()) == cost.lane_steps
    assert (cost.committed_tokens, cost.discarded_tokens) == (22, cost.explored_tokens - 22)
    assert cost.kv_bytes == model.kv_bytes(len(model.prompt_ids(MESSAGES)) + 32)
    assert model.kv_bytes(1) == 2 * 2 * model.config.kv_heads * model.config.head_dim * 4
    assert cost.scorer_tokens == 0 and cost.seconds > 0


def test_the_account_of_trees(model):
    (*_, chunk) = model.stream(
        MESSAGES, search=sla_jax.Greedy(chunk=4), max_tokens=10, sampling=Sampling(min_tokens=10)
    )
    assert (chunk.cost.steps, chunk.cost.lane_steps, chunk.cost.explored_tokens) == (10, 10, 10)
    search = sla_jax.SLA(width=2, chunk=3, depth=1)
    (*_, chunk) = model.stream(MESSAGES, search=search, max_tokens=9, sampling=Sampling(min_tokens=9))
    assert (chunk.cost.steps, chunk.cost.lane_steps) == (9, 36)
    assert chunk.cost.explored_tokens == chunk.usage.explored_tokens == 3 + 2 * 3 + 4 * 3
    assert chunk.cost.discarded_tokens == 21 - 9


def test_a_scorer_ranks_text_and_is_accounted_for(model):
    scorer = Even()
    chunks, ended = play(model, HALVING, scorer=scorer)
    assert all(one.score == sum(token % 2 == 0 for token in one.tokens) for one in ended.values())
    assert chunks[-1].cost.scorer_tokens == sum(len(one.tokens) for one in scorer.seen)
    assert chunks[-1].cost.scorer_seconds > 0
    assert {one.question for one in scorer.seen} == {MESSAGES[0]["content"]}
    assert not all(one.finished for one in scorer.seen)


def test_nothing_compiles_for_a_second_answer(model, compiled):
    play(model, HALVING)
    count = len(compiled)
    play(model, HALVING, sampling=Sampling(temperature=0.5, seed=8, top_p=0.9))
    assert len(compiled) == count


def test_what_is_refused(model, bare_model):
    search = sla_jax.BestOfN(n=2, chunk=8)
    for wrong, call in {
        "at temperature 0 all n=2 candidates": lambda: play(model, search, sampling=Sampling()),
        "'reward' needs a reward channel": lambda: play(bare_model, search),
        "not as token ids": lambda: list(model.stream([1, 2], search=search, sampling=WARM, scorer=Even())),
        "goes with BestOfN": lambda: list(model.stream(MESSAGES, search=sla_jax.Greedy(), scorer=Even())),
    }.items():
        with pytest.raises(UserError, match=wrong):
            call()
    _, ended = play(bare_model, sla_jax.BestOfN(n=2, chunk=22, score="logprob_mean"))
    assert len(ended) == 2


def test_generate_prints_progress_candidates_and_the_account(checkpoint, capsys):
    words = "--search.method speculative_rejection --search.n 4 --search.budget 32 --search.chunk 4 --max-tokens 22"
    sampling = "--sampling.temperature 1 --sampling.seed 7"
    generate.main([str(checkpoint), MESSAGES[0]["content"], "--json", *words.split(), *sampling.split()])
    *lines, end = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    progress = [line for line in lines if "candidates" in line]
    assert [line["phase"] for line in progress] == sorted(line["phase"] for line in progress)
    assert sorted(one["candidate"] for line in progress for one in line["candidates"]) == [0, 1, 2, 3]
    assert [line["token_ids"] for line in lines if "candidates" not in line] == [end["token_ids"]]
    assert end["cost"]["explored_tokens"] == end["usage"]["explored_tokens"]
    generate.main([str(checkpoint), MESSAGES[0]["content"], *words.split(), *sampling.split()])
    assert capsys.readouterr().out == end["text"] + "\n"
