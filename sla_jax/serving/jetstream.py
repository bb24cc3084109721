"""google-jetstream 0.2.2, the only file that knows it: its gRPC service on our server, our engine under its driver.

Importing this module needs the package (`pip install --no-deps google-jetstream==0.2.2 grpcio`; its own requirements,
TensorFlow among them, are not wanted). What its modules import and we do without (seqio, tiktoken, shortuuid) stands in
`sys.modules` while they are imported and no longer; `jax.tree_map`, which jax has dropped, is given to its orchestrator
alone; the DEBUG handler that it hangs on the root logger is taken off again.

`serve_grpc` is the service `jetstream_proto.Orchestrator` in front of our own scheduler. `JetStreamEngine` is for those
who run JetStream's own driver. That driver cannot take chunks (it drops the one that crosses max_tokens, and takes a
round without tokens for the end), so the adapter keeps what a round committed and hands it over one token a step.
"""

import asyncio
import contextlib
import dataclasses
import hmac
import importlib
import logging
import sys
import threading
import types
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sla_jax.decode.program import check_prompt, fetch
from sla_jax.decode.result import unpack
from sla_jax.errors import UserError, shortened
from sla_jax.serving.backend import Backend
from sla_jax.serving.compat import jetstream_samples
from sla_jax.serving.engine import Engine
from sla_jax.serving.errors import ApiError, as_api_error, bad
from sla_jax.serving.gateway import Gateway
from sla_jax.serving.request import Overloaded, Request
from sla_jax.serving.settings import ModelInfo, ServeConfig
from sla_jax.text import encode

STAND_INS: dict[str, dict[str, Any]] = {
    "seqio": {},
    "seqio.vocabularies": {"SentencePieceVocabulary": object, "Vocabulary": object},
    "shortuuid": {"uuid": lambda: "sla-jax"},
    "tiktoken": {},
    "tiktoken.load": {"load_tiktoken_bpe": None},
}
LENGTHS = tuple(2**power for power in range(4, 16))  # what its driver pads prompts to


@contextlib.contextmanager
def _standing_in() -> Iterator[None]:
    """Stand-ins while its modules are imported; the root logger as it was before."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    absent = {name: names for name, names in STAND_INS.items() if name not in sys.modules}
    for name, names in absent.items():
        module = types.ModuleType(name)
        vars(module).update(names)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
        root.setLevel(level)
        root.handlers[:] = handlers


class _OldJax(types.ModuleType):
    """jax as the orchestrator knows it."""

    tree_map = staticmethod(jax.tree.map)

    def __getattr__(self, name: str) -> Any:
        return getattr(jax, name)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"the module {error.name} is missing; JetStream's parts need "
            "`pip install --no-deps google-jetstream==0.2.2 grpcio`."
        ) from None


with _standing_in():
    grpc = _import("grpc")
    aio = _import("grpc.aio")
    messages = _import("jetstream.core.proto.jetstream_pb2")
    service = _import("jetstream.core.proto.jetstream_pb2_grpc")
    engine_api = _import("jetstream.engine.engine_api")
    tokenizer_api = _import("jetstream.engine.tokenizer_api")
    tokenizer_messages = _import("jetstream.engine.tokenizer_pb2")
    orchestrator = _import("jetstream.core.orchestrator")
orchestrator.jax = _OldJax("jax")
EngineBase: Any = engine_api.Engine
TokenizerBase: Any = tokenizer_api.Tokenizer
ServicerBase: Any = service.OrchestratorServicer
CODES = {401: "UNAUTHENTICATED", 408: "DEADLINE_EXCEEDED", 500: "INTERNAL", 503: "UNAVAILABLE"}


# ---- its gRPC service on our server ----


def serve_grpc(backend: Backend, model: ModelInfo, tokenizer: Any, config: ServeConfig) -> "GrpcServer":
    """Serve on config.grpc_port, with the server's key, certificate and limits. Raises UserError if that cannot be."""
    server = GrpcServer(Gateway(backend, model, tokenizer, config))
    server.start()
    return server


class GrpcServer:
    """The service in a thread with an event loop of its own. `port` is the one that it listens on."""

    port: int

    def __init__(self, gateway: Gateway):
        self._gateway = gateway
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="grpc", daemon=True)

    def start(self) -> None:
        """Listen and answer from now on. Raises UserError."""
        self._thread.start()
        try:
            self._call(self._start())
        except BaseException:
            self._end()
            raise

    def stop(self, grace: float) -> None:
        """Take nothing new, give what runs `grace` seconds, and end."""
        with contextlib.suppress(TimeoutError):
            self._call(self._server.stop(grace), grace + 1.0)
        self._end()

    def _call(self, work: Coroutine[Any, Any, None], timeout: float | None = None) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(1.0)
        if not self._thread.is_alive():
            self._loop.close()

    async def _start(self) -> None:
        config = self._gateway.config
        self._server = aio.server(options=[("grpc.max_receive_message_length", config.limits.body_bytes)])
        service.add_OrchestratorServicer_to_server(Orchestrator(self._gateway), self._server)
        host = f"[{config.host}]" if ":" in config.host else config.host
        address = f"{host}:{config.grpc_port}"
        try:
            if config.tls.cert and config.tls.key:
                pair = config.tls.key.read_bytes(), config.tls.cert.read_bytes()
                self.port = self._server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
            else:
                self.port = self._server.add_insecure_port(address)
        except (RuntimeError, OSError) as error:
            raise UserError(f"gRPC cannot listen on {address} ({error}); give --grpc-port another number.") from None
        await self._server.start()


class Orchestrator(ServicerBase):
    """Decode and HealthCheck. A client that leaves cancels its request; every refusal has a status."""

    def __init__(self, gateway: Gateway):
        self._gateway = gateway

    async def Decode(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Stream one answer by the default profile."""
        try:
            self._check_key(context)
            prompt = _prompt_of(request)
            ends = self._gateway.model.end_tokens
            async with self._gateway.answer(prompt, max_tokens=request.max_tokens) as run:
                async for text, tokens in jetstream_samples(run, ends, isinstance(prompt, str)):
                    yield _response(text, tokens)
        except Exception as error:
            known = as_api_error(error)
            if known is None:
                raise
            name = CODES.get(known.status, "INVALID_ARGUMENT")
            code = grpc.StatusCode["RESOURCE_EXHAUSTED" if isinstance(error, Overloaded) else name]
            await context.abort(code, shortened(known.message, 1000))  # a client takes 8 kB of it

    async def HealthCheck(self, request: Any, context: Any) -> Any:
        """Whether requests are worked on."""
        return messages.HealthCheckResponse(is_live=self._gateway.service.state in ("ready", "draining"))

    def _check_key(self, context: Any) -> None:
        key = self._gateway.config.key
        sent = dict(context.invocation_metadata()).get("authorization", "")
        if key and not hmac.compare_digest(str(sent).encode(), f"Bearer {key}".encode()):
            raise ApiError(401, "send the API key as metadata: authorization: Bearer KEY.")


def _prompt_of(request: Any) -> str | list[int]:
    """The prompt of a DecodeRequest. Raises ApiError for what cannot be served."""
    if request.session_cache or request.priority:
        raise bad("session_cache and priority are not honoured here; leave them out.")
    if request.max_tokens < 1:
        raise bad(f"max_tokens is {request.max_tokens}; it has to be at least 1.")
    content = request.WhichOneof("content")
    if content is None:
        raise bad("there is no content; give text_content or token_content.")
    return str(request.text_content.text) if content == "text_content" else list(request.token_content.token_ids)


def _response(text: str, tokens: list[int]) -> Any:
    content = messages.DecodeResponse.StreamContent
    return messages.DecodeResponse(stream_content=content(samples=[content.Sample(text=text, token_ids=tokens)]))


# ---- our engine under its driver ----


class Tokens(TokenizerBase):
    """The checkpoint's tokenizer as the driver wants one.

    The driver puts `bos_id` before the tokens of a client that tokenizes for itself; its prompt is complete as it is,
    so this is a mark, which `prefill` takes off again.
    """

    MARK = -1

    def __init__(self, tokenizer: Any, end_tokens: Sequence[int]):
        self._tokenizer, self._ends = tokenizer, frozenset(end_tokens)

    def encode(self, s: str, **options: Any) -> tuple[np.ndarray | jax.Array, int]:
        """Padded tokens and how many of them are the text's."""
        ids = np.array(encode(self._tokenizer, s, special=options.pop("is_bos", True)), np.int32)
        padded, length = orchestrator.token_utils.pad_tokens(ids, self.bos_id, self.pad_id, is_bos=False, **options)
        return padded, length

    def decode(self, token_ids: list[int], **options: Any) -> str:
        """One token's text, as the driver asks for it: byte tokens stay <0x..>, which it joins; spaces are kept.

        A token that is only part of a character is U+FFFD: there is no way to say more here. Clients that take tokens
        instead of text lose nothing.
        """
        (token,) = token_ids
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if orchestrator.token_utils.is_byte_token(piece):
            return str(piece)
        backend = self._tokenizer.backend_tokenizer
        before = backend.encode("a", add_special_tokens=False).ids[-1:]  # behind a token, a text keeps its space
        return str(backend.decode([*before, token])[len(backend.decode(before)) :])

    @property
    def pad_id(self) -> int:
        """What fills a prompt up; never looked at."""
        return 0

    @property
    def eos_id(self) -> int:
        """One of the end tokens."""
        return min(self._ends, default=self.MARK)

    @property
    def bos_id(self) -> int:
        """The mark."""
        return self.MARK

    @property
    def stop_tokens(self) -> set[int]:
        """Every end token, and none that only pads."""
        return set(self._ends)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt that was read, or None for one that cannot be. Opaque to the driver, which deletes arrays it sees."""

    prefix: Any
    tokens: tuple[int, ...]


@dataclasses.dataclass
class Answering:
    """What a slot has committed and not yet handed over."""

    done: bool
    tokens: deque[int] = dataclasses.field(default_factory=deque)
    given: int = 0


class Decoding(NamedTuple):
    """The driver's decode state: the engine's, and the answers by slot."""

    state: Any
    answers: dict[int, Answering]


class JetStreamEngine(EngineBase):
    """One profile's engine for JetStream's driver (interleaved mode): the same tokens as everywhere.

    Only the driver knows max_tokens: it cuts answers, exactly; and, before they come here, overlong prompts.
    """

    def __init__(self, engine: Engine):
        self._engine, self._model, self._sizes = engine, engine.model, engine.reader.sizes
        self._lock = threading.Lock()  # the driver reads prompts on one thread and decodes on another

    def load_params(self, *args: Any, **options: Any) -> Any:
        """The parameters, on the device."""
        return self._engine.load_params()

    def init_decode_state(self, *args: Any, **options: Any) -> Decoding:
        """Empty slots."""
        return Decoding(self._engine.init_state(self._sizes.capacities[-1]), {})

    def prefill(self, *, params: Any, existing_prefix: Any = None, padded_tokens: Any, true_length: int) -> Prompt:
        """Read a prompt. One that cannot be read gets an empty answer: an exception would end the driver's process."""
        ids = np.asarray(padded_tokens)[:true_length].tolist()
        tokens = tuple(ids[1:] if ids[:1] == [Tokens.MARK] else ids)
        try:
            check_prompt(tokens, 1, context=self._sizes.context, vocabulary=self._model.config.vocab_size)
        except UserError as error:
            logging.getLogger(__name__).warning("a prompt was refused: %s", error)
            return Prompt(None, tokens)
        with self._lock:
            return Prompt(self._engine.prefill(params, tokens), tokens)

    def insert(self, prefix: Prompt, decode_state: Decoding, slot: int) -> Decoding:
        """Begin the answer to a prompt; whatever sat in the slot is gone."""
        decode_state.answers[slot] = Answering(done=prefix.prefix is None)
        if prefix.prefix is None:
            return decode_state
        request = Request(
            id=f"jetstream-{slot}",
            profile=self._engine.profile.name,
            prompt=prefix.tokens,
            max_tokens=self._sizes.context - len(prefix.tokens),
            ends=self._model.end_tokens,
        )
        with self._lock:
            params = self._engine.load_params()
            state, _ = self._engine.insert(params, prefix.prefix, decode_state.state, slot, request)
        return decode_state._replace(state=state)

    def generate(self, params: Any, decode_state: Decoding) -> tuple[Decoding, Any]:
        """One token of every answer, after as many rounds as that takes."""
        state, answers = decode_state
        while any(not answer.tokens and not answer.done for answer in answers.values()):
            with self._lock:
                state, packed = self._engine.generate(params, state)
            rounds = unpack(fetch(packed), tops=self._engine.program.tops, trace=self._engine.program.grower)
            for slot, answer in answers.items():
                if not answer.done:
                    answer.tokens.extend(rounds[slot].tokens)
                    answer.done = rounds[slot].done
        columns = np.zeros((self.max_concurrent_decodes, 3), np.int32)  # token, whether it is one, tokens so far
        for slot, answer in answers.items():
            if answer.tokens:
                answer.given += 1
                columns[slot] = answer.tokens.popleft(), 1, answer.given
        result = engine_api.ResultTokens(
            data=columns, tokens_idx=(0, 1), valid_idx=(1, 2), length_idx=(2, 3), samples_per_slot=1
        )
        return Decoding(state, answers), result

    def get_prefix_destination_sharding(self) -> Any:
        """Nowhere else: reading and decoding share the devices."""

    def get_tokenizer(self) -> Any:
        """Nothing: `build_tokenizer` knows it."""
        return tokenizer_messages.TokenizerParameters()

    def build_tokenizer(self, metadata: Any) -> Tokens:
        """The checkpoint's own."""
        return Tokens(self._model.tokenizer, self._model.end_tokens)

    @property
    def max_concurrent_decodes(self) -> int:
        """Slots."""
        return self._engine.slots

    @property
    def samples_per_slot(self) -> int:
        """One answer a slot, however many lanes look for it."""
        return 1

    @property
    def max_prefill_length(self) -> int:
        """The longest length that the driver knows and that leaves room for an answer."""
        return max(length for length in LENGTHS if length < self._sizes.context)

    @property
    def mesh(self) -> Any:
        """The parameters carry their own."""

    @property
    def colocated_cpus(self) -> None:
        """Of no use here."""
