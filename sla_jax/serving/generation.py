"""The routes that run the model: completions, chats, rewards."""

import functools
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Send

from sla_jax.serving.bodies import BodyRoute
from sla_jax.serving.errors import bad
from sla_jax.serving.gateway import Gateway, Run
from sla_jax.serving.messages import Chat, turns_of
from sla_jax.serving.openai import Exchange, finite, usage_of
from sla_jax.serving.orders import Order, chat_order, choose, completion_order
from sla_jax.serving.replies import ChatReply, CompletionReply, RewardsReply
from sla_jax.serving.schema import ChatBody, CompletionBody, RewardsBody
from sla_jax.serving.wire import Work, send_events, send_json

STREAM: dict[str, Any] = {"text/event-stream": {}}  # tools do not agree on what a schema here describes


def router(gateway: Gateway) -> APIRouter:
    """POST /v1/completions, /v1/chat/completions, /v1/rewards."""
    routes = APIRouter(tags=["OpenAI"], route_class=BodyRoute)

    @routes.post("/v1/completions", responses={200: {"model": CompletionReply, "content": STREAM}})
    async def completions(body: CompletionBody, request: Request) -> Response:
        return _answering(gateway, completion_order(gateway, body), request, body.user, chat=False)

    @routes.post("/v1/chat/completions", responses={200: {"model": ChatReply, "content": STREAM}})
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        return _answering(gateway, chat_order(gateway, body), request, body.user, chat=True)

    @routes.post("/v1/rewards", responses={200: {"model": RewardsReply}})
    async def rewards(body: RewardsBody, request: Request) -> Response:
        """The reward of every token of a response: its own, not the prompt's. One pass over both."""
        _check_rewards(gateway, body)

        async def work(send: Send) -> None:
            await send_json(send, await _rewards(gateway, body, request.state.request_id))

        return Work(work)

    return routes


# ---- completions and chats ----


def _answering(gateway: Gateway, order: Order, request: Request, user: str | None, *, chat: bool) -> Response:
    exchange = Exchange(gateway, order, request.state.request_id, chat=chat)
    note = request.state.note
    if user is not None:
        note["user"] = user

    async def work(send: Send) -> None:
        try:
            async with exchange.opened() as run:
                if order.stream:
                    await send_events(send, exchange.stream(run), gateway.config.keep_alive)
                else:
                    await send_json(send, await exchange.reply(run))
        finally:
            _write_down(gateway, note, exchange)

    return Work(work)


def _write_down(gateway: Gateway, note: dict[str, Any], exchange: Exchange) -> None:
    """What the access log says of an answer; what was asked and answered only if that is wanted and it was read."""
    usage = exchange.usage["usage"]
    note["profile"] = exchange.order.profile.name
    note["tokens"] = (usage["prompt_tokens"], usage["completion_tokens"])
    if gateway.config.log_prompts and usage["prompt_tokens"]:
        turns = functools.partial(turns_of, gateway.tokenizer)
        note["prompts"] = [turns(one.messages) if isinstance(one, Chat) else one for one in exchange.order.prompts]
        note["answers"] = [text for _, text in sorted(exchange.texts.items())]


# ---- rewards ----


def _check_rewards(gateway: Gateway, body: RewardsBody) -> None:
    if not gateway.model.has_channel:
        raise bad("the model has no reward channel, so there are no rewards.", "model")
    for one, other in (("prompt", "messages"), ("response", "token_ids")):
        if (getattr(body, one) is None) == (getattr(body, other) is None):
            raise bad(f"give {one} or {other}, one of them and not both.", one)


async def _rewards(gateway: Gateway, body: RewardsBody, request_id: str) -> dict[str, Any]:
    profile = choose(gateway.model, body.model, None)
    with gateway.reserve(profile, tokens=0) as places:
        prompt, response = await _texts(gateway, body, profile.template)
        _check_fits(gateway, len(prompt) + len(response), "response" if body.token_ids is None else "token_ids")
        tokens = (*prompt, *response)
        async with Run(gateway, request_id, places) as run:
            seen = await run.inspect(tokens)
    values = [finite(reward) for reward in (seen.rewards or [])[len(prompt) :]]
    known = [value for value in values if value is not None]
    return {
        "object": "rewards",
        "model": body.model or gateway.model.name,
        "rewards": values,
        "token_ids": list(response),
        "mean": sum(known) / len(known) if known else None,
        "last": values[-1] if values else None,
        **usage_of(len(tokens), 0, explored=len(tokens)),
    }


def _check_fits(gateway: Gateway, count: int, param: str) -> None:
    if count > gateway.model.context:
        raise bad(
            f"prompt and response have {count} tokens; together they may have {gateway.model.context} here.",
            param,
            "context_length_exceeded",
        )


async def _texts(
    gateway: Gateway, body: RewardsBody, defaults: Mapping[str, Any]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of the prompt and of the response, neither of them empty. Chats close the response as a turn.

    `defaults`: the profile's variables of the chat template.
    """
    variables = {**defaults, **body.chat_template_kwargs}
    chat = Chat(body.messages, variables=variables) if body.messages else None
    prompts = gateway.prompts
    prompt = await prompts.read(chat or body.prompt or "", param="messages" if chat else "prompt")
    if body.token_ids is not None:
        _check_fits(gateway, len(prompt.tokens) + len(body.token_ids), "token_ids")
        prompts.check_tokens(body.token_ids, "token_ids")
        return prompt.tokens, tuple(body.token_ids)
    text = body.response or ""
    if chat:
        return await prompts.read_response(chat, text)
    return prompt.tokens, await prompts.read_behind(prompt, text)
