"""Step beam search and DVTS on a model, by the library and generate.py: answers, steps, cost, scorers, refusals."""

import json

import numpy as np
import pytest

import generate
import sla_jax
from sla_jax.decode.dvts import boxed
from sla_jax.decode.sampling import Sampling
from sla_jax.errors import UserError
from tests.test_pools import MESSAGES, Even
from tests.test_pools import play as play_pool

COMMON = {"n": 4, "width": 2, "separator": "k", "chunk": 4}
BEAM, TREES = sla_jax.StepBeam(**COMMON), sla_jax.DVTS(**COMMON)
AHEAD = sla_jax.StepBeam(**COMMON, lookahead=1, aggregate="mean")
BIAS = ((315, 4.0), (2, 2.0))  # "ick" and the end token, so that answers have several steps and some end
WARM = Sampling(temperature=1.0, seed=7, logit_bias=BIAS)
BOTH = pytest.mark.parametrize("search", [BEAM, TREES, AHEAD], ids=["step beam", "dvts", "looking ahead"])


def play(model, search, **changes):
    """Chunks, and all candidates by number."""
    return play_pool(model, search, **{"sampling": WARM, **changes})


def steps_of(model, tokens):
    """Lengths of an answer up to the ends of its steps, by decoding; an end token alone is no step."""
    ends, begun = [], 0
    for count in range(1, len(tokens) + 1):
        if "k" in model.tokenizer.decode(tokens[begun:count], skip_special_tokens=True):
            ends.append(count)
            begun = count
    if begun < len(tokens):
        alone = len(tokens) - begun == 1 and tokens[-1] in model.end_tokens
        ends = [*(ends[:-1] if alone else ends), len(tokens)]
    return ends


@BOTH
def test_the_answer_comes_at_the_end_and_is_the_best_that_ended(model, search):
    chunks, ended = play(model, search)
    complete = [one for one in ended.values() if one.finish == "stop"]
    won = max(complete or [o for o in ended.values() if o.finish == "length"], key=lambda one: one.score)
    assert [chunk.text for chunk in chunks[:-1]] == [""] * (len(chunks) - 1)
    assert (chunks[-1].token_ids, chunks[-1].finish_reason) == (won.tokens, won.finish)
    assert chunks[-1].text == model.tokenizer.decode(won.tokens, skip_special_tokens=True)
    assert "rejected" in {one.finish for one in ended.values()}


@BOTH
def test_rewards_and_scores_of_steps_are_those_of_a_fresh_prefill(model, search):
    """Also of those that branched and were looked ahead of: the keys and values they carry are the right ones."""
    _, ended = play(model, search)
    prompt = model.prompt_ids(MESSAGES)
    for one in ended.values():
        fresh = model.token_rewards(prompt, one.tokens)
        np.testing.assert_allclose(one.rewards, fresh, rtol=1e-3, atol=1e-4)
        ends = steps_of(model, one.tokens)
        assert len(one.step_scores) == len(ends)
        if not search.lookahead:
            np.testing.assert_allclose(one.step_scores, [fresh[end - 1] for end in ends], rtol=1e-3, atol=1e-4)
        made = one.step_scores[-1] if search.aggregate == "last" else np.mean(one.step_scores)
        np.testing.assert_allclose(one.score, made, rtol=1e-6)
    assert max(len(one.step_scores) for one in ended.values()) > 2


def test_what_is_looked_at_is_the_greedy_way_on(model):
    """The last score of who was given up is the reward at the end of the next, greedy, step."""
    _, ended = play(model, AHEAD)
    prompt, greedy = model.prompt_ids(MESSAGES), Sampling(logit_bias=BIAS)
    given_up = [one for one in ended.values() if one.finish == "rejected" and len(one.tokens) < 22]
    for one in given_up[:3]:
        chunks = model.stream([*prompt, *one.tokens], max_tokens=22 - len(one.tokens), sampling=greedy)
        tokens = [token for chunk in chunks for token in chunk.token_ids]
        step = tokens[: steps_of(model, tokens)[0]]
        fresh = model.token_rewards(prompt, [*one.tokens, *step])[-1]
        np.testing.assert_allclose(one.step_scores[-1], fresh, rtol=1e-3, atol=1e-4)
    assert len(given_up) >= 3


@pytest.mark.parametrize("kind", [sla_jax.StepBeam, sla_jax.DVTS])
def test_width_1_is_best_of_n(model, kind):
    _, ours = play(model, kind(n=3, width=1, separator="k", lookahead=1, chunk=8))
    _, best = play(model, sla_jax.BestOfN(n=3, chunk=8))
    assert {number: one.tokens for number, one in ours.items()} == {number: one.tokens for number, one in best.items()}


def test_the_account_is_exact(model):
    """Without a separator in sight a search is four samples to the end; looking ahead holds everything twice."""
    long = Sampling(temperature=1.0, seed=7, logit_bias=BIAS, min_tokens=22)
    chunks, ended = play(model, sla_jax.DVTS(n=4, width=2, separator="\x01\x02\x03", chunk=4), sampling=long)
    cost = chunks[-1].cost
    assert (cost.steps, cost.lane_steps, cost.explored_tokens, cost.committed_tokens) == (22, 88, 88, 22)
    assert cost.kv_bytes == model.kv_bytes(len(model.prompt_ids(MESSAGES)) + 4 * 22)
    assert {one.finish for one in ended.values()} == {"length"}
    plain, ahead = (play(model, search, sampling=long)[0][-1].cost for search in (BEAM, AHEAD))
    assert ahead.explored_tokens > plain.explored_tokens
    assert ahead.kv_bytes > plain.kv_bytes
    assert ahead.lane_steps == 4 * ahead.steps


def test_a_scorer_ranks_text_and_is_accounted_for(model):
    scorer = Even()
    chunks, ended = play(model, sla_jax.StepBeam(**COMMON, aggregate="min"), scorer=scorer)
    assert all(one.score == min(one.step_scores) for one in ended.values())
    assert all(one.step_scores[-1] == sum(token % 2 == 0 for token in one.tokens) for one in ended.values())
    assert chunks[-1].cost.scorer_tokens == sum(len(one.tokens) for one in scorer.seen)
    assert not all(one.finished for one in scorer.seen)


def test_nothing_compiles_for_a_second_answer(model, compiled):
    play(model, AHEAD)
    count = len(compiled)
    play(model, TREES, sampling=Sampling(temperature=0.5, seed=8, top_p=0.9))
    play(model, sla_jax.StepBeam(**{**COMMON, "separator": "e", "width": 4}, max_steps=3))
    assert len(compiled) == count


def test_what_is_refused(model, bare_model):
    for wrong, call in {
        "at temperature 0 all n=4 candidates": lambda: play(model, BEAM, sampling=Sampling()),
        "'prod' multiplies probabilities": lambda: play(model, sla_jax.DVTS(**COMMON, aggregate="prod")),
        "'reward_last' needs a reward channel": lambda: play(bare_model, TREES),
    }.items():
        with pytest.raises(UserError, match=wrong):
            call()
    _, ended = play(bare_model, sla_jax.DVTS(**COMMON, score="logprob_mean"))
    assert ended


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("", False),
        (r"so \boxed{4", False),
        (r"so \boxed{4}", True),
        (r"\boxed{\frac{1}{2}", False),
        (r"\boxed{\frac{1}{2}} is it", True),
        (r"\boxed{\{1, 2\}", False),
        (r"\boxed{\{1, 2\}}", True),
        (r"boxed{4}", False),
        (r"\boxed{1 \boxed{2}", True),
    ],
)
def test_a_box_is_complete_when_its_braces_close(text, complete):
    assert boxed(text) == complete


@pytest.mark.parametrize("method", ["step_beam", "dvts"])
def test_generate_prints_progress_candidates_and_the_account(checkpoint, capsys, method):
    words = f"--search.method {method} --search.n 4 --search.width 2 --search.separator k --search.chunk 4"
    words += " --search.lookahead 1 --search.aggregate mean --max-tokens 22"
    sampling = "--sampling.temperature 1 --sampling.seed 7"
    generate.main([str(checkpoint), MESSAGES[0]["content"], "--json", *words.split(), *sampling.split()])
    *lines, end = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    progress = [line for line in lines if "candidates" in line]
    assert [line["phase"] for line in progress] == sorted(line["phase"] for line in progress)
    ended = [one for line in progress for one in line["candidates"]]
    assert len({one["candidate"] for one in ended}) == len(ended)
    assert all(one["score"] == pytest.approx(np.mean(one["step_scores"])) for one in ended)
    assert end["token_ids"] in [one["tokens"] for one in ended]
    generate.main([str(checkpoint), MESSAGES[0]["content"], *words.split(), *sampling.split()])
    assert capsys.readouterr().out == end["text"] + "\n"
