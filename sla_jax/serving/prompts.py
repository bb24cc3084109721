"""Texts, chats and token ids as what the model reads: in bounded threads, and what cannot fit refused before any work.

A text of more bytes than the context has room for, with its longest tokens only, is refused before it is tokenized, and
too many token ids before they are spelled. What is left takes long at most once: it waits for a thread in a queue like
the service's (Overloaded when that is full), has the time of a request for it (408), and is dropped when its client
leaves.
"""

import asyncio
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from tokenizers import Encoding

from sla_jax.errors import UserError
from sla_jax.serving.errors import bad, timed_out
from sla_jax.serving.messages import Chat, turns_of
from sla_jax.serving.settings import ModelInfo, ServeConfig
from sla_jax.serving.threads import Threads, checkpoint
from sla_jax.serving.wire import to_json
from sla_jax.text import (
    PreTrainedTokenizerBase,
    TextStream,
    chat_text,
    check_vocabulary,
    encode_behind,
    encoding,
    longest_token,
    response_ids,
)

MOST_THREADS = 4
STRIDE = 1024  # tokens that are spelled between two looks at whether anybody still waits
Result = TypeVar("Result")


class Prompt(NamedTuple):
    """What the model reads, and the same as text with the place of every token in it (for echo)."""

    tokens: tuple[int, ...]
    text: str = ""
    offsets: tuple[int, ...] = ()
    rest: str = ""  # behind the text, if nothing follows: bytes that are no character yet
    continues: bool = False  # an answer's text goes on with this one; a chat's stands alone


class Tokenized(NamedTuple):
    """The ids of a text as /tokenize tells them: made in a thread, because there may be millions."""

    length: int
    json: bytes  # a list


class PromptReader:
    """What one server's tokenizer does, for every route with texts or tokens. Methods raise ApiError, Overloaded."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: ModelInfo, config: ServeConfig):
        self.tokenizer, self._model, self._seconds = tokenizer, model, config.limits.timeout
        threads = min(MOST_THREADS, os.cpu_count() or 1)
        self._threads = Threads("the tokenizer", count=threads, waiting=config.waiting)

    @functools.cached_property
    def most_bytes(self) -> int:
        """Bytes of the longest text that can fit into the context, as far as the longest token tells."""
        return self._model.context * longest_token(self.tokenizer)

    async def read(self, prompt: str | Sequence[int] | Chat, *, special: bool = True, param: str = "prompt") -> Prompt:
        """A prompt as the model reads it: a text (`special`: with the tokens that the tokenizer puts around one), a
        chat, or ids as they stand. Not empty, shorter than the context, no tokens without embedding."""
        if isinstance(prompt, Chat):
            read = await self._run(self._chat, prompt, param)
        elif isinstance(prompt, str):
            read = await self._run(self._text, prompt, special, param)
        else:
            self._check_length(len(prompt), param)
            self.check_tokens(prompt, param)
            read = await self._run(spell, self.tokenizer, tuple(prompt))
        if not read.tokens or not prompt:
            raise bad("the prompt is empty; it needs at least one token.", param)
        self.check_tokens(read.tokens, param)
        return read

    async def tokenize(self, prompt: str | Chat, *, special: bool = True, param: str = "prompt") -> Tokenized:
        """The ids of a text or a chat, which may be more than the context holds."""
        return await self._run(self._tokenized, prompt, special, param)

    async def read_behind(self, prompt: Prompt, response: str) -> tuple[int, ...]:
        """Tokens of a text that goes on from a prompt, not empty and all with an embedding."""
        self._check_size(prompt.text + response, "response")
        _, tokens = await self._run(encode_behind, self.tokenizer, prompt.text, response)
        if not tokens:
            raise bad("the response is empty; it needs at least one token.", "response")
        self.check_tokens(tokens, "response")
        return tuple(tokens)

    async def read_response(self, chat: Chat, response: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens of a chat and of the assistant's turn that follows it, all with an embedding."""
        before, after = await self._run(self._response, chat, response)
        self.check_tokens(after, "response")
        return tuple(before), tuple(after)

    async def detokenize(self, tokens: list[int], param: str = "tokens") -> bytes:
        """The text of tokens, special ones by name, as JSON. As many are taken as a text that fits may have bytes."""
        if len(tokens) > self.most_bytes:
            raise bad(
                f"{len(tokens)} tokens are more than the {self.most_bytes} bytes of the longest text that fits into "
                f"a context of {self._model.context} tokens; give them in parts.",
                param,
            )
        return await self._run(self._detokenized, tokens, param)

    def check_tokens(self, tokens: Sequence[int], param: str) -> None:
        """Raise ApiError 400 if the model has no embedding for one of them."""
        try:
            check_vocabulary(self.tokenizer, tokens, self._model.vocabulary, param)
        except UserError as error:
            raise bad(str(error), param) from None

    async def _run(self, work: Callable[..., Result], *args: Any, **options: Any) -> Result:
        """Do it in a thread, in the time that a request has."""
        try:
            async with asyncio.timeout(self._seconds):
                return await self._threads.run(work, *args, **options)
        except TimeoutError:
            raise timed_out("the tokenizing of this request") from None

    # ---- in a thread ----

    def _text(self, text: str, special: bool, param: str) -> Prompt:
        found = self._encoded(text, special, param)
        self._check_length(len(found), param)
        return Prompt(tuple(found.ids), text, tuple(start for start, _ in found.offsets), continues=True)

    def _chat(self, chat: Chat, param: str) -> Prompt:
        found = self._encoded(chat, False, param)
        self._check_length(len(found), param)
        return Prompt(tuple(found.ids), continues=chat.continue_final_message)

    def _tokenized(self, prompt: str | Chat, special: bool, param: str) -> Tokenized:
        ids = self._encoded(prompt, special, param).ids
        pieces = []
        for start in range(0, len(ids), STRIDE):
            checkpoint()
            pieces.append(",".join(map(str, ids[start : start + STRIDE])))
        return Tokenized(len(ids), f"[{','.join(pieces)}]".encode())

    def _detokenized(self, tokens: list[int], param: str) -> bytes:
        self.check_tokens(tokens, param)
        decode = self.tokenizer.backend_tokenizer.decode_batch  # as decode, but lets other threads run
        (text,) = decode([tokens], skip_special_tokens=False)
        return to_json(text)

    def _encoded(self, prompt: str | Chat, special: bool, param: str) -> Encoding:
        """A text, or what the template makes of a chat; that has its own special tokens, unless the chat says so."""
        text = self._written(prompt, param) if isinstance(prompt, Chat) else prompt
        self._check_size(text, param)
        checkpoint()
        return encoding(
            self.tokenizer, text, special=prompt.add_special_tokens if isinstance(prompt, Chat) else special
        )

    def _response(self, chat: Chat, response: str) -> tuple[list[int], list[int]]:
        self._check_size(self._written(chat, "messages") + response, "response")
        checkpoint()
        turns = turns_of(self.tokenizer, chat.messages)
        return response_ids(self.tokenizer, turns, response, variables=chat.variables)

    def _written(self, chat: Chat, param: str) -> str:
        """What the template makes of a chat."""
        if len(chat.messages) > self._model.context:
            raise bad(
                f"{len(chat.messages)} messages do not fit into a context of {self._model.context} tokens.",
                param,
                "context_length_exceeded",
            )
        return chat_text(
            self.tokenizer,
            turns_of(self.tokenizer, chat.messages),
            add_generation_prompt=chat.add_generation_prompt,
            continue_final_message=chat.continue_final_message,
            variables=chat.variables,
        )

    # ---- what cannot fit ----

    def _check_size(self, text: str, param: str) -> None:
        """Raise ApiError for a text that has too many bytes for the context, however it is tokenized."""
        size = len(text) if 4 * len(text) <= self.most_bytes else len(text.encode(errors="replace"))
        if size > self.most_bytes:
            raise bad(
                f"the {param} of {size} bytes is too long: with the longest of tokens, {self.most_bytes} bytes are "
                f"{self._model.context} tokens, the most that prompt and answer may have together. It is not "
                "truncated; shorten it.",
                param,
                "context_length_exceeded",
            )

    def _check_length(self, count: int, param: str) -> None:
        """Raise ApiError for a prompt that leaves no room for an answer."""
        if count >= self._model.context:
            raise bad(
                f"the prompt has {count} tokens; prompt and answer together may have {self._model.context} "
                "tokens here, so that a prompt has to be shorter. It is not truncated; shorten it.",
                param,
                "context_length_exceeded",
            )


def spell(tokenizer: PreTrainedTokenizerBase, tokens: tuple[int, ...]) -> Prompt:
    """Token ids as text; special tokens are none."""
    stream, pieces, offsets, length = TextStream(tokenizer), list[str](), list[int](), 0
    for number, token in enumerate(tokens):
        if number % STRIDE == 0:
            checkpoint()
        offsets.append(length)
        pieces.append(stream.push([token]))
        length += len(pieces[-1])
    return Prompt(tokens, "".join(pieces), tuple(offsets), stream.finish(), continues=True)
