"""Messages of a chat: what a client may send, and what a chat template gets of it.

A template gets a message as the client wrote it, without nulls, as transformers gives it. Three things are made from
what OpenAI's API writes otherwise: a refusal is what the assistant said; a developer is the system to a template that
does not know developers; and the arguments of a tool's call, JSON text in the API, are an object. transformers asks
templates to expect one, and vLLM gives it to them. A template that joins text to them, as DeepSeek's does, gets text.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from sla_jax.serving.body import Body, Many, Nothing, without_nulls
from sla_jax.serving.wire import Extent, extent_of
from sla_jax.text import PreTrainedTokenizerBase, chat_text

PARTS = ("text", "refusal")
# what a template may see of a message, beside its content
TURN = ("role", "name", "reasoning_content", "reasoning", "tool_calls", "tool_call_id", "function_call", "refusal")


def _readable(kind: Any) -> Any:
    """Name a type of parts that nothing here can read."""
    if isinstance(kind, str) and kind not in PARTS:
        raise ValueError(f"parts of the type {kind[:40]!r} cannot be read; this server reads {' and '.join(PARTS)}")
    return kind


class Part(Body):
    """A part of a message."""

    type: Annotated[Literal["text", "refusal"], BeforeValidator(_readable)]
    text: str | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> "Part":
        if getattr(self, self.type) is None:
            raise ValueError(f"a part of the type {self.type!r} needs the string {self.type!r}")
        return self


def _function(call: dict[str, Any]) -> dict[str, Any]:
    """A function's call without nulls; an empty one is none."""
    if call and not isinstance(call.get("name"), str):
        raise ValueError("a call of a function needs the string 'name'")
    return without_nulls(call)


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    """A tool's call without nulls, its fields in the client's order: templates print it as JSON."""
    call = without_nulls(call)
    if call.get("type", "function") != "function":
        return call
    if not isinstance(call.get("function"), dict) or not call["function"]:
        raise ValueError("a tool call needs the object 'function'")
    return {**call, "function": _function(call["function"])}


def _with_arguments(function: dict[str, Any], as_text: bool) -> dict[str, Any]:
    """A function's call with its arguments as text, or as an object if they are one."""
    given = function.get("arguments") or {}
    if as_text and not isinstance(given, str):
        given = json.dumps(given, ensure_ascii=False)
    elif not as_text and isinstance(given, str):
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(given)
            given = found if isinstance(found, dict) else given
    return {**function, "arguments": given}


Function = Annotated[dict[str, Any], AfterValidator(_function)]
ToolCall = Annotated[dict[str, Any], AfterValidator(_tool_call)]
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[Many[Part], Tag("parts")],
    Discriminator(lambda content: "parts" if isinstance(content, list) else "text"),
]


Variables = Annotated[dict[str, Any], Field(description="Variables of the chat template; they win over a profile's.")]


class Message(Body):
    """A turn of a conversation. A developer message is a system message to a template that does not know developers."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = Field(None, description="Only assistants, tools and functions may leave it out.")
    name: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Many[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: Function | None = None
    refusal: str | None = None
    annotations: Many[Any] | None = Field(None, description="What OpenAI says of sources; it is no part of the text.")
    audio: Nothing = None
    parsed: Any = Field(None, description="What the openai package's parse() makes of the content; not read.")

    @model_validator(mode="after")
    def _says_something(self) -> "Message":
        if self.content is None and self.role not in ("assistant", "tool", "function"):
            raise ValueError(f"a message of the role {self.role!r} needs a content")
        return self

    @property
    def calls(self) -> bool:
        """Whether a tool is called."""
        return bool(self.tool_calls or self.function_call)

    @property
    def arguments(self) -> list[str]:
        """Those of its calls that are JSON text."""
        functions = [self.function_call, *(call.get("function") for call in self.tool_calls or [])]
        given = [function.get("arguments") for function in functions if isinstance(function, dict)]
        return [text for text in given if isinstance(text, str)]

    def turn(self, developer: str = "system", *, as_text: bool = False) -> dict[str, Any]:
        """The message as a chat template gets it.

        `developer` is the role that the template knows a developer by; `as_text` of `arguments_are_text`.
        """
        turn = {name: getattr(self, name) for name in TURN if getattr(self, name) not in (None, [], {})}
        content: Any = self.content
        if isinstance(content, list):
            content = [{"type": "text", "text": part.text if part.type == "text" else part.refusal} for part in content]
        if content is None and self.refusal is not None:
            content = turn.pop("refusal")
        turn["content"] = content
        if self.function_call:
            turn["function_call"] = _with_arguments(self.function_call, as_text)
        if self.tool_calls:
            turn["tool_calls"] = [
                {**call, "function": _with_arguments(call["function"], as_text)}
                if isinstance(call.get("function"), dict)
                else call
                for call in self.tool_calls
            ]
        if self.reasoning is not None:
            turn.setdefault("reasoning_content", self.reasoning)
        if self.role == "developer":
            turn["role"] = developer
        return turn


def turns_of(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as the model's chat template gets them. Raises ApiError for arguments of calls that are too large."""
    extents = [extent_of(text.encode()) for message in messages for text in message.arguments]
    Extent(sum(one.parts for one in extents), sum(one.values for one in extents)).check("the arguments of all calls")
    developer = "developer" if "developer" in str(tokenizer.chat_template) else "system"
    as_text = any(message.calls for message in messages) and arguments_are_text(tokenizer)
    return [message.turn(developer, as_text=as_text) for message in messages]


def arguments_are_text(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template wants a call's arguments as text: an object breaks it, or is printed as Python does."""
    written = _call_text(tokenizer, {"a": "b"})
    return _call_text(tokenizer, '{"a": "b"}') is not None if written is None else "{'a': 'b'}" in written


def _call_text(tokenizer: PreTrainedTokenizerBase, arguments: Any) -> str | None:
    """A conversation with a call, as the template writes it; None if it cannot."""
    call = {"id": "call00000", "type": "function", "function": {"name": "f", "arguments": arguments}}
    turn: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call]}
    try:
        return chat_text(tokenizer, [{"role": "user", "content": "a"}, turn])
    except Exception:  # a template may raise anything
        return None


class Chat(NamedTuple):
    """A conversation to be written by a chat template, and how."""

    messages: Sequence[Message]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False  # around what the template writes, which has its own
    variables: Mapping[str, Any] = {}


class Templated(Body):
    """How the chat template writes messages."""

    add_generation_prompt: bool | None = Field(
        None, description="Open the assistant's turn. Default: unless continue_final_message is true."
    )
    continue_final_message: bool = Field(False, description="The last message stays open; the answer continues it.")
    add_special_tokens: bool | None = Field(
        None, description="With the tokens that the tokenizer puts around a text. Default: of a prompt, not of a chat."
    )
    chat_template_kwargs: Variables = {}

    @model_validator(mode="after")
    def _goes_together(self) -> "Templated":
        if self.add_generation_prompt and self.continue_final_message:
            raise ValueError("add_generation_prompt and continue_final_message are both true; only one of them can be")
        return self

    def chat(self, messages: Sequence[Message], defaults: Mapping[str, Any]) -> Chat:
        """What is to be written, with variables that the body may overwrite."""
        opens = not self.continue_final_message if self.add_generation_prompt is None else self.add_generation_prompt
        variables = {**defaults, **self.chat_template_kwargs}
        return Chat(messages, opens, self.continue_final_message, bool(self.add_special_tokens), variables)
