"""The whole server, in one process on a tiny model, through real clients: answers, drops, bad input, failure."""

import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jax
import numpy as np
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

import sla_jax
from sla_jax.serving.metrics import COMPILED
from tests.programs import run_program
from tests.serving.toy_worker import PATIENCE
from tests.serving.whole import (
    CASES,
    CHAT,
    DROPPED,
    PLAIN,
    PROFILES,
    Case,
    Wave,
    Whole,
    aborted,
    alone,
    ask,
    begin_and_leave,
    ids,
    naive,
    naive_world,
    resident,
    serving,
    until,
)


@pytest.fixture(scope="module")
def compiling() -> Iterator[list[str]]:
    """Which thread compiled something. The library, called by tests, compiles in the main thread; a server must not."""
    seen: list[str] = []

    def listen(event: str, duration_secs: float, **details: str | int) -> None:
        if event == COMPILED:
            seen.append(threading.current_thread().name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def server(checkpoint: Path, compiling: list[str]) -> Iterator[Whole]:
    with serving(checkpoint, reasoning="think", engine={"buckets": (128,)}) as server:
        assert "service" in compiling
        compiling.clear()
        yield server


@pytest.fixture
def whole(server: Whole) -> Iterator[Whole]:
    """The server; every test leaves it empty."""
    yield server
    until(server.settled, "the server is empty")


@pytest.fixture
def client(whole: Whole) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{whole.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        yield client


@pytest.fixture(scope="module")
def expected(model: sla_jax.LanguageModel) -> dict[str, list[int]]:
    """Every case alone, through the library."""
    return {name: alone(model, case) for name, case in CASES.items()}


# ---- the same answers everywhere ----


def test_the_library_says_what_the_oracle_says(model, expected):
    assert {name: naive(model, CASES[name]) for name in PLAIN} == {name: expected[name] for name in PLAIN}
    assert len({len(tokens) for tokens in expected.values()}) > 3


@pytest.mark.parametrize(("order", "together"), [(1, 8), (-1, 3)])
def test_mixed_requests_over_http_are_each_what_they_are_alone(whole, expected, order, together):
    async def go() -> list[list[int]]:
        turns = asyncio.Semaphore(together)

        async def one(case: Case) -> list[int]:
            async with turns:
                return await ask(client, case)

        base = f"{whole.url}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0, timeout=PATIENCE) as client:
            return await asyncio.gather(*(one(CASES[name]) for name in names))

    names = list(CASES)[::order]
    assert dict(zip(names, asyncio.run(go()), strict=True)) == expected


def test_the_program_says_what_the_server_says(whole, client, checkpoint):
    flags = ["--search.width", "2", "--search.chunk", "3", "--search.depth", "2", "--max-tokens", "26"]
    done = run_program("generate.py", str(checkpoint), CHAT[0]["content"], "--json", *flags)
    said = json.loads(done.stdout.splitlines()[-1])
    extra = {"return_token_ids": True, "search": {"method": "sla", "width": 2, "chunk": 3, "depth": 2}}
    reply = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=26, extra_body=extra)
    (choice,) = reply.choices
    assert (choice.token_ids, choice.message.content) == (said["token_ids"], said["text"])
    assert choice.finish_reason == said["finish_reason"]
    assert reply.usage.completion_tokens_details.explored_tokens == said["usage"]["explored_tokens"]


# ---- OpenAI's ways, on a real model ----


def tokens_of(reply: Any) -> list[list[int]]:
    return [choice.token_ids for choice in reply.choices]


def test_streamed_is_what_is_not_streamed(client, model, expected):
    for name in ("sla", "wide chat"):
        case = CASES[name]
        create = client.chat.completions.create if case.is_chat else client.completions.create
        asked = {key: value for key, value in case.body.items() if key not in ("return_token_ids", "stream")}
        extra = {"extra_body": {"return_token_ids": True}}
        whole_reply = create(**asked, **extra)
        *chunks, last = create(**asked, **extra, stream=True, stream_options={"include_usage": True})
        parts = [chunk.choices[0] for chunk in chunks]
        text = "".join((part.delta.content if case.is_chat else part.text) for part in parts)
        (choice,) = whole_reply.choices
        assert text == (choice.message.content if case.is_chat else choice.text)
        assert [token for part in parts for token in part.token_ids] == choice.token_ids == expected[name]
        assert choice.prompt_token_ids == parts[0].prompt_token_ids == model.prompt_ids(case.prompt)
        assert parts[-1].finish_reason == choice.finish_reason and len(parts) > 2
        assert len(parts[0].token_ids) == 1, "the first token comes with the prompt"
        library = list(model.stream(case.prompt, search=decoder(case), max_tokens=case.max_tokens))
        for usage in (whole_reply.usage, last.usage):
            assert usage.completion_tokens == len(expected[name])
            assert usage.prompt_tokens == len(choice.prompt_token_ids)
            assert usage.completion_tokens_details.explored_tokens == library[-1].usage.explored_tokens


def decoder(case: Case) -> Any:
    return next(profile.decoder() for profile in PROFILES if profile.name == case.profile)


def test_choices_differ_and_come_again(client):
    asked = {"messages": CHAT, "temperature": 1.3, "seed": 3, "max_tokens": 12}
    extra = {"extra_body": {"return_token_ids": True}}
    for name in ("tiny:greedy", "tiny:sla"):
        two = tokens_of(client.chat.completions.create(model=name, n=2, **asked, **extra))
        assert two[0] != two[1]
        assert tokens_of(client.chat.completions.create(model=name, n=2, **asked, **extra)) == two
        assert tokens_of(client.chat.completions.create(model=name, **asked, **extra)) == two[:1]


def test_stop_strings_end_the_answer_and_are_not_in_it(client):
    asked = {"model": "tiny:sla", "prompt": ids(2, 33), "max_tokens": 40}
    free = client.completions.create(**asked, extra_body={"ignore_eos": True})
    text = free.choices[0].text
    stop = next(text[at : at + 2] for at in range(8, len(text)) if "\ufffd" not in text[at : at + 2])
    cut = client.completions.create(**asked, stop=["never said", stop], extra_body={"ignore_eos": True})
    assert cut.choices[0].text == text.split(stop)[0] and cut.choices[0].finish_reason == "stop"
    assert cut.usage.completion_tokens < free.usage.completion_tokens == 40
    chunks = client.completions.create(**asked, stop=stop, stream=True, extra_body={"ignore_eos": True})
    assert "".join(chunk.choices[0].text for chunk in chunks) == text.split(stop)[0]


def test_lengths_are_exact_and_a_bias_decides(client, model):
    (end,), prompt = model.end_tokens, ids(6, 12)
    for profile in PROFILES:
        asked: dict[str, Any] = {"model": f"tiny:{profile.name}", "prompt": prompt}

        def answer(limit: int, extra: dict[str, Any], asked: Any = asked) -> tuple[list[int], str]:
            reply = client.completions.create(**asked, max_tokens=limit, extra_body={"return_token_ids": True, **extra})
            return reply.choices[0].token_ids, reply.choices[0].finish_reason

        assert [len(answer(limit, {"ignore_eos": True})[0]) for limit in (1, 2, 17)] == [1, 2, 17]
        forced = [at for at in range(9) if profile.method == "greedy" or at < profile.chunk or at % profile.chunk]
        for token in (65, end):
            tokens, finish = answer(9, {"logit_bias": {str(token): 100}, "ignore_eos": True})
            assert {tokens[at] for at in forced} == {token}, "all but where a branch has to differ from its sibling"
            assert (len(tokens), finish) == (9, "length")
        assert answer(9, {"logit_bias": {str(end): 100}}) == ([end], "stop")
        late, finish = answer(9, {"logit_bias": {str(end): 100}, "min_tokens": 5})
        assert (len(late), late.index(end), finish) == (6, 5, "stop")


def test_rewards_of_a_search_and_of_a_text(whole, client, model):
    extra = {"return_token_ids": True, "search": {"profile": "sla", "return_rewards": True}, "ignore_eos": True}
    reply = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=22, extra_body=extra)
    (choice,) = reply.choices
    assert [token for part in choice.search for token in part["token_ids"]] == choice.token_ids
    assert all(len(part["rewards"]) == len(part["token_ids"]) for part in choice.search)
    rewards = [reward for part in choice.search for reward in part["rewards"]]
    assert choice.search[-1]["score"] == pytest.approx(sum(rewards) / len(rewards), abs=1e-4)
    asked = {"messages": CHAT, "max_tokens": 22, "model": "tiny", "extra_body": extra, "stream": True}
    chunks = list(client.chat.completions.create(**asked))
    assert [chunk.search for chunk in chunks if hasattr(chunk, "search")] == choice.search
    prompt = model.prompt_ids(CHAT)
    body = {"prompt": prompt, "token_ids": choice.token_ids}
    seen = httpx.post(f"{whole.url}/v1/rewards", json=body, timeout=PATIENCE).json()
    assert seen["rewards"] == pytest.approx(model.token_rewards(prompt, choice.token_ids), abs=1e-4)
    assert seen["rewards"] == pytest.approx(rewards, abs=1e-4)
    assert seen["mean"] == pytest.approx(choice.search[-1]["score"], abs=1e-4)
    said = {"messages": CHAT, "response": "It is 42."}
    seen = httpx.post(f"{whole.url}/v1/rewards", json=said, timeout=PATIENCE).json()
    assert seen["rewards"] == pytest.approx(model.rewards(CHAT, "It is 42."), abs=1e-4)


def test_logprobs_are_the_forward_passes(client, model):
    prompt = ids(7, 20)
    asked = {"model": "tiny:greedy", "prompt": prompt, "max_tokens": 8, "logprobs": 2, "echo": True}
    reply = client.completions.create(**asked, extra_body={"return_token_ids": True, "ignore_eos": True})
    (choice,) = reply.choices
    text, said = [*prompt, *choice.token_ids], choice.logprobs
    world = naive_world(model, prompt[:1])
    rows = [logprobs for at in range(1, len(text)) for logprobs, _ in world([tuple(text[1:at])])]
    own = [float(row[token]) for row, token in zip(rows, text[1:], strict=True)]
    assert said.token_logprobs[0] is None and said.token_logprobs[1:] == pytest.approx(own, abs=1e-3)
    best = [float(np.max(row)) for row in rows]
    assert [max(top.values()) for top in said.top_logprobs[1:]] == pytest.approx(best, abs=1e-3)
    bare = client.chat.completions.create(model="tiny:wide", messages=CHAT, max_tokens=9, logprobs=True)
    assert [entry.top_logprobs for entry in bare.choices[0].logprobs.content] == [[]] * bare.usage.completion_tokens
    chat = {"model": "tiny:wide", "messages": CHAT, "max_tokens": 9, "logprobs": True, "top_logprobs": 3}
    content = client.chat.completions.create(**chat).choices[0].logprobs.content
    streamed = client.chat.completions.create(**chat, stream=True)
    assert [entry for chunk in streamed for entry in chunk.choices[0].logprobs.content] == content
    assert all(len(entry.top_logprobs) == 3 for entry in content)
    assert all(entry.logprob <= entry.top_logprobs[0].logprob + 1e-5 for entry in content)


# ---- clients that leave ----


def test_streams_that_are_dropped_leave_nothing_behind(whole, expected):
    async def drop_all(wave: Wave) -> None:
        async with httpx.AsyncClient(base_url=whole.url, timeout=PATIENCE) as client:
            await asyncio.gather(*(begin_and_leave(client, case, wave.held) for case in DROPPED))

    async def next_one(name: str) -> list[int]:
        base = f"{whole.url}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0, timeout=PATIENCE) as client:
            return await ask(client, CASES[name])

    programs, before_all = whole.compiled()[0], aborted(whole)
    memory, arrays = {}, {}
    for number in range(1, 51):
        wave = Wave(whole, rounds=10 + number % 4)
        asyncio.run(drop_all(wave))
        until(lambda: len(whole.service._cancelled) == len(DROPPED), "all clients are known to have left")
        before = Counter(whole.worker.rounds)
        wave.dropped.set()
        until(whole.settled, "all slots are free")
        assert 1 <= max((whole.worker.rounds - before).values()) <= 2
        if number in (10, 50):
            names = list(CASES) if number == 50 else list(CASES)[:3]
            assert {name: asyncio.run(next_one(name)) for name in names} == {name: expected[name] for name in names}
            until(whole.settled, "all slots are free")
            known = jax.tree.leaves(list(whole.worker.worker.reader.cache._entries.values()))
            memory[number], arrays[number] = resident(), len(jax.live_arrays()) - len(known)
    assert memory[50] - memory[10] < 16 * 2**20
    assert arrays[50] <= arrays[10]
    assert whole.compiled()[0] == programs
    assert aborted(whole) - before_all == 50 * len(DROPPED)


@pytest.mark.parametrize("seed", range(6))
def test_an_answer_does_not_depend_on_who_else_is_served(whole, expected, seed):
    """Seven others come in any order, at any time, and some of them leave early."""
    draw = random.Random(seed)
    names = draw.sample(list(CASES), len(CASES))
    stay = set(draw.sample(names, 4))

    async def go() -> dict[str, list[int]]:
        base = f"{whole.url}/v1"
        async with (
            openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0, timeout=PATIENCE) as client,
            httpx.AsyncClient(base_url=whole.url, timeout=PATIENCE) as raw,
        ):

            async def one(name: str, delay: float) -> list[int]:
                await asyncio.sleep(delay)
                if name in stay:
                    return await ask(client, CASES[name])
                await begin_and_leave(raw, DROPPED[draw.randrange(len(DROPPED))])
                return []

            answers = await asyncio.gather(*(one(name, draw.random() / 10) for name in names))
        return {name: answer for name, answer in zip(names, answers, strict=True) if name in stay}

    assert asyncio.run(go()) == {name: expected[name] for name in names if name in stay}


# ---- whatever is sent ----


def test_no_body_makes_the_server_fail(whole):
    """Bodies made from the schema, right and wrong ones, at every POST route."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", whole.app)
    statuses: Counter[int] = Counter()
    paths = schema.raw_schema["paths"].items()
    for path in sorted(path for path, methods in paths if "requestBody" in methods.get("post", {})):
        operation = schema[path]["POST"]
        for mode in schemathesis.GenerationMode:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(max_examples=12, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
            def send(case):
                response = case.call()
                statuses[response.status_code] += 1
                assert response.status_code in (200, 400, 404, 413, 415), (case.body, response.text)
                until(whole.settled, "the request is over")  # hypothesis minds beartype's dice in the other thread

            send()
    assert statuses[200] and statuses[400], statuses


# ---- the end ----


def test_nothing_was_compiled_for_requests(whole, compiling):
    """From ready until here; the tests themselves compiled in the main thread, and /metrics counts that too."""
    total, ready = whole.compiled()
    assert ready > 0 and total - ready == len(compiling) and set(compiling) <= {"MainThread"}


def test_an_engine_that_fails_tells_every_stream(checkpoint):
    with serving(checkpoint, PROFILES[:1], engine={"buckets": (128,)}) as server:

        def fail(profile: str) -> None:
            if server.worker.rounds[profile] >= 4:
                raise RuntimeError("the device is gone")

        server.worker.before_round = fail

        async def last_words(client: httpx.AsyncClient, number: int) -> list[str]:
            body = {"prompt": ids(number, 8), "max_tokens": 60, "stream": True, "ignore_eos": True}
            reply = await client.post("/v1/completions", json=body)
            return [line for line in reply.text.splitlines() if line][-2:]

        async def go() -> None:
            async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
                for error, done in await asyncio.gather(*(last_words(client, number) for number in range(3))):
                    assert json.loads(error.removeprefix("data: "))["error"]["type"], error
                    assert done == "data: [DONE]"
                assert server.service.wait(PATIENCE) and server.service.state == "failed"
                assert (await client.get("/health")).status_code == 503
                assert (await client.post("/v1/completions", json={"prompt": "a"})).status_code == 503

        asyncio.run(go())
        assert "the device is gone" in str(server.service.error)


# ---- thinking ----


@pytest.mark.parametrize("profile", [profile.name for profile in PROFILES])
def test_a_thinking_that_was_ended_goes_on_as_its_text_would(whole, client, profile):
    def say(prompt, tokens=20, **more):
        options = {"return_token_ids": True, "ignore_eos": True, **more}
        reply = client.completions.create(model=f"tiny:{profile}", prompt=prompt, max_tokens=tokens, extra_body=options)
        return reply.choices[0].prompt_token_ids, reply.choices[0].token_ids

    prompt, free = say("So, <think>")
    _, ended = say("So, <think>", max_thinking_tokens=5)
    ending = list(whole.opened.tokenizer.backend_tokenizer.encode("\n</think>\n\n", add_special_tokens=False).ids)
    assert ended[: 5 + len(ending)] == [*free[:5], *ending] and len(ended) == 20
    _, rest = say([*prompt, *ended[: 5 + len(ending)]], tokens=15 - len(ending))
    assert ended[5 + len(ending) :] == rest
