"""What many clients send to one of our servers at once, the careless and the broken ones too, and what became of each.

Most ask for an answer and wait for it. Others leave in the middle of a stream, leave because it takes too long, have
their request aborted by its name, or send what is no request. A request ends in one word; `FAILURES` are those that no
client may ever cause.
"""

import asyncio
import contextlib
import dataclasses
import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

CHAT = "/v1/chat/completions"
# of a hundred requests
SHARES = {
    "plain": 14,
    "sampled": 14,
    "search": 23,
    "two choices": 8,
    "left in its stream": 14,
    "bad body": 10,
    "impatient": 8,
    "rewards": 5,
    "aborted": 4,
}
FAILURES = {"500": "answered with 5xx", "hung": "hung", "no end": "ended without an end"}
WORDS = "how do I apologize to a friend for the rain in Spain tell me more about cats and eigenvalues please".split()
ROUTES = (CHAT, "/v1/completions", "/v1/rewards", "/tokenize", "/v1/generate", "/ck_generate")
HELLO = '{"messages":[{"role":"user","content":"a"}]'
BAD_BODIES = (
    *("{", '{"messages":[]}', '{"messages":[{"role":"x","content":"a"}]}', '{"a":NaN}', "[" * 2000, ""),
    *(
        f"{HELLO},{field}}}"
        for field in ('"n":99', '"temperature":-1', '"max_tokens":100000', '"model":"x"', '"n":1,"n":1')
    ),
)
NOT_UTF8 = b"\xff"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClientRequest:
    """One request, and how its client behaves."""

    kind: str
    body: bytes
    path: str = CHAT
    leaves_after: int | None = None  # bytes of the answer
    patience: float | None = None  # seconds
    aborts_after: float | None = None  # seconds


class Clients:
    """Draws requests to a server with these entries of /v1/models: the model itself, and a name for every profile."""

    def __init__(self, models: Sequence[Mapping[str, Any]], chance: random.Random):
        plain, *profiles = models
        self._chance = chance
        self._plain = str(plain["id"])
        self._streams = [str(entry["id"]) for entry in profiles if entry["search"]["streams"]]
        self._searches = self._streams[1:] or self._streams
        self._scores = any(entry["search"]["rewards"] for entry in profiles)

    def draw(self) -> ClientRequest:
        """The next request."""
        kinds = [kind for kind in SHARES if kind != "rewards" or self._scores]
        kind = self._chance.choices(kinds, [SHARES[kind] for kind in kinds])[0]
        return self._special[kind](kind) if kind in self._special else self._answer(kind, **self._fields(kind))

    @property
    def _special(self) -> dict[str, Callable[[str], ClientRequest]]:
        return {
            "bad body": self._bad,
            "rewards": self._rewards,
            "aborted": self._aborted,
            "left in its stream": self._left,
            "impatient": self._impatient,
        }

    def _fields(self, kind: str) -> dict[str, Any]:
        """What the body of an answer has beside the question."""
        chance = self._chance
        if kind == "sampled":
            return {
                "temperature": chance.choice([0.3, 0.8, 1.5]),
                "top_p": chance.choice([1.0, 0.9, 0.1]),
                "seed": chance.randrange(2**63),
                "logit_bias": {str(chance.randrange(256)): 5.0},
                "presence_penalty": chance.random(),
            }
        if kind == "two choices":
            return {"n": 2, "temperature": 1.0}
        return {"model": chance.choice(self._searches)} if kind == "search" else {}

    def _messages(self) -> list[dict[str, str]]:
        question = " ".join(self._chance.choices(WORDS, k=self._chance.randint(1, 120)))
        return [{"role": "user", "content": question}]

    def _answer(self, kind: str, **fields: Any) -> ClientRequest:
        body = {
            "model": self._plain,
            "messages": self._messages(),
            "max_tokens": self._chance.randint(1, 48),
            "stream": self._chance.random() < 0.6,
            **fields,
        }
        return ClientRequest(kind=kind, body=json.dumps(body).encode())

    def _long(self, kind: str, **fields: Any) -> ClientRequest:
        """Many tokens by any profile that streams."""
        return self._answer(kind, model=self._chance.choice(self._streams), max_tokens=200, **fields)

    def _left(self, kind: str) -> ClientRequest:
        return dataclasses.replace(self._long(kind, stream=True), leaves_after=self._chance.randint(0, 6000))

    def _impatient(self, kind: str) -> ClientRequest:
        return dataclasses.replace(self._answer(kind), patience=0.1 + 5 * self._chance.random())

    def _aborted(self, kind: str) -> ClientRequest:
        return dataclasses.replace(self._long(kind, ignore_eos=True), aborts_after=4 * self._chance.random())

    def _bad(self, kind: str) -> ClientRequest:
        body = self._chance.choice([*(text.encode() for text in BAD_BODIES), NOT_UTF8])
        return ClientRequest(kind=kind, path=self._chance.choice(ROUTES), body=body)

    def _rewards(self, kind: str) -> ClientRequest:
        body = {"messages": self._messages(), "response": "Fine " * self._chance.randint(1, 60)}
        return ClientRequest(kind=kind, path="/v1/rewards", body=json.dumps(body).encode())


async def send(client: httpx.AsyncClient, case: ClientRequest, name: str, patience: float) -> str:
    """Send one request as its client would; what became of it, in a word. It hangs after `patience` seconds."""
    headers = {"content-type": "application/json", "x-request-id": name}
    aborting = asyncio.create_task(_abort(client, name, case.aborts_after))
    try:
        async with asyncio.timeout(case.patience or patience):
            async with client.stream("POST", case.path, content=case.body, headers=headers) as response:
                got = b""
                async for part in response.aiter_raw():
                    got += part
                    if case.leaves_after is not None and len(got) > case.leaves_after:
                        return "left"
                return word_of(response.status_code, response.headers.get("content-type", ""), got)
    except TimeoutError:
        return "left" if case.patience else "hung"
    except httpx.HTTPError:
        return "no end"
    finally:
        aborting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await aborting


async def _abort(client: httpx.AsyncClient, name: str, after: float | None) -> None:
    if after is not None:
        await asyncio.sleep(after)
        with contextlib.suppress(httpx.HTTPError):
            await client.post("/abort_request", json={"request_id": name})


def word_of(status: int, kind: str, body: bytes) -> str:
    """What an answer says, in a word: "answered", "aborted", "refused", "out of time", "4xx", or one of FAILURES."""
    if status != 200:
        return _refusal(status)
    if kind.startswith("text/event-stream") and b"data:" in body:
        *events, last = [line[5:].strip() for line in body.decode().splitlines() if line.startswith("data:")]
        errors = [json.loads(event)["error"] for event in events if event.startswith('{"error"')]
        if last != "[DONE]":
            return "no end"
        if errors:
            return {"timeout": "out of time", "overloaded": "refused"}.get(errors[0]["code"], "500")
    return "aborted" if b'"finish_reason":"abort"' in body else "answered"


def _refusal(status: int) -> str:
    if status == 408:
        return "out of time"
    if status == 503:
        return "refused"
    return "4xx" if 400 <= status < 500 else "500"
