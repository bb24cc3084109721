"""The routes around the model: what is served, whether it is well, tokens and text, ending a request."""

import dataclasses
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response
from starlette.types import Send

from sla_jax.errors import shortened
from sla_jax.serving.bodies import BodyRoute
from sla_jax.serving.errors import bad
from sla_jax.serving.gateway import Gateway
from sla_jax.serving.metrics import Metrics
from sla_jax.serving.orders import profile_of
from sla_jax.serving.replies import (
    AbortReply,
    AddedToken,
    DetokenizeReply,
    ModelEntry,
    ModelsReply,
    SearchEntry,
    StatusReply,
    TokenizeReply,
    TokenizerInfoReply,
    VersionReply,
)
from sla_jax.serving.schema import AbortBody, DetokenizeBody, TokenizeBody
from sla_jax.serving.settings import ModelInfo, Profile
from sla_jax.serving.wire import Work, send_body

PLAIN = {"text/plain": {"schema": {"type": "string"}}}


def router(gateway: Gateway, metrics: Metrics, version: str) -> APIRouter:
    """GET /v1/models, /health, /ready, /ping, /version, /metrics, /tokenizer_info; POST /ping, /tokenize, /detokenize,
    /abort_request."""
    routes = APIRouter(route_class=BodyRoute)
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
        return AbortReply(request_id=shortened(body.request_id, 128), aborted=gateway.abort(body.request_id))

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
    @routes.get("/ping", responses={200: {"model": StatusReply}, 503: down})
    @routes.post("/ping", responses={200: {"model": StatusReply}, 503: down})
    async def health() -> Response:
        """Alive: 503 once the engine has failed or the server has stopped. SageMaker asks /ping."""
        state = gateway.service.state
        return JSONResponse({"status": state}, 503 if state in ("failed", "stopped") else 200)

    @routes.get("/ready", responses={200: {"model": StatusReply}, 503: down})
    async def ready() -> Response:
        """Takes requests."""
        state = gateway.service.state
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)


def _tokens(routes: APIRouter, gateway: Gateway) -> None:
    @routes.get("/tokenizer_info")
    async def tokenizer_info() -> TokenizerInfoReply:
        """With this, /tokenize and /detokenize a client has the server's tokenizer."""
        tokenizer = gateway.tokenizer
        names = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
        return TokenizerInfoReply(
            tokenizer_class="PreTrainedTokenizerFast",  # reads any tokenizer.json, in every release of transformers
            model_max_length=gateway.model.context,
            chat_template=tokenizer.chat_template,
            added_tokens_decoder={str(i): _added(token) for i, token in tokenizer.added_tokens_decoder.items()},
            **{f"{name}_token": getattr(tokenizer, f"{name}_token") for name in names},
        )

    @routes.post("/tokenize", responses={200: {"model": TokenizeReply}})
    async def tokenize(body: TokenizeBody) -> Response:
        if (body.prompt is None) == (body.messages is None):
            raise bad("give prompt or messages, one of them and not both.", "prompt")
        template = gateway.profile(profile_of(gateway.model, body.model)).template
        chat = None if body.messages is None else body.chat(body.messages, template)
        special, param = body.add_special_tokens is not False, "messages" if chat else "prompt"

        async def work(send: Send) -> None:
            found = await gateway.prompts.tokenize(chat or body.prompt or "", special=special, param=param)
            counts = found.json, found.length, gateway.model.context
            await send_body(send, b'{"tokens":%s,"count":%d,"max_model_len":%d}' % counts)

        return Work(work)

    @routes.post("/detokenize", responses={200: {"model": DetokenizeReply}})
    async def detokenize(body: DetokenizeBody) -> Response:
        profile_of(gateway.model, body.model)

        async def work(send: Send) -> None:
            await send_body(send, b'{"prompt":%s}' % await gateway.prompts.detokenize(body.tokens))

        return Work(work)


def _added(token: Any) -> AddedToken:
    """A `tokenizers.AddedToken` as JSON has it."""
    return AddedToken(**{name: getattr(token, name) for name in AddedToken.model_fields})
