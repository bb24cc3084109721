"""From HTTP to the service and back, for every protocol alike: prompts in, pieces of text out.

    async with gateway.answer("Once", profile="sla", max_tokens=64, stops=["."]) as run:
        async for piece in run:          # answer.Piece: text, tokens, event, finish
            send(piece.text)

`answer` reserves a place before it tokenizes (Overloaded, Unavailable), checks the prompt (ApiError 400), and whatever
ends the `async with` (the answer's end, an error, a client that left) cancels what is still running. UserError,
ApiError, Overloaded and Unavailable become OpenAI errors in the app's handlers (`errors.as_api_error`).
For more than one request at a time there are the parts: `reserve`, `prompts.read`, `Run`.
"""

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import NamedTuple

from sla_jax.decode.sampling import Sampling
from sla_jax.errors import nearest, quoted
from sla_jax.serving.accounts import total
from sla_jax.serving.answer import Answer, Piece
from sla_jax.serving.backend import Backend, Places
from sla_jax.serving.errors import ApiError, bad, ended, engine_failed, timed_out
from sla_jax.serving.messages import Chat
from sla_jax.serving.prompts import Prompt, PromptReader
from sla_jax.serving.prompts import spell as _spell
from sla_jax.serving.reasoning import Reasoner, Thinking
from sla_jax.serving.request import Event, Finish, Inspected, Inspection, Request
from sla_jax.serving.settings import ModelInfo, Profile, ServeConfig
from sla_jax.text import PreTrainedTokenizerBase

__all__ = ["AnswerPart", "Gateway", "Prompt", "Run", "_spell", "new_id", "seed_of"]


class AnswerPart(NamedTuple):
    """A request that has not ended: an answer's only one, or the one that goes on with it."""

    number: int  # of the answer
    request: Request
    began: float  # time.monotonic() seconds, of the answer
    before: Event = Event()  # the last one of the request that this one goes on with

    def in_answer(self, event: Event) -> Event:
        """An event as one of the whole answer."""
        if self.request.began is None:
            return event
        rounds = 0 if self.before.round is None else self.before.round + 1
        return event._replace(
            round=None if event.round is None else rounds + event.round,
            explored=self.before.explored + event.explored,
            cached=self.before.cached,
            cost=total(self.before.cost, event.cost),
        )


class Run:
    """Answers that are made together, merged into one sequence of pieces. Leaving it cancels what has not ended.

    A thinking that has used its budget up is ended by saying the closing tag in the model's place: a second request,
    with all that was said for its prompt, goes on with the answer, and what the first one said beyond it is dropped.
    """

    def __init__(self, gateway: "Gateway", request_id: str, places: Places):
        self.id = request_id
        self._gateway, self._places = gateway, places
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[str, Event]] = asyncio.Queue()
        self._answers: list[Answer] = []
        self._open: dict[str, AnswerPart] = {}  # by the service's id
        self._checks: set[str] = set()
        self._cancelled = False

    def submit(
        self,
        request: Request,
        stops: Sequence[str] = (),
        *,
        continues: bool = False,
        thinking: Thinking | None = None,
        stop_tokens: Sequence[int] = (),
        skip_special_tokens: bool = True,
    ) -> None:
        """Start one more; its pieces carry its number, from 0. The request's id is replaced by one of ours.

        `continues`: its text goes on with the prompt's."""
        part = AnswerPart(len(self._answers), request, time.monotonic())
        unread = thinking is not None and thinking.budget == 0 and thinking.place == "inside"
        answer = Answer(
            self._gateway.tokenizer,
            part.number,
            stops,
            request.prompt if continues else (),
            thinking=dataclasses.replace(thinking, budget=None) if thinking and unread else thinking,
            stop_tokens=stop_tokens,
            skip_special_tokens=skip_special_tokens,
        )
        self._answers.append(answer)
        if unread:
            self._end_thinking(part)
        else:
            self._start(part)

    def _start(self, part: AnswerPart, *said: Event) -> None:
        """Submit a request; what is `said` in the model's place comes before its own events."""
        name = self._gateway.number(self.id)
        self._open[name] = part
        for event in said:
            self._events.put_nowait((name, event))
        if self._cancelled:  # before the service knew this one
            self._events.put_nowait((name, Event(finish="abort")))
        elif part.request.max_tokens:
            request = dataclasses.replace(part.request, id=name)
            self._places.submit(request, lambda event: self._call(lambda: self._events.put_nowait((name, event))))

    def _end_thinking(self, part: AnswerPart, last: Event | None = None) -> None:
        """Say the closing tag, as much of it as there is room for, and let the model go on from there.

        An answer that is to end at one of the tag's tokens ends there. `last`: the event at which the thinking was cut;
        none where it had not begun.
        """
        answer, request = self._answers[part.number], part.request
        began, least = len(answer.tokens), request.sampling.min_tokens
        room = request.max_tokens - began
        ending = self._gateway.reasoner.ending[:room]
        ends = (i for i, token in enumerate(ending) if token in request.ends and began + i >= least)
        stop = next(ends, None)
        ending = ending if stop is None else ending[: stop + 1]
        count, left = len(ending), room - len(ending) if stop is None else 0
        finish: Finish | None = "stop" if stop is not None else None if left else "length"
        sampling = dataclasses.replace(
            request.sampling,
            seed=seed_of(request.sampling.seed, "answer"),
            min_tokens=max(0, least - began - count),
        )
        following = dataclasses.replace(
            request,
            prompt=(*request.prompt, *answer.tokens, *ending),
            max_tokens=left,
            sampling=sampling,
            began=None if last is None else part.began,
        )
        said = Event(tokens=list(ending), logprobs=[0.0] * count, tops=[[]] * count, finish=finish)
        self._start(AnswerPart(part.number, following, part.began, last or Event()), said)

    async def inspect(self, tokens: tuple[int, ...], top_logprobs: int = 0) -> Inspected:
        """Rewards and log-probabilities of a text. Raises ApiError if they could not be had."""
        name, began = self._gateway.number(self.id), time.monotonic()
        result: asyncio.Future[Inspected] = self._loop.create_future()

        def hear(inspected: Inspected) -> None:
            self._call(lambda: None if result.done() else result.set_result(inspected))

        self._places.inspect(Inspection(id=name, tokens=tokens, top_logprobs=top_logprobs), hear)
        self._checks.add(name)
        inspected = await result
        self._checks.discard(name)
        if inspected.error is not None:
            raise self._failure(inspected.error, time.monotonic() - began)
        return inspected

    def _failure(self, error: str, seconds: float) -> ApiError:
        """Why there was no inspection: nobody's fault but the engine's only if nothing else explains it."""
        if self._cancelled:
            return bad("the request was aborted.", code="aborted")
        if seconds >= self._gateway.config.limits.timeout:
            return timed_out()
        if self._gateway.service.state in ("draining", "stopped"):
            return ApiError(503, "the server is shutting down.", code="unavailable")
        return engine_failed(error)

    def __aiter__(self) -> "Run":
        return self

    async def __anext__(self) -> Piece:
        """The next piece of any answer. Raises ApiError when one fails or runs out of time, Overloaded for no slot."""
        while self._open:
            name, event = await self._events.get()
            if name not in self._open:
                continue  # it had ended at a stop string, or at the end of its thinking
            part = self._open[name]
            event = part.in_answer(event)
            piece = self._answers[part.number].read(event)
            if piece.cut:
                self._end_thinking(part, piece.event)
            if piece.finish or piece.cut:
                del self._open[name]
                if event.finish is None:
                    self._gateway.service.cancel(name, "continued" if piece.cut else "stop")
                elif failure := ended(event):
                    raise failure
            return piece
        raise StopAsyncIteration

    async def __aenter__(self) -> "Run":
        self._gateway.runs.setdefault(self.id, []).append(self)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        runs = self._gateway.runs[self.id]
        runs.remove(self)
        if not runs:
            del self._gateway.runs[self.id]
        self.cancel()

    def cancel(self) -> bool:
        """Ask the service to end what has not ended; whether there was any."""
        self._cancelled = True
        names = [*self._open, *self._checks]
        return sum(self._gateway.service.cancel(name) for name in names) > 0

    def _call(self, action: Callable[[], object]) -> None:
        """Do it on the event loop, if there still is one."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(action)


class Gateway:
    """One server's model, tokenizer and service, as the protocols see them. `runs`: what is running, by request id."""

    def __init__(self, service: Backend, model: ModelInfo, tokenizer: PreTrainedTokenizerBase, config: ServeConfig):
        self.service, self.model, self.tokenizer, self.config = service, model, tokenizer, config
        self.prompts = PromptReader(tokenizer, model, config)
        self.runs: dict[str, list[Run]] = {}
        self._numbers = itertools.count()

    @functools.cached_property
    def reasoner(self) -> Reasoner:
        """How the model thinks, if it does."""
        return Reasoner(self.tokenizer, self.config.reasoning)

    @contextlib.asynccontextmanager
    async def answer(
        self,
        prompt: str | Sequence[int] | Chat,
        *,
        profile: str | None = None,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        stops: Sequence[str] = (),
        ignore_eos: bool = False,
        request_id: str | None = None,
    ) -> AsyncIterator[Run]:
        """Run one request; its pieces are what the Run yields. No max_tokens: as many as the context leaves."""
        chosen = self.profile(profile)
        with self.reserve(chosen, tokens=max_tokens) as places:
            read = await self.prompts.read(prompt)
            request = self.request(read, chosen, max_tokens, sampling=sampling, ignore_eos=ignore_eos)
            async with Run(self, request_id or new_id("req"), places) as run:
                run.submit(request, stops, continues=read.continues)
                yield run

    def profile(self, name: str | None) -> Profile:
        """A declared profile, the first one if none is named. Raises ApiError 400 with the list."""
        for profile in self.model.profiles:
            if name is None or profile.name == name:
                return profile
        names = [profile.name for profile in self.model.profiles]
        hint = nearest(name or "", names)
        raise bad(
            f"there is no search profile {quoted(name)}; this server has {', '.join(names)}.{hint}", "search.profile"
        )

    def reserve(self, profile: Profile, count: int = 1, *, tokens: int | None = None) -> Places:
        """Places in a profile's queue, to be had before a prompt is tokenized. Raises Overloaded, Unavailable.

        tokens: the most that each answer may have; 0 for no answers, None for what the context leaves.
        """
        return self.service.reserve(profile.name, count, tokens)

    def request(
        self,
        prompt: Prompt,
        profile: Profile,
        max_tokens: int | None,
        *,
        sampling: Sampling | None = None,
        ignore_eos: bool = False,
        stop_tokens: Sequence[int] = (),
        top_logprobs: int = 0,
        tree: bool = False,
        param: str = "max_tokens",
    ) -> Request:
        """A request whose time runs from now. Raises ApiError if the context has no room for `max_tokens`, UserError if
        the search has none."""
        room = self.model.context - len(prompt.tokens)
        if max_tokens is not None and max_tokens > room:
            raise bad(
                f"the prompt has {len(prompt.tokens)} tokens and {param} is {max_tokens}; together they may be "
                f"{self.model.context} tokens here. Ask for at most {room}.",
                param,
                "context_length_exceeded",
            )
        self.prompts.check_tokens(stop_tokens, "stop_token_ids")
        limit = room if max_tokens is None else max_tokens
        profile.check_limit(limit)
        return Request(
            id="",
            profile=profile.name,
            prompt=prompt.tokens,
            max_tokens=limit,
            ends=tuple(dict.fromkeys([*(() if ignore_eos else self.model.end_tokens), *stop_tokens])),
            sampling=sampling or Sampling(),
            top_logprobs=top_logprobs,
            tree=tree,
            deadline=time.monotonic() + self.config.limits.timeout,
        )

    def number(self, request_id: str) -> str:
        """A name for the service, which nothing else has even if two clients choose one id."""
        return f"{request_id}-{next(self._numbers)}"

    def abort(self, request_id: str) -> bool:
        """End everything that runs under an id; whether there was anything."""
        return sum(run.cancel() for run in self.runs.get(request_id, [])) > 0


def seed_of(seed: int, part: str | int) -> int:
    """The seed of a part of what a request asks for, made from the request's own."""
    digest = hashlib.sha256(f"{seed}:{part}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def new_id(kind: str) -> str:
    """A name for a request that nobody else has."""
    return f"{kind}-{uuid.uuid4().hex}"
