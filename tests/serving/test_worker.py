"""The engine: mixed requests in shared programs are each what it is alone; nothing compiles after warm-up."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import sla_jax
from sla_jax.errors import UserError
from sla_jax.serving.request import Inspection, Request
from sla_jax.serving.settings import Profile
from sla_jax.serving.sizes import rows_of
from sla_jax.serving.worker import Worker, open_model
from tests.serving.real_worker import PROFILES, Driver, answer, mixed_requests, serve_config, started


@pytest.fixture(scope="module")
def worker(checkpoint: Path) -> Worker:
    return started(checkpoint)


@pytest.fixture(scope="module")
def expected(model: sla_jax.LanguageModel) -> dict[str, list[int]]:
    """Every request alone, through the library."""
    decoders = {profile.name: profile.decoder() for profile in PROFILES}
    answers = {}
    for request in mixed_requests(tuple(model.end_tokens)):
        common: dict[str, Any] = {"max_tokens": request.max_tokens, "sampling": request.sampling}
        chunks = model.stream(list(request.prompt), search=decoders[request.profile], **common)
        answers[request.id] = [token for chunk in chunks for token in chunk.token_ids]
    return answers


@pytest.mark.parametrize(("order", "stagger"), [(1, 0), (-1, 0), (1, 1), (-1, 2)])
def test_mixed_requests_are_each_what_it_is_alone(
    worker: Worker, model: Any, expected: dict[str, list[int]], order: int, stagger: int, compiled: list[str]
) -> None:
    """Greedy, look-ahead, sampled, penalized; other orders, arrivals and neighbours; and not one compilation."""
    requests = mixed_requests(tuple(model.end_tokens))[::order]
    assert Driver(worker).run(requests, stagger) == expected
    assert not compiled
    assert len({len(tokens) for tokens in expected.values()}) > 3  # they are of many lengths


def test_the_listener_hears(compiled: list[str]) -> None:
    jax.jit(lambda x: x * 3.25 + 1)(np.float32(2))
    assert compiled


def test_first_tokens_come_with_the_prompt_and_rounds_repeat_them(worker: Worker, model: Any) -> None:
    driver = Driver(worker)
    requests = [r for r in mixed_requests(tuple(model.end_tokens)) if r.max_tokens > 6][:6]
    driver.run(requests)
    for request in requests:
        first, *rounds = driver.events[request.id]
        branched = request.profile == "branched"
        if not branched:
            assert len(first.tokens) == len(first.tops) == 1 and first.rewards == [] and first.round is None
        committing = [event for event in rounds if event.tokens]
        assert [event.repeated for event in committing] == [0 if branched else 1, *[0] * (len(committing) - 1)]
        for event in committing:
            assert len(event.tokens) == len(event.rewards) == len(event.logprobs)
            assert [len(top) for top in event.tops] == [request.top_logprobs] * len(event.tokens)
            assert event.score is not None
        assert [event.finish for event in rounds][:-1] == [None] * (len(rounds) - 1)
        tokens = answer(driver.events[request.id])
        finish = "stop" if tokens[-1] in request.ends else "length"
        assert rounds[-1].finish == finish
        assert finish == "stop" or len(tokens) == request.max_tokens


def test_greedy_rewards_and_logprobs_are_the_forward_passes(worker: Worker, model: Any) -> None:
    """What rounds report is what one pass over the whole text says, and so is an inspection."""
    request = mixed_requests(tuple(model.end_tokens))[3]
    driver = Driver(worker)
    tokens = driver.run([request])[request.id]
    rewards = [value for event in driver.events[request.id] for value in event.rewards]
    rounds = [event for event in driver.events[request.id] if event.rewards]
    logprobs = [value for event in rounds for value in event.logprobs]
    whole = model.token_rewards(request.prompt, tokens)
    assert rewards == pytest.approx(whole, abs=1e-4)
    inspected = worker.inspect(Inspection(id="i", tokens=(*request.prompt, *tokens), top_logprobs=2))()
    start = len(request.prompt)
    assert inspected.rewards is not None and inspected.rewards[start:] == pytest.approx(whole, abs=1e-4)
    assert inspected.logprobs[0] is None and inspected.tops[0] == []
    assert inspected.logprobs[start:] == pytest.approx(logprobs, abs=1e-4)
    for token, logprob, top in zip(tokens, inspected.logprobs[start:], inspected.tops[start:], strict=True):
        assert len(top) == 2 and top[0][1] >= top[1][1] and logprob is not None
        assert top[0][1] >= logprob - 1e-5 and (token != top[0][0] or top[0][1] == pytest.approx(logprob, abs=1e-5))


def test_a_cancelled_slot_is_free_at_once(worker: Worker, expected: dict[str, list[int]], model: Any) -> None:
    """Whoever sits down next gets their own answer, and a round after a cancellation does nothing for who left."""
    requests = {request.id: request for request in mixed_requests(tuple(model.end_tokens))}
    driver = Driver(worker)
    for name in ("r1", "r4", "r7"):
        driver.seat(dataclasses.replace(requests[name], id=f"{name}-dropped"))
        driver.round()
        for profile, slot in list(driver.seats):
            worker.free(profile, slot)
            del driver.seats[profile, slot]
            driver.free[profile] = sorted([slot, *driver.free[profile]])
    assert driver.run([requests["r4"]])["r4"] == expected["r4"]
    assert all(event.alive == 0 for event in worker.round("sla").get().values())


def test_a_known_prefix_is_not_read_again_and_changes_no_bit(checkpoint: Path, model: Any) -> None:
    worker = started(checkpoint, profiles=PROFILES[:1])
    long = tuple(range(5, 55))
    cold = worker.begin(Request(id="a", profile="greedy", prompt=long, max_tokens=4, ends=()))
    steps = 1
    while not worker.read(cold):
        steps += 1
    assert (cold.cached, steps) == (0, 4)
    other = (*long[:40], 9, 9, 9, 9, 9, 9, 9, 9, 9, 9)
    warm = worker.begin(Request(id="b", profile="greedy", prompt=other, max_tokens=4, ends=()))
    assert warm.cached == 32
    again = worker.begin(Request(id="c", profile="greedy", prompt=long, max_tokens=4, ends=()))
    assert again.cached == 48 and worker.read(again)
    assert cold.prefix is not None and again.prefix is not None
    for mine, theirs in zip(jax.tree.leaves(cold.prefix), jax.tree.leaves(again.prefix), strict=True):
        used = (slice(None), slice(None), slice(0, 50)) if mine.ndim == 4 else ()
        assert np.array_equal(np.asarray(mine)[used], np.asarray(theirs)[used])


def test_the_prefix_cache_is_bounded_and_forgets_the_oldest(checkpoint: Path) -> None:
    worker = started(checkpoint, profiles=PROFILES[:1])
    cache = worker.reader.cache
    one = (48 + worker.sizes.slack) * 2 * 2 * 2 * 8 * 4  # positions × layers × keys and values × heads × dim × float32
    cache.limit = 2 * one
    prompts = [(start, *range(3, 33)) for start in (40, 41, 42)]
    for prompt in prompts:
        reading = worker.begin(Request(id="a", profile="greedy", prompt=prompt, max_tokens=4, ends=()))
        while not worker.read(reading):
            pass
        assert cache.bytes <= cache.limit
    assert [cache.find(prompt)[0] for prompt in prompts] == [0, 16, 16]
    cache.find(prompts[1])  # now the other is older
    reading = worker.begin(Request(id="a", profile="greedy", prompt=prompts[0], max_tokens=4, ends=()))
    while not worker.read(reading):
        pass
    assert [cache.find(prompt)[0] for prompt in prompts] == [16, 16, 0]


def test_a_mesh_gives_the_same_answers(checkpoint: Path, model: Any, expected: dict[str, list[int]]) -> None:
    """Four devices: heads over two, slots over two."""
    sharded = started(checkpoint, mesh={"data": 2, "tensor": 2}, engine={"buckets": (128,)})
    requests = mixed_requests(tuple(model.end_tokens))
    assert Driver(sharded).run(requests) == expected
    kv = sharded._states["sla"].cache.prefix[0][0]
    assert kv.sharding.shard_shape(kv.shape)[:2] == (kv.shape[0] // 2, kv.shape[1] // 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mesh": {"data": 4}}, "2 slots.*mesh.data=4.*nearest.*4"),
        ({"mesh": {"tensor": 4}}, r"key/value heads \(2\).*mesh.tensor=4"),
        ({"engine": {"context": 400}}, "context=400.*256"),
        ({"engine": {"prefill_chunk": 24}}, "prefill_chunk=24"),
        ({"engine": {"buckets": (64, 32)}}, r"buckets=\[64, 32\]"),
        ({"engine": {"buckets": (64,)}}, r"buckets=\[64\].*128"),
    ],
)
def test_settings_that_cannot_be_served_are_refused(checkpoint: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_model(serve_config(checkpoint, **changes))


def test_a_search_without_a_channel_is_refused(bare_checkpoint: Path) -> None:
    with pytest.raises(UserError, match="sla.*no reward channel"):
        open_model(serve_config(bare_checkpoint))
    opened = open_model(serve_config(bare_checkpoint, profiles=PROFILES[:1]))
    assert not opened.model.has_channel


def test_more_devices_than_there_are_is_an_error(checkpoint: Path) -> None:
    wide = (Profile(name="greedy", method="greedy", slots=16),)
    opened = open_model(serve_config(checkpoint, mesh={"data": 8}, profiles=wide))
    with pytest.raises(UserError, match="8 devices and there are 4"):
        opened.worker(lambda said: None)


ROWS = [(8, 1, (2, 8)), (4, 1, (1, 4)), (1, 1, (1,)), (64, 1, (1, 4, 16, 64)), (8, 4, (8,)), (64, 8, (16, 64))]


@pytest.mark.parametrize(("slots", "data", "rows"), ROWS)
def test_rows_of_a_round(slots: int, data: int, rows: tuple[int, ...]) -> None:
    assert rows_of(slots, data) == rows


def test_a_bad_request_is_refused_before_it_costs_anything(worker: Worker) -> None:
    for prompt, limit, said in (((), 4, "empty"), ((1, 2, 400), 4, "400"), (tuple([1] * 120), 9, "120.*9.*128")):
        with pytest.raises(UserError, match=said):
            worker.begin(Request(id="x", profile="greedy", prompt=prompt, max_tokens=limit, ends=()))
