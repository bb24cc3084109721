"""The library: streaming, whole answers, rewards, and what it refuses."""

import numpy as np
import pytest

import sla_jax
from sla_jax.errors import UserError

SEARCHES = [sla_jax.Greedy(chunk=4), sla_jax.SLA(width=2, chunk=3, depth=1)]
MESSAGES = [{"role": "user", "content": "How much is 12 + 30?"}]


@pytest.mark.parametrize("search", SEARCHES, ids=["greedy", "sla"])
def test_streamed_text_is_the_text_of_the_streamed_tokens(model, search):
    chunks = list(model.stream(MESSAGES, search=search, max_tokens=25))
    ids = [token for chunk in chunks for token in chunk.token_ids]
    text = "".join(chunk.text for chunk in chunks)
    assert text == model.tokenizer.decode(ids, skip_special_tokens=True)
    assert chunks[-1].finish_reason == ("stop" if ids[-1] in model.end_tokens else "length")
    assert [c.finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].usage.completion_tokens == len(ids) <= 25
    assert chunks[-1].usage.explored_tokens >= len(ids)


@pytest.mark.parametrize("search", SEARCHES, ids=["greedy", "sla"])
def test_the_loop_on_the_device_gives_the_streamed_tokens_for_several_requests(model, search):
    prompts = [[5, 6, 7], [9] * 40, list(range(30, 50)), [11]]
    limits = [7, 24, 13, 1]
    alone = []
    for prompt, limit in zip(prompts, limits, strict=True):
        chunks = model.stream(prompt, search=search, max_tokens=limit)
        alone.append([token for chunk in chunks for token in chunk.token_ids])
    assert model.generate(prompts, search=search, max_tokens=limits) == alone


@pytest.mark.parametrize("search", SEARCHES, ids=["greedy", "sla"])
def test_served_rewards_are_the_rewards_of_one_forward_pass(model, search):
    chunks = list(model.stream(MESSAGES, search=search, max_tokens=25))
    ids = [token for chunk in chunks for token in chunk.token_ids]
    served = [reward for chunk in chunks for reward in chunk.rewards]
    trained = model.token_rewards(model.prompt_ids(MESSAGES), ids)
    # float32 sums of large terms that cancel: what is lost is a part of the largest reward, not of each
    np.testing.assert_allclose(served, trained, rtol=0, atol=1e-5 * np.abs(trained).max())
    if isinstance(search, sla_jax.SLA):
        np.testing.assert_allclose(chunks[-1].score, np.mean(trained), atol=1e-4)


def test_rewards_of_a_response_cover_its_end_of_turn(model):
    rewards = model.rewards(MESSAGES, "It is 42.")
    prompt = model.prompt_ids(MESSAGES)
    answer = [*model.tokenizer("It is 42.", add_special_tokens=False)["input_ids"], 2]
    np.testing.assert_allclose(rewards, model.token_rewards(prompt, answer), atol=1e-6)
    for token in (-1, model.config.vocab_size):
        with pytest.raises(UserError, match=f"the conversation: the token {token} has no embedding"):
            model.token_rewards(prompt, [token])


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 9])
def test_max_tokens_is_exact(model, limit):
    endless = sla_jax.LanguageModel(model.policy, model.config, model.tokenizer, end_tokens=[])
    for search in SEARCHES:
        assert len(endless.generate([[5, 6, 7]], search=search, max_tokens=[limit])[0]) == limit


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(model):
    with pytest.raises(UserError, match=r"the prompt has 250 tokens and max_tokens is 7, together 257; .* holds 256"):
        model.generate([[3] * 250], max_tokens=[7])
    with pytest.raises(UserError, match="the prompt is empty"):
        model.generate([[]], max_tokens=[7])
    with pytest.raises(UserError, match="max_tokens=0"):
        model.generate([[1]], max_tokens=[0])


def test_a_token_outside_the_vocabulary_is_refused(model):
    with pytest.raises(UserError, match="320"):
        model.generate([[3, 320]], max_tokens=[7])


def test_looking_ahead_without_a_channel_says_how_to_get_one(bare_model):
    with pytest.raises(UserError, match="--channel FILE"):
        bare_model.generate([[1, 2]], search=sla_jax.SLA(), max_tokens=[4])
    with pytest.raises(UserError, match="reward channel"):
        bare_model.rewards(MESSAGES, "42")
    assert len(bare_model.generate([[1, 2]], search=sla_jax.Greedy(), max_tokens=[4])[0]) <= 4


@pytest.mark.parametrize(
    ("settings", "names"), [({"width": 0}, "width=0"), ({"chunk": 0}, "chunk=0"), ({"depth": -1}, "depth=-1")]
)
def test_settings_out_of_range_are_refused_by_name(settings, names):
    with pytest.raises(UserError, match=names):
        sla_jax.SLA(**settings)


def test_too_many_lanes_are_refused():
    with pytest.raises(UserError, match=r"width\^\(depth\+1\) = 4096 lanes"):
        sla_jax.SLA(width=8, depth=3)
