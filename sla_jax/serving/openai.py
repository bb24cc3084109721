"""Completions and chats: an order is run, and what it says becomes OpenAI's objects, whole or as a stream of chunks."""

import asyncio
import contextlib
import dataclasses
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, NamedTuple

from sla_jax.decode.completion import Completion
from sla_jax.decode.cost import Cost
from sla_jax.serving.answer import Piece
from sla_jax.serving.gateway import Gateway, Prompt, Run, new_id
from sla_jax.serving.logprobs import chat_logprobs, text_logprobs
from sla_jax.serving.orders import Order
from sla_jax.serving.reasoning import Thinking
from sla_jax.serving.request import Event, Request, Top
from sla_jax.text import decode


class Said(NamedTuple):
    """A part of one answer, or all of it."""

    text: str = ""
    tokens: Sequence[int] = ()
    offsets: Sequence[int] = ()
    logprobs: Sequence[float | None] = ()
    tops: Sequence[Top] = ()
    thinking: str = ""
    rounds: Sequence[dict[str, Any]] = ()
    candidates: Sequence[dict[str, Any]] = ()  # whose fate is known now
    progress: dict[str, Any] | None = None
    cost: dict[str, Any] | None = None  # with the last part
    finish: str | None = None


class Exchange:
    """One order on its way: `reply` or `stream`, once, inside `opened`. Afterwards `usage` and `texts` are complete."""

    def __init__(self, gateway: Gateway, order: Order, request_id: str, *, chat: bool):
        self.order = order
        self._gateway, self._request_id, self._chat = gateway, request_id, chat
        self._id, self._created = new_id("chatcmpl" if chat else "cmpl"), int(time.time())
        self._prompts: list[Prompt] = []
        self._last: dict[int, Event] = {}  # the latest event of every answer
        self._counts: dict[int, int] = {}  # and its tokens
        self._thoughts: dict[int, int] = {}  # and those of its thinking
        self.texts: dict[int, str] = {}  # and its text

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Run]:
        """Places first, tokens second, then everything is submitted; leaving cancels what still runs."""
        order, gateway = self.order, self._gateway
        with gateway.reserve(order.profile, order.places, tokens=order.tokens) as places:
            self._prompts = [
                await gateway.prompts.read(prompt, special=order.add_special_tokens, param=order.prompt_param)
                for prompt in order.prompts
            ]
            requests = [
                gateway.request(
                    prompt,
                    order.profile,
                    self._limit(prompt),
                    sampling=order.sampling_of(choice),
                    ignore_eos=order.ignore_eos,
                    stop_tokens=order.stop_tokens,
                    top_logprobs=order.top or 0,
                    tree=order.return_tree,
                    param=order.limit_param,
                )
                for prompt in self._prompts
                for choice in range(order.n if order.answers else 0)
            ]
            async with Run(gateway, self._request_id, places) as run:
                for index, request in enumerate(requests):
                    run.submit(
                        request,
                        order.stops,
                        continues=self._prompt_of(index).continues,
                        thinking=self._thinking(request),
                        stop_tokens=order.stop_tokens,
                        skip_special_tokens=order.skip_special_tokens,
                    )
                yield run

    async def reply(self, run: Run) -> dict[str, Any]:
        """The whole answer."""
        parts: dict[int, list[Said]] = {index: [] for index in range(len(self._prompts) * self.order.n)}
        async for index, said in self._said(run):
            parts[index].append(said)
        choices = [self._choice(index, _joined(said)) for index, said in parts.items()]
        return {**self._head("chat.completion" if self._chat else "text_completion"), "choices": choices, **self.usage}

    async def stream(self, run: Run) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks; the last one has a usage and no choice, if that was asked for."""
        head = self._head("chat.completion.chunk" if self._chat else "text_completion")
        if self.order.include_usage:
            head["usage"] = None
        opened: set[int] = set()
        async with contextlib.aclosing(self._said(run)) as parts:
            async for index, said in parts:
                if self._silent(said):
                    continue
                first = index not in opened
                opened.add(index)
                more: dict[str, Any] = {"search": said.rounds[0]} if said.rounds else {}
                more |= {"progress": said.progress} if said.progress else {}
                more |= {"candidates": said.candidates} if said.candidates else {}
                more |= {"cost": said.cost} if said.cost else {}
                more |= self.usage if self.order.continuous_usage else {}
                yield {**head, "choices": [self._chunk_choice(index, said, first)], **more}
        if self.order.include_usage:
            yield {**head, "choices": [], **self.usage}

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens so far. A prompt counts once, however many answers it has; so does what the cache knew of it."""
        prompt = sum(len(prompt.tokens) for prompt in self._prompts)
        firsts = [event for index, event in self._last.items() if index % self.order.n == 0]
        return usage_of(
            prompt,
            sum(self._counts.values()),
            cached=sum(event.cached for event in firsts),
            explored=sum(event.explored for event in self._last.values()),
            thought=sum(self._thoughts.values()) if self._thinks else None,
        )

    # ---- what is said ----

    async def _said(self, run: Run) -> AsyncGenerator[tuple[int, Said], None]:
        """(choice, part of its answer), echoes first."""
        order = self.order
        shifts = [0] * len(self._prompts)
        if order.echo:
            echoes = await asyncio.gather(*(self._echo(run, prompt) for prompt in self._prompts))
            shifts = [len(echo.text) for echo in echoes]
            for index in range(len(self._prompts) * order.n):
                yield index, echoes[index // order.n]
        async for piece in run:
            yield piece.index, self._part(piece, shifts[piece.index // order.n])

    async def _echo(self, run: Run, prompt: Prompt) -> Said:
        """The prompt, as it was written or as its tokens read, with log-probabilities if they are wanted."""
        finish, text = (None, prompt.text) if self.order.answers else ("length", prompt.text + prompt.rest)
        if not self.order.inspects:
            return Said(text, finish=finish)
        seen = await run.inspect(prompt.tokens, self.order.top or 0)
        tops = [*([[]] * (len(prompt.tokens) - len(seen.tops))), *seen.tops]
        return Said(text, prompt.tokens, prompt.offsets, seen.logprobs, tops, finish=finish)

    def _part(self, piece: Piece, shift: int) -> Said:
        index, event = piece.index, piece.event
        last = self._last.get(index, event)
        cost = event.cost or last.cost
        self._last[index] = event._replace(explored=max(event.explored, last.explored), cost=cost)
        self._counts[index] = self._counts.get(index, 0) + len(piece.tokens)
        self._thoughts[index] = piece.thought
        self.texts[index] = self.texts.get(index, "") + piece.thinking + piece.text
        silent = event.round is None or (event.progress is not None and not event.tokens)
        rounds = [_round(event)] if self.order.tells_rounds and not silent else []
        offsets = [shift + offset for offset in piece.offsets]
        candidates = [self._candidate(index, one) for one in event.ended] if self.order.return_candidates else []
        progress = None if event.progress is None else event.progress._asdict()
        spoken = (piece.text, piece.tokens, offsets, piece.logprobs, piece.tops, piece.thinking)
        told = _cost(cost, self._counts[index]) if self.order.return_cost and piece.finish and cost else None
        return Said(*spoken, rounds, candidates, progress, told, piece.finish)

    def _prompt_of(self, index: int) -> Prompt:
        """What a choice answers."""
        return self._prompts[index // self.order.n]

    def _candidate(self, index: int, one: Completion) -> dict[str, Any]:
        prompt, order = self._prompt_of(index), self.order
        tokens = [token for token in one.tokens if token not in order.stop_tokens]
        before = prompt.tokens if prompt.continues else ()
        return {
            "candidate": one.candidate,
            "text": decode(self._gateway.tokenizer, tokens, before, skip_special_tokens=order.skip_special_tokens),
            "score": finite(one.score),
            "finish": one.finish,
            "round": one.round,
            "n_tokens": len(one.tokens),
            **({"step_scores": [finite(score) for score in one.step_scores]} if one.step_scores else {}),
        }

    @property
    def _thinks(self) -> bool:
        """Whether thinking is looked for: always in chats, where the model thinks; in completions to end it."""
        return self._gateway.reasoner.on and (self._chat or self.order.thinking_budget is not None)

    def _thinking(self, request: Request) -> Thinking | None:
        if not self._thinks:
            return None
        order, reasoner = self.order, self._gateway.reasoner
        return reasoner.thinking(request.prompt, split=order.splits, budget=order.thinking_budget, ends=request.ends)

    def _limit(self, prompt: Prompt) -> int | None:
        """max_tokens of a prompt; a default gives way to what the context leaves."""
        order = self.order
        if order.most_tokens is None:
            return order.max_tokens
        return min(order.most_tokens, self._gateway.model.context - len(prompt.tokens))

    # ---- how it is written ----

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self.order.model}

    def _silent(self, said: Said) -> bool:
        """Whether a chunk would say nothing."""
        wants_tokens = self.order.top is not None or self.order.return_token_ids
        told = said.text or (said.thinking and self.order.tells_thinking)
        return not (told or said.finish or said.rounds or said.progress or (wants_tokens and said.tokens))

    def _choice(self, index: int, said: Said) -> dict[str, Any]:
        body: dict[str, Any] = {"text": said.text}
        if self._chat:
            thinking = {"reasoning_content": said.thinking or None} if self.order.tells_thinking else {}
            body = {"message": {"role": "assistant", "content": said.text, **thinking, "refusal": None}}
        more: dict[str, Any] = {"search": list(said.rounds)} if self.order.tells_rounds else {}
        more |= {"candidates": list(said.candidates)} if self.order.return_candidates else {}
        more |= {"cost": said.cost} if self.order.return_cost else {}
        return {**self._common(index, said), **body, **self._ids(index, said, True), **more}

    def _chunk_choice(self, index: int, said: Said, first: bool) -> dict[str, Any]:
        body: dict[str, Any] = {"text": said.text}
        if self._chat:
            role = {"role": "assistant"} if first else {}
            thinking = {"reasoning_content": said.thinking} if said.thinking and self.order.tells_thinking else {}
            body = {"delta": {**role, **thinking, "content": said.text}}
        return {**self._common(index, said), **body, **self._ids(index, said, first)}

    def _common(self, index: int, said: Said) -> dict[str, Any]:
        return {"index": index, "logprobs": self._logprobs(said), "finish_reason": said.finish}

    def _ids(self, index: int, said: Said, first: bool) -> dict[str, Any]:
        """The answer's tokens, and with its first part its prompt's. An echo is not the answer."""
        if not self.order.return_token_ids:
            return {}
        prompt = list(self._prompt_of(index).tokens)
        echoed = len(prompt) if self.order.inspects and first else 0
        ids = {"token_ids": list(said.tokens[echoed:])}
        return {**ids, "prompt_token_ids": prompt} if first else ids

    def _logprobs(self, said: Said) -> dict[str, Any] | None:
        if self.order.top is None:
            return None
        tokenizer = self._gateway.tokenizer
        tops = [top[: self.order.top] for top in said.tops]
        if self._chat:
            return chat_logprobs(tokenizer, said.tokens, said.logprobs, tops)
        return text_logprobs(tokenizer, said.tokens, said.logprobs, tops if self.order.top else None, said.offsets)


def usage_of(
    prompt: int, completion: int, *, cached: int = 0, explored: int = 0, thought: int | None = None
) -> dict[str, Any]:
    """A `usage` object under its name. `thought`: tokens of the thinking, where it was looked for."""
    thinking = {} if thought is None else {"reasoning_tokens": thought}
    return {
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"explored_tokens": explored, **thinking},
        }
    }


def finite(value: float | None) -> float | None:
    """JSON has no infinity and no NaN."""
    return value if value is not None and math.isfinite(value) else None


def _joined(parts: Sequence[Said]) -> Said:
    """One answer from its parts."""
    return Said(
        text="".join(part.text for part in parts),
        thinking="".join(part.thinking for part in parts),
        tokens=[token for part in parts for token in part.tokens],
        offsets=[offset for part in parts for offset in part.offsets],
        logprobs=[value for part in parts for value in part.logprobs],
        tops=[top for part in parts for top in part.tops],
        rounds=[found for part in parts for found in part.rounds],
        candidates=[found for part in parts for found in part.candidates],
        cost=parts[-1].cost if parts else None,
        finish=parts[-1].finish if parts else None,
    )


def plain(value: Any) -> Any:
    """A value as JSON has it, with nothing for numbers that are none."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return finite(value) if isinstance(value, float) else value


def _cost(cost: Cost, committed: int) -> dict[str, Any]:
    """An account, of the answer as it was given: a stop string may have cut it. No scorer has a part in it."""
    told = dataclasses.asdict(dataclasses.replace(cost, committed_tokens=committed))
    return {name: value for name, value in told.items() if not name.startswith("scorer_")}


def _round(event: Event) -> dict[str, Any]:
    tree = {} if event.tree is None else {"tree": plain(dataclasses.asdict(event.tree))}
    return {
        "round": event.round,
        "score": finite(event.score),
        "margin": finite(event.margin),
        "rewards": [finite(reward) for reward in event.rewards],
        "token_ids": list(event.tokens),
        **tree,
    }
