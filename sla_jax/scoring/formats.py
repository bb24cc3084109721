"""How process reward models read an answer in steps, and at which tokens they judge a step.

| format | what is read | judged at |
| --- | --- | --- |
| math_shepherd | "question step ки\\nstep ки": peiyi9979/math-shepherd-mistral-7b-prm | each "ки" |
| rlhflow | chat turns question + step, "+", step, "+", …: RLHFlow/Llama3.1-8B-PRM-* | the token before each "+" |
| skywork | "question\\nstep\\nstep\\n", tokenized step by step: Skywork-o1-Open-PRM-* | the line break behind a step |
| qwen | chat, the answer "step<extra_0>step<extra_0>": Qwen2.5-Math-PRM-* | each "<extra_0>" |
| head | chat, every step and separator tokenized by itself, as train.py and TRL do | the separator's last token |
| channel | as head | the separator's last token |

The first four are those of the public releases. What belongs to a format is found by where it was put, never by what
it looks like: a "+" or a "ки" in a step's own text is text.
"""

import bisect
from collections.abc import Callable, Sequence
from typing import Any

from sla_jax.scoring.candidate import Message
from sla_jax.scoring.rows import Row
from sla_jax.text import MARKER, chat_ids, chat_text, check_characters, encode

TAG, GOOD, BAD, EXTRA = "ки", "+", "-", "<extra_0>"
Layout = Callable[[Any, list[Message], Sequence[str], str], Row]  # tokenizer, conversation, steps, separator


def math_shepherd(tokenizer: Any, messages: list[Message], steps: Sequence[str], separator: str) -> Row:
    """No chat template; a tag behind each step, a line break between two. Special tokens are the tokenizer's own."""
    text, ends = f"{_plain(messages)} ", []
    for step in steps:
        text += f"{step} {TAG}"
        ends.append(len(text))
        text += "\n"
    return _located(tokenizer, text[:-1], ends, add_special_tokens=True)


def rlhflow(tokenizer: Any, messages: list[Message], steps: Sequence[str], separator: str) -> Row:
    """A conversation of steps, each answered by "+"; the first step stands behind the question."""
    first, *others = steps
    *before, last = messages
    conversation = [*before, {**last, "content": f"{last['content']} {first}"}]
    for step in others:
        conversation += [{"role": "assistant", "content": MARKER}, {"role": "user", "content": step}]
    conversation.append({"role": "assistant", "content": MARKER})
    text, ends = "", []
    for piece in chat_text(tokenizer, conversation, add_generation_prompt=False).split(MARKER)[:-1]:
        text += piece
        ends.append(len(text))
        text += GOOD
    return _located(tokenizer, text, ends, add_special_tokens=False)


def skywork(tokenizer: Any, messages: list[Message], steps: Sequence[str], separator: str) -> Row:
    """No chat template; a line break's last token behind each step."""
    ids = _ids(tokenizer, f"{tokenizer.bos_token or ''}{_plain(messages)}\n")
    return _joined(ids, [_ids(tokenizer, step) for step in steps], _ids(tokenizer, "\n")[-1:])


def qwen(tokenizer: Any, messages: list[Message], steps: Sequence[str], separator: str) -> Row:
    """The chat template; a special token behind each step."""
    text, ends = chat_text(tokenizer, messages), []
    for step in steps:
        text += step + EXTRA
        ends.append(len(text))
    return _located(tokenizer, text, ends, add_special_tokens=False)


def separated(tokenizer: Any, messages: list[Message], steps: Sequence[str], separator: str) -> Row:
    """The chat template; the separator behind each step."""
    answer = [_ids(tokenizer, step.removesuffix(separator)) for step in steps]
    return _joined(chat_ids(tokenizer, messages), answer, _ids(tokenizer, separator))


LAYOUTS: dict[str, Layout] = {
    "math_shepherd": math_shepherd,
    "rlhflow": rlhflow,
    "skywork": skywork,
    "qwen": qwen,
    "head": separated,
    "channel": separated,
}


def label_tokens(tokenizer: Any) -> tuple[int, int]:
    """The tokens that stand for a good step and a bad one: 648 and 387 in Math-Shepherd's vocabulary, where ки is
    12902."""
    good, bad = (_ids(tokenizer, label)[-1] for label in (GOOD, BAD))
    return good, bad


def _plain(messages: list[Message]) -> str:
    """A conversation without a template: what was said, line by line; of one user's turn, the question."""
    return "\n".join(message["content"] for message in messages)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return encode(tokenizer, text)


def _joined(prompt: list[int], steps: Sequence[list[int]], end: list[int]) -> Row:
    """Tokenized steps behind a prompt, each with its end, at whose last token it is judged."""
    ids, places = list(prompt), []
    for step in steps:
        ids += [*step, *end]
        places.append(len(ids) - 1)
    return Row(ids, places)


def _located(tokenizer: Any, text: str, ends: Sequence[int], *, add_special_tokens: bool) -> Row:
    """Text as one encoding, and the last token that begins before each of the characters `ends`."""
    check_characters(text)
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens)
    spelled = [token for token, (begin, end) in enumerate(encoding.offsets) if end > begin]
    begins = [encoding.offsets[token][0] for token in spelled]
    return Row(list(encoding.ids), [spelled[bisect.bisect_left(begins, end) - 1] for end in ends])
