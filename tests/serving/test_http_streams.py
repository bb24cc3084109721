"""Clients that stall, hang up or abort; silence on the line; the text of an answer token by token."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sla_jax.serving.answer import Answer
from sla_jax.serving.gateway import Gateway
from sla_jax.serving.request import Event
from sla_jax.serving.settings import ServeConfig
from tests.serving.asgi import WAIT, Caller, call
from tests.serving.fake import ANSWER, MODEL, PROFILES, TOKENIZER, FakeService, decode, encode, fake_app

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


async def stalled(service: FakeService) -> None:
    """Until the service has begun to answer, and says no more."""
    assert await asyncio.to_thread(service.began.wait, WAIT)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_who_hangs_up_is_cancelled_at_once(stream, n):
    service = FakeService(stall=True)
    app = fake_app(service)

    async def go() -> None:
        client = Caller(app, TEXT, {"prompt": "a", "n": n, "stream": stream}, {"x-request-id": "mine"})
        await stalled(service)
        await client.leave()

    asyncio.run(go())
    assert sorted(service.cancelled) == [f"mine-{i}" for i in range(n)]
    assert service.reserved == 0
    for thread in service.threads:
        thread.join(WAIT)
        assert not thread.is_alive()


def test_a_server_that_stops_cancels_too():
    service = FakeService(stall=True)
    app = fake_app(service)

    async def go() -> None:
        client = Caller(app, TEXT, {"prompt": "a", "stream": True})
        await stalled(service)
        client.task.cancel()
        await asyncio.wait({client.task}, timeout=WAIT)
        assert client.task.cancelled()

    asyncio.run(go())
    assert len(service.cancelled) == 1


def test_who_leaves_before_the_body_has_come_costs_nothing():
    service = FakeService()
    app = fake_app(service)

    async def go() -> int:
        client = Caller(app, TEXT, None)
        await client.leave()
        return client.messages.qsize()

    assert asyncio.run(go()) == 0
    assert service.requests == []


def test_silence_is_filled_with_comments():
    service = FakeService(stall=True)
    app = fake_app(service, keep_alive=0.01)

    async def go() -> bytes:
        client = Caller(app, TEXT, {"prompt": "a", "max_tokens": 3, "stream": True})
        start = await client.next()
        assert start["status"] == 200
        body = b""
        while body.count(b": keep-alive\n\n") < 3:
            body += (await client.next())["body"]
        service.go.set()
        await asyncio.wait_for(client.task, WAIT)
        while not client.messages.empty():
            body += client.messages.get_nowait().get("body", b"")
        return body

    assert asyncio.run(go()).endswith(b"data: [DONE]\n\n")


def test_abort_request_ends_an_answer_with_what_it_has():
    service = FakeService(stall=True)
    app = fake_app(service)

    async def go() -> list:
        client = Caller(app, CHAT, {"messages": [{"role": "user", "content": "a"}]}, {"x-request-id": "mine"})
        await stalled(service)
        other = Caller(app, "/abort_request", {"request_id": "mine"})
        await asyncio.wait_for(asyncio.gather(client.task, other.task), WAIT)
        return [(await caller.next(), await caller.next()) for caller in (client, other)]

    (start, answer), (_, aborted) = asyncio.run(go())
    assert (b"x-request-id", b"mine") in start["headers"]
    assert b'"finish_reason":"abort"' in answer["body"]
    assert b'"content":"The"' in answer["body"]
    assert b'"aborted":true' in aborted["body"]
    assert call(app, "/abort_request", {"request_id": "mine"}).json() == {"request_id": "mine", "aborted": False}


def test_an_inspection_is_cancelled_with_its_request():
    service = FakeService(stall=True)
    app = fake_app(service)

    async def go() -> None:
        client = Caller(app, "/v1/rewards", {"prompt": "a", "response": "b"}, {"x-request-id": "mine"})
        await stalled(service)
        await client.leave()

    asyncio.run(go())
    assert service.cancelled == ["mine-0"]


def test_an_inspection_that_is_aborted_is_no_mistake_of_ours():
    service = FakeService(stall=True)
    app = fake_app(service)

    async def go() -> tuple:
        client = Caller(app, "/v1/rewards", {"prompt": "a", "response": "b"}, {"x-request-id": "mine"})
        await stalled(service)
        other = Caller(app, "/abort_request", {"request_id": "mine"})
        await asyncio.wait_for(asyncio.gather(client.task, other.task), WAIT)
        return await client.next(), await client.next()

    start, answer = asyncio.run(go())
    assert start["status"] == 400
    assert b'"code": "aborted"' in answer["body"]


def test_two_clients_may_choose_one_id():
    service = FakeService(stall=True)
    app = fake_app(service)

    async def go() -> None:
        clients = [Caller(app, TEXT, {"prompt": "a"}, {"x-request-id": "same"}) for _ in range(2)]
        while len(service.requests) < 2:
            await asyncio.sleep(0)
        await clients[0].leave()
        assert len(service.cancelled) == 1
        service.go.set()
        assert (await clients[1].next())["status"] == 200
        assert b'"finish_reason":"length"' in (await clients[1].next())["body"]

    asyncio.run(asyncio.wait_for(go(), WAIT))
    assert len({request.id for request in service.requests}) == 2


def test_the_gateway_answers_one_request_for_other_protocols():
    service = FakeService()
    config = ServeConfig(checkpoint="tiny", profiles=PROFILES)
    gateway = Gateway(service, MODEL, TOKENIZER, config)

    async def go() -> list:
        async with gateway.answer("a", profile="sla", max_tokens=200, stops=["42"]) as run:
            return [piece async for piece in run]

    pieces = asyncio.run(go())
    assert "".join(piece.text for piece in pieces) == ANSWER.split("42")[0]
    assert [piece.finish for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert gateway.runs == {}
    assert service.reserved == 0


# ---- the text of an answer ----


@given(
    text=st.text(st.sampled_from("ab東👍 "), max_size=30),
    stops=st.lists(st.text(st.sampled_from("ab東👍 "), min_size=1, max_size=3), max_size=3),
    cuts=st.lists(st.integers(1, 5)),
)
def test_an_answer_is_the_same_however_its_tokens_are_bundled(text, stops, cuts):
    tokens = encode(text)
    pieces = read(tokens, stops, cuts)
    assert pieces == read(tokens, stops, [])
    length, said, finish = pieces
    at = [decode(tokens).find(stop) for stop in stops if stop in decode(tokens)]
    assert finish == ("stop" if at else "length")
    assert not at or not any(stop in said for stop in stops)
    assert decode(tokens).startswith(said)
    assert at or (said, length) == (decode(tokens), len(tokens))


def read(tokens: list[int], stops: list[str], cuts: list[int]) -> tuple[int, str, str | None]:
    """(tokens taken, text, finish) of an answer that comes in bundles of these sizes, then in one."""
    answer, events, start = Answer(TOKENIZER, 0, stops), [], 0
    for size in cuts:
        events.append(Event(tokens=tokens[start : start + size]))
        start += size
    events.append(Event(tokens=tokens[start:], finish="length"))
    pieces = []
    for event in events:
        pieces.append(answer.read(event))
        if pieces[-1].finish:
            break
    return sum(len(piece.tokens) for piece in pieces), "".join(piece.text for piece in pieces), pieces[-1].finish


def test_half_a_character_at_the_end_is_said_as_such():
    [first, *_] = encode("👍")
    piece = Answer(TOKENIZER).read(Event(tokens=[first], finish="length"))
    assert piece.text == "\ufffd"


def test_repeated_tokens_are_said_once():
    answer = Answer(TOKENIZER)
    one, two, three = encode("a b c")
    first = answer.read(Event(tokens=[one], logprobs=[-1.0], tops=[[]]))
    second = answer.read(
        Event(tokens=[one, two, three], repeated=1, logprobs=[-1.0, -2.0, -3.0], tops=[[]] * 3, round=0)
    )
    assert (first.tokens, second.tokens) == ([one], [two, three])
    assert (second.logprobs, second.event.tokens) == ([-2.0, -3.0], [one, two, three])
    assert first.text + second.text == "a b c"
    assert second.offsets == [1, 3]
