"""HTTP in front of the real service, with a toy for a device: nobody's answer is lost, and no place is."""

import asyncio

import pytest

from sla_jax.serving.backend import Backend
from tests.serving.asgi import Caller, call
from tests.serving.fake import PROFILES, fake_app
from tests.serving.toy_house import House
from tests.serving.toy_worker import answer

TEXT = "/v1/completions"
SLOTS = {profile.name: profile.slots for profile in PROFILES}


def test_the_service_is_what_http_asks_for():
    with House(slots=SLOTS) as house:
        assert isinstance(house.service, Backend)


def test_many_at_once_get_their_own_answers():
    with House(slots=SLOTS) as house:
        app = fake_app(house.service)

        async def go() -> list[bytes]:
            bodies = [
                {"prompt": [5, i], "max_tokens": 5 + i, "model": f"tiny:{name}", "n": 2, "return_token_ids": True}
                for i, name in enumerate([*SLOTS] * 3)
            ]
            clients = [Caller(app, TEXT, body) for body in bodies]
            await asyncio.gather(*(client.task for client in clients))
            return [(await client.next(), await client.next())[1]["body"] for client in clients]

        for i, body in enumerate(asyncio.run(go())):
            ids = f'"token_ids":{list(answer((5, i), 5 + i))}'.replace(" ", "").encode()
            assert body.count(ids) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_slot_is_free_again_when_its_client_leaves(stream):
    with House(slots=SLOTS) as house:
        app = fake_app(house.service)
        house.worker.gate.shut()

        async def go() -> None:
            client = Caller(app, TEXT, {"prompt": "a", "max_tokens": 200, "stream": stream})
            await asyncio.to_thread(house.worker.gate.await_somebody)
            await client.leave()

        asyncio.run(go())
        house.worker.gate.open()
        assert call(app, TEXT, {"prompt": [5], "max_tokens": 2}).status_code == 200
        assert house.worker.calls["free"] == 1
    assert house.worker.seats == {name: {} for name in SLOTS}


def test_more_than_the_queue_holds_is_refused_and_the_rest_is_answered():
    with House(slots=SLOTS, queue=3) as house:
        app = fake_app(house.service)
        house.worker.gate.shut()

        async def go() -> list[int]:
            first = Caller(app, TEXT, {"prompt": "a", "n": 3})
            await asyncio.to_thread(house.worker.gate.await_somebody)
            clients = [Caller(app, TEXT, {"prompt": "a"}) for _ in range(9)]
            await asyncio.wait({client.task for client in clients}, return_when=asyncio.FIRST_COMPLETED)
            house.worker.gate.open()
            await asyncio.gather(first.task, *(client.task for client in clients))
            return [(await client.next())["status"] for client in [first, *clients]]

        statuses = asyncio.run(go())
    assert set(statuses) == {200, 503}
    assert statuses[0] == 200
    assert statuses.count(503) >= 1


def test_rewards_and_echo_go_through_inspections():
    with House(slots=SLOTS) as house:
        app = fake_app(house.service)
        reply = call(app, "/v1/rewards", {"prompt": [5], "token_ids": [6, 7]}).json()
        assert reply["rewards"] == [0.25, 0.25]
        body = {"prompt": [5, 6, 7], "max_tokens": 0, "echo": True, "logprobs": 1}
        assert call(app, TEXT, body).json()["choices"][0]["logprobs"]["token_logprobs"] == [None, -1.0, -1.0]


def test_an_engine_that_fails_ends_answers_with_an_error():
    with House(slots=SLOTS) as house:
        app = fake_app(house.service)
        house.worker.failures["round"] = RuntimeError("the device is gone")
        response = call(app, TEXT, {"prompt": "a"})
        assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")
        assert call(app, "/health").status_code == 503
        assert call(app, TEXT, {"prompt": "a"}).status_code == 503
