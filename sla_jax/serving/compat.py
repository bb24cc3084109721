"""Two older protocols in front of the same server: JetStream's HTTP API, and the original SLA server's.

JetStream (google-jetstream 0.2.2, entrypoints/http): `POST /v1/generate` answers with JSON objects one behind the
other, as protobuf prints a DecodeResponse: two spaces of indent, empty fields left out.

The original SLA server (a vLLM 0.2 api_server): JSON objects each ended by a NUL byte when streamed. A field of its
SamplingParams that we do not honour may only have the value that asks for nothing. Its defaults are kept (temperature
1, 16 tokens), and so is that max_tokens is cut to what the context leaves. Its public client reads `all_info` of every
piece, so that the key is always there. Its search takes the best tokens at any temperature.

Errors are OpenAI's error objects; after the first byte they are one more object of the stream.
"""

import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Send

from sla_jax.decode.greedy import Greedy
from sla_jax.decode.sla import SLA
from sla_jax.serving.answer import Piece
from sla_jax.serving.bodies import BodyRoute
from sla_jax.serving.compat_bodies import JetStreamBody, OriginalBody, RewardBody, RewardsReply, TextReply, TextsReply
from sla_jax.serving.errors import ApiError, bad
from sla_jax.serving.gateway import Gateway, Run
from sla_jax.serving.openai import finite
from sla_jax.serving.orders import describe
from sla_jax.serving.settings import Profile
from sla_jax.serving.wire import Work, send_json

Pieces = AsyncIterator[Piece]
STRING = {"schema": {"type": "string"}}
PLAIN = {"application/json": {}, "text/plain": STRING}
EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}, "description": "Streamed."}}


def router(gateway: Gateway) -> APIRouter:
    """The routes of both."""
    routes = APIRouter(route_class=BodyRoute)
    jetstream_routes(routes, gateway)
    original_routes(routes, gateway)
    return routes


def jetstream_routes(routes: APIRouter, gateway: Gateway) -> None:
    """GET /, POST /v1/generate, GET /v1/health."""

    @routes.get("/", tags=["JetStream"])
    async def root() -> Response:
        return _spread({"message": "JetStream HTTP Server"})

    @routes.get("/v1/health", tags=["JetStream"])
    async def health() -> Response:
        return _spread({"is_live": str(gateway.service.state in ("ready", "draining"))})

    @routes.post("/v1/generate", tags=["JetStream"], response_class=Response, responses=EVENTS)
    async def generate(body: JetStreamBody, request: Request) -> Response:
        prompt, ends = body.prompt(), gateway.model.end_tokens

        async def work(send: Send) -> None:
            async with gateway.answer(prompt, max_tokens=body.max_tokens, request_id=request.state.request_id) as run:
                pieces = noted(run, gateway, request, gateway.profile(None), prompt)
                objects = jetstream_objects(pieces, ends, isinstance(prompt, str))
                await send_objects(send, objects, "text/event-stream; charset=utf-8")

        return Work(work)


async def jetstream_objects(pieces: Pieces, ends: Sequence[int], with_text: bool) -> AsyncIterator[str]:
    """DecodeResponses as JSON."""
    async for text, tokens in jetstream_samples(pieces, ends, with_text):
        sample = {"text": text, "tokenIds": tokens}
        filled = {name: value for name, value in sample.items() if value}
        yield json.dumps({"streamContent": {"samples": [filled]}}, indent=2)


async def jetstream_samples(
    pieces: Pieces, ends: Sequence[int], with_text: bool
) -> AsyncIterator[tuple[str, list[int]]]:
    """(text, token ids) of every piece that says something, of one at least. JetStream does not tell the end token, nor
    any text to a client that sent tokens."""
    said = False
    async for piece in pieces:
        tokens = [token for token in piece.tokens if token not in ends]
        text = piece.text if with_text else ""
        if text or tokens or (piece.finish and not said):
            said = True
            yield text, tokens


def original_routes(routes: APIRouter, gateway: Gateway) -> None:
    """POST /generate, /ck_generate, /ck_check_reward_score."""

    @routes.post("/generate", tags=["original SLA"], responses={200: {"model": TextsReply, "content": PLAIN}})
    async def generate(body: OriginalBody, request: Request) -> Response:
        if body.return_all_info:
            raise bad("return_all_info belongs to /ck_generate.", "return_all_info")
        body.check()

        async def work(send: Send) -> None:
            async with original_answer(gateway, body, request) as pieces:
                if body.stream:
                    await send_objects(send, whole_texts(pieces, body), "text/plain; charset=utf-8", end="\0")
                else:
                    await send_json(send, {"text": [body.prompt + text for text in await best_texts(pieces, body)]})

        return Work(work)

    @routes.post("/ck_generate", tags=["original SLA"], responses={200: {"model": TextReply, "content": PLAIN}})
    async def ck_generate(body: OriginalBody, request: Request) -> Response:
        if body.drawn != 1:
            raise bad("n and best_of have to be 1 here; /generate gives several answers.", "n")
        if body.return_all_info and not body.stream:
            raise bad("return_all_info needs stream: true.", "return_all_info")
        body.check()

        async def work(send: Send) -> None:
            async with original_answer(gateway, body, request) as pieces:
                if body.stream:
                    texts = new_texts(pieces, body.return_all_info)
                    await send_objects(send, texts, "text/plain; charset=utf-8", end="\0")
                else:
                    await send_json(send, {"text": (await best_texts(pieces, body))[0]})

        return Work(work)

    @routes.post("/ck_check_reward_score", tags=["original SLA"], responses={200: {"model": RewardsReply}})
    async def check_reward_score(body: RewardBody, request: Request) -> Response:
        if not gateway.model.has_channel:
            raise bad("this model has no reward channel, so there are no rewards.")

        async def work(send: Send) -> None:
            rewards = await response_rewards(gateway, body, request.state.request_id)
            await send_json(send, {"positive_logits": rewards})

        return Work(work)


@contextlib.asynccontextmanager
async def original_answer(gateway: Gateway, body: OriginalBody, request: Request) -> AsyncIterator[Pieces]:
    """Run what a body asks for, as many answers as it draws. Raises ApiError."""
    most = gateway.config.limits.choices
    if body.drawn > most:
        raise bad(f"{body.drawn} answers are asked for; this server makes at most {most} of one prompt.", "n")
    profile = profile_for(body, gateway.model.profiles)
    with gateway.reserve(profile, body.drawn, tokens=body.max_tokens) as places:
        read = await gateway.prompts.read(body.prompt)
        limit = min(body.max_tokens, gateway.model.context - len(read.tokens))
        async with Run(gateway, request.state.request_id, places) as run:
            for _ in range(body.drawn):
                sampling = body.sampling(secrets.randbits(63))
                wanted = gateway.request(
                    read,
                    profile,
                    limit,
                    sampling=sampling,
                    ignore_eos=body.ignore_eos,
                    stop_tokens=body.stop_token_ids,
                )
                run.submit(
                    wanted,
                    body.stops,
                    continues=read.continues,
                    stop_tokens=body.stop_token_ids,
                    skip_special_tokens=body.skip_special_tokens,
                )
            yield noted(run, gateway, request, profile, body.prompt)


def profile_for(body: OriginalBody, profiles: Sequence[Profile]) -> Profile:
    """The declared profile that gives what ck_n, ck_k and ck_d ask for. Raises ApiError with the list."""
    plain = not body.searches or body.ck_n == 1  # one branch is greedy decoding, whatever its chunks
    for profile in profiles:
        decoder = profile.decoder()
        if plain and isinstance(decoder, Greedy) or not plain and isinstance(decoder, SLA) and _asked(body, decoder):
            return profile
    offered = "; ".join(map(describe, profiles))
    wanted = "plain decoding" if plain else f"ck_n={body.ck_n}, ck_k={body.ck_k}, ck_d={body.ck_d}"
    raise bad(f"no search profile of this server is {wanted}; it has: {offered}.", "ck_n")


def _asked(body: OriginalBody, decoder: SLA) -> bool:
    """Whether it is the plain search of that width, chunk and depth."""
    sizes = (decoder.width, decoder.chunk, decoder.depth)
    plain = SLA(width=decoder.width, chunk=decoder.chunk, depth=decoder.depth)
    return decoder == plain and sizes == (body.ck_n, body.ck_k, body.ck_d)


async def whole_texts(pieces: Pieces, body: OriginalBody) -> AsyncIterator[str]:
    """Prompt and answers so far, again and again."""
    texts = [body.prompt] * body.n
    async for piece in pieces:
        texts[piece.index] += piece.text
        if piece.text or piece.finish:
            yield json.dumps({"text": texts})


async def new_texts(pieces: Pieces, told: bool) -> AsyncIterator[str]:
    """Every piece of text; `all_info` is null unless it is wanted."""
    async for piece in pieces:
        if piece.text:
            yield json.dumps({"new_token": piece.text, "all_info": all_info(piece) if told else None})


def all_info(piece: Piece) -> dict[str, Any]:
    """What the search thought of a piece."""
    event = piece.event
    return {
        "round": event.round,
        "token_ids": event.tokens,
        "rewards": [finite(reward) for reward in event.rewards],
        "score": finite(event.score),
        "margin": finite(event.margin),
        "alive": event.alive,
        "explored": event.explored,
    }


async def best_texts(pieces: Pieces, body: OriginalBody) -> list[str]:
    """The n most probable answers, best first."""
    texts, logprobs = [""] * body.drawn, [0.0] * body.drawn
    async for piece in pieces:
        texts[piece.index] += piece.text
        logprobs[piece.index] += sum(piece.logprobs)
    order = sorted(range(body.drawn), key=lambda index: -logprobs[index])
    return [texts[index] for index in order[: body.n]]


async def response_rewards(gateway: Gateway, body: RewardBody, request_id: str) -> list[float | None]:
    """One reward for every token of the response. Raises ApiError."""
    with gateway.reserve(gateway.profile(None), tokens=0) as places:
        prompt = await gateway.prompts.read(body.prompt)
        tokens = prompt.tokens + await gateway.prompts.read_behind(prompt, body.response)
        if len(tokens) > gateway.model.context:
            raise bad(
                f"prompt and response have {len(tokens)} tokens; this model reads at most {gateway.model.context}.",
                "response",
                "context_length_exceeded",
            )
        async with Run(gateway, request_id, places) as run:
            inspected = await run.inspect(tokens)
    assert inspected.rewards is not None, "a model with a channel gives rewards"
    return [finite(reward) for reward in inspected.rewards[len(prompt.tokens) :]]


async def noted(
    run: Run, gateway: Gateway, request: Request, profile: Profile, prompt: str | Sequence[int]
) -> AsyncIterator[Piece]:
    """The same pieces; the access log gets to know of them, and of what was said only if that is wanted."""
    note, texts, told = request.state.note, dict[int, str](), gateway.config.log_prompts
    note["profile"] = profile.name
    if told:
        note["prompts"] = [prompt]
    async for piece in run:
        texts[piece.index] = texts.get(piece.index, "") + piece.text
        if told:
            note["answers"] = [text for _, text in sorted(texts.items())]
        yield piece


async def send_objects(send: Send, objects: AsyncIterator[str], kind: str, *, end: str = "") -> None:
    """A stream of JSON objects, each followed by `end`; an error is the last of them."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind.encode())]})

    async def say(text: str) -> None:
        await send({"type": "http.response.body", "body": (text + end).encode(), "more_body": True})

    try:
        async for piece in objects:
            await say(piece)
    except ApiError as error:
        await say(json.dumps(error.body))
    await send({"type": "http.response.body", "body": b""})


def _spread(fields: dict[str, str]) -> Response:
    """JSON as JetStream's server writes it."""
    return Response(json.dumps(fields, indent=4), media_type="application/json")
