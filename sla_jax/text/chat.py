"""Conversations as text and ids, under the checkpoint's own template.

Text comes first and ids second, so that the boundary between prompt and response is found in characters, where it is
exact, and never guessed from ids.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sla_jax.errors import UserError
from sla_jax.text.template import MARKER, NO_VARIABLES, OPENINGS, render, takes_parts
from sla_jax.text.tokenizer import PreTrainedTokenizerBase, encode, encode_behind

REASONING = ("reasoning_content", "thinking", "reasoning")  # names of what was thought; templates read the first
CONTINUE = f"{MARKER} "  # put behind a message that is to be continued; its space tells whether white space is kept


def chat_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
    *,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] = NO_VARIABLES,
) -> list[int]:
    """Token ids of a conversation under the tokenizer's chat template, ready for the assistant to speak.

    Options and errors are those of `chat_text`.
    """
    text = chat_text(
        tokenizer,
        messages,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        variables=variables,
    )
    return encode(tokenizer, text)  # its special tokens are already in the text, so none are added


def chat_text(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
    *,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] = NO_VARIABLES,
) -> str:
    """A conversation under the tokenizer's chat template, as text.

    A message has a role and a content: a string, None, or parts [{"type": "text", "text": …}]. The template gets the
    form that it wants, and keys without a value not at all. With `add_generation_prompt` an answer's opening is behind
    it; with `continue_final_message`, which excludes that, the last message is left open. `variables` are the
    template's own (Qwen3's enable_thinking) and go before those of `with_template`; of several templates the variable
    `chat_template` names one. Raises UserError for messages of another form and for whatever the template raises.
    """
    parts = takes_parts(tokenizer, variables)
    chat = [_plain(message, parts) for message in messages]
    if not chat:
        raise UserError("the conversation is empty; expected at least one message.")
    if not continue_final_message:
        return render(tokenizer, chat, variables, add_generation_prompt=add_generation_prompt)
    if add_generation_prompt:
        raise UserError(
            "continue_final_message leaves the last message open and add_generation_prompt opens a new one; set one of "
            "them to false."
        )
    last = text_of(chat[-1].get("content"))
    chat[-1] |= {"content": _shaped(last + CONTINUE, parts)}
    text = render(tokenizer, chat, variables, add_generation_prompt=False)
    if MARKER not in text:
        raise UserError(
            "the chat template does not write the last message as it is, so it cannot be continued; give it as a turn "
            "of its own, with add_generation_prompt."
        )
    before, _, after = text.rpartition(MARKER)
    return before if after.startswith(" ") else before.rstrip()  # the template strips, so that nothing ends in space


def text_of(content: str | Sequence[Any] | None) -> str:
    """A message's content as one text. Raises UserError for parts that are no text."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = list[str]()
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise UserError(
                f"a message's content has a part {kind!r}; expected text alone: {{'type': 'text', 'text': '…'}}."
            )
        texts.append(text)
    return "".join(texts)


def response_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompt_messages: Sequence[Mapping[str, Any]],
    response: str,
    *,
    variables: Mapping[str, Any] = NO_VARIABLES,
) -> tuple[list[int], list[int]]:
    """(prompt ids, response ids): what the model reads, then what it would have said, its end-of-turn token included.

    The response ends with the first special token that the template puts after it ("<|im_end|>" but not the line break
    that follows). Both lists are what serving sees: the prompt is tokenized by itself, and only if the template's own
    text is not read differently with the response behind it are they one encoding cut in two. What a template opens an
    answer with and does not repeat in the turn itself (an empty <think></think>) stays the prompt's.
    Raises UserError if the template changes the prompt once there is a response.
    """
    prompt = chat_text(tokenizer, prompt_messages, variables=variables)
    full, marked = (
        chat_text(
            tokenizer,
            [*prompt_messages, {"role": "assistant", "content": content}],
            add_generation_prompt=False,
            variables=variables,
        )
        for content in (response, MARKER)
    )
    before, found, after = marked.rpartition(MARKER)
    after = after if found and full.endswith(after) else ""
    if full.startswith(prompt):
        text = full[len(prompt) : len(full) - len(after)]
    elif found and prompt.startswith(before) and full.removeprefix(before).removesuffix(after) in _spaced(response):
        text = full[len(before) : len(full) - len(after)]
    else:
        raise _rewritten(prompt, full)
    return encode_behind(tokenizer, prompt, text + _end_of_turn(tokenizer, after))


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token with which the chat template closes an assistant's turn: the last one of `response_ids`.

    None where a turn ends with text, or where there is no template or it fails on a plain chat."""
    for roles in OPENINGS:
        chat = [*({"role": role, "content": "Hi"} for role in roles), {"role": "assistant", "content": MARKER}]
        try:
            text = chat_text(tokenizer, chat, add_generation_prompt=False)
        except UserError:  # a template that needs more than these messages says nothing here
            continue
        ids = encode(tokenizer, _end_of_turn(tokenizer, text.rpartition(MARKER)[2])) if MARKER in text else []
        return ids[-1] if ids and ids[-1] in tokenizer.added_tokens_decoder else None
    return None


def _plain(message: Mapping[str, Any], parts: bool) -> dict[str, Any]:
    """A message as templates want it: contents in their form, what is None left out, what was thought under the names
    that templates read. Raises UserError."""
    role, content = message.get("role"), message.get("content")
    shaped = content is None or isinstance(content, str | list | tuple)
    there = "content" in message or role == "assistant"  # whose turn may be calls of tools alone
    if not isinstance(role, str) or not shaped or not there:
        raise UserError(
            f"a message is {dict(message)!r:.200}; expected the strings 'role' and 'content' (or None, or a list of "
            "text parts)."
        )
    plain = {name: value for name, value in message.items() if value is not None}
    if content is not None:
        plain["content"] = _shaped(text_of(content), parts)
    thought = next((plain[name] for name in REASONING if name in plain), None)
    return plain if thought is None else {"thinking": thought, **plain, "reasoning_content": thought}


def _shaped(text: str, parts: bool) -> str | list[dict[str, str]]:
    return [{"type": "text", "text": text}] if parts else text


def _spaced(text: str) -> tuple[str, ...]:
    """A text, and what is left of it where a template strips white space."""
    return text, text.strip(), text.lstrip(), text.rstrip()


def _rewritten(prompt: str, full: str) -> UserError:
    at = next((i for i, (a, b) in enumerate(zip(prompt, full, strict=False)) if a != b), min(len(prompt), len(full)))
    return UserError(
        f"the chat template writes the prompt differently once there is a response: {prompt[at : at + 40]!r} becomes "
        f"{full[at : at + 40]!r}; expected the same text with the response after it. Use a template that keeps it."
    )


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, after: str) -> str:
    """The template's text after a response, up to its first special token; without one, less trailing white space."""
    specials = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    ends = [after.index(special) + len(special) for special in specials if special in after]
    return after[: min(ends)] if ends else after.rstrip()
