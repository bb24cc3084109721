"""The routes around the model: what is served, whether it is well, tokens and text, ending a request."""

import asyncio
import dataclasses

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from sla_jax.serving.errors import bad
from sla_jax.serving.gateway import Gateway
from sla_jax.serving.metrics import Metrics
from sla_jax.serving.orders import plain_messages, profile_of
from sla_jax.serving.replies import (
    AbortReply,
    DetokenizeReply,
    ModelEntry,
    ModelsReply,
    SearchEntry,
    StatusReply,
    TokenizeReply,
    VersionReply,
)
from sla_jax.serving.schema import AbortBody, DetokenizeBody, TokenizeBody
from sla_jax.serving.settings import ModelInfo, Profile

PLAIN = {"text/plain": {"schema": {"type": "string"}}}


def router(gateway: Gateway, metrics: Metrics, version: str) -> APIRouter:
    """GET /v1/models, /health, /ready, /version, /metrics; POST /tokenize, /detokenize, /abort_request."""
    routes = APIRouter()
    _models(routes, gateway)
    _states(routes, gateway)
    _tokens(routes, gateway)

    @routes.get("/version")
    async def get_version() -> VersionReply:
        return VersionReply(version=version)

    @routes.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": PLAIN, "description": "Prometheus' text format."}},
    )
    async def get_metrics() -> Response:
        body, kind = metrics.render()
        return Response(body, headers={"content-type": kind})

    @routes.post("/abort_request")
    async def abort_request(body: AbortBody) -> AbortReply:
        return AbortReply(request_id=body.request_id, aborted=gateway.abort(body.request_id))

    return routes


def _models(routes: APIRouter, gateway: Gateway) -> None:
    model = gateway.model
    searches = [None, *(_search(model, profile) for profile in model.profiles)]
    names = [model.name if search is None else f"{model.name}:{search.profile}" for search in searches]
    entries = [
        ModelEntry(
            id=name, object="model", created=model.created, owned_by="sla-jax", channel=model.channel, search=search
        )
        for name, search in zip(names, searches, strict=True)
    ]

    @routes.get("/v1/models", tags=["OpenAI"])
    async def models() -> ModelsReply:
        return ModelsReply(object="list", data=entries)

    @routes.get("/v1/models/{name:path}", tags=["OpenAI"])
    async def model_entry(name: str) -> ModelEntry:
        profile_of(model, name)
        return entries[names.index(name)]


def _search(model: ModelInfo, profile: Profile) -> SearchEntry:
    return SearchEntry(
        profile=profile.name,
        method=profile.method,
        options=dataclasses.asdict(profile.decoder()),
        streams=profile.streams,
        traces=profile.traces,
        rewards=model.has_channel and profile.method != "beam",
        top_logprobs=model.top_logprobs if profile.streams else 0,
    )


def _states(routes: APIRouter, gateway: Gateway) -> None:
    down = {"model": StatusReply, "description": "Not so."}

    @routes.get("/health", responses={200: {"model": StatusReply}, 503: down})
    async def health() -> Response:
        """Alive: 503 once the engine has failed or the server has stopped."""
        state = gateway.service.state
        return JSONResponse({"status": state}, 503 if state in ("failed", "stopped") else 200)

    @routes.get("/ready", responses={200: {"model": StatusReply}, 503: down})
    async def ready() -> Response:
        """Takes requests."""
        state = gateway.service.state
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)


def _tokens(routes: APIRouter, gateway: Gateway) -> None:
    @routes.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> TokenizeReply:
        if (body.prompt is None) == (body.messages is None):
            raise bad("give prompt or messages, one of them and not both.", "prompt")
        template = gateway.profile(profile_of(gateway.model, body.model)).template
        chat = None if body.messages is None else body.chat(plain_messages(gateway, body.messages), template)
        read = await asyncio.to_thread(gateway.encode, chat or body.prompt or "", body.add_special_tokens is not False)
        return TokenizeReply(tokens=list(read.tokens), count=len(read.tokens), max_model_len=gateway.model.context)

    @routes.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> DetokenizeReply:
        profile_of(gateway.model, body.model)
        gateway.check_tokens(body.tokens, "tokens")
        decode = gateway.tokenizer.backend_tokenizer.decode
        text = await asyncio.to_thread(decode, body.tokens, skip_special_tokens=False)
        return DetokenizeReply(prompt=text)
