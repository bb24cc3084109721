"""The thinking that a model writes before its answer: told apart from the answer, and ended when it grows too long.

Qwen3, R1 and their kind write `<think>`, their thinking, `</think>`, and then the answer. The opening tag may stand in
the prompt already (R1's template puts it there), and so may both tags, with nothing between them (Qwen3's with thinking
switched off). Text is divided as vLLM's parsers for the two do it (vllm/reasoning, qwen3 and deepseek_r1): the tags are
in neither part, and the line breaks beside them stay.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from sla_jax.text import PreTrainedTokenizerBase

OPEN, CLOSE = "<think>", "</think>"
ENDING = f"\n{CLOSE}\n\n"  # what Qwen3 and R1 write at the end of their thinking
Place = Literal["before", "inside", "after"]  # of the thinking


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thinking:
    """What is to be done with the thinking of one answer. `hidden`: tags that the tokenizer takes for no text."""

    place: Place  # where the prompt ends
    split: bool  # whether it is told apart from the answer
    budget: int | None = None  # tokens of the answer after which it is ended
    ends: tuple[int, ...] = ()  # tokens that end the answer, and so the thinking
    hidden: Mapping[int, str] = dataclasses.field(default_factory=dict)


class Splitter:
    """Divides a text that arrives in pieces into thinking and answer; how it was cut into pieces changes neither.

    Only a text that begins with the opening tag, but for white space, or goes on in a prompt that has it, has thinking.
    """

    def __init__(self, place: Place):
        self.place: Place = place
        self.opened = place == "inside"
        self._held = ""  # read, and perhaps part of a tag

    def push(self, text: str) -> tuple[str, str]:
        """(thinking, answer): what is certain of the text so far and was not said before."""
        self._held += text
        if self.place == "before":
            start = self._held.lstrip()
            if start.startswith(OPEN):
                self.place, self.opened, self._held = "inside", True, start.removeprefix(OPEN)
            elif not OPEN.startswith(start):
                self.place = "after"
        thinking = ""
        if self.place == "inside":
            thinking, tag, after = self._held.partition(CLOSE)
            if tag:
                self.place, self._held = "after", after
            else:
                keep = overlap(thinking, CLOSE)
                thinking, self._held = thinking[: len(thinking) - keep], thinking[len(thinking) - keep :]
        answer = ""
        if self.place == "after":
            answer, self._held = self._held, ""
        return thinking, answer

    def finish(self) -> tuple[str, str]:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return (held, "") if self.place == "inside" else ("", held)


class Reasoner:
    """How the served model thinks, if it does.

    `mode`: `think` and `off` say whether; `auto` looks for the tags in the chat template, and among the tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mode: Literal["auto", "off", "think"]):
        self._backend = tokenizer.backend_tokenizer
        ids = {tag: self._backend.token_to_id(tag) for tag in (OPEN, CLOSE)}
        written = any(tag in str(tokenizer.chat_template) for tag in ids)
        self.on = mode == "think" or (mode == "auto" and (written or ids[CLOSE] is not None))
        added = self._backend.get_added_tokens_decoder()
        self._hidden = {i: tag for tag, i in ids.items() if i in added and added[i].special}
        self._borders = {i for i, token in added.items() if token.content.strip() and token.content not in ids}
        self.ending = tuple(self._backend.encode(ENDING, add_special_tokens=False).ids)

    def thinking(
        self, prompt: Sequence[int], *, split: bool, budget: int | None = None, ends: tuple[int, ...] = ()
    ) -> Thinking:
        """What is to be done with the thinking of an answer to these tokens."""
        return Thinking(place=self.place(prompt), split=split, budget=budget, ends=ends, hidden=self._hidden)

    def place(self, prompt: Sequence[int]) -> Place:
        """Where a prompt leaves the model: the last tag says it, if it stands in the answer's own turn.

        Turns are divided by added tokens (`<|im_start|>`, `<|im_end|>`, …), so that a tag in a question is none.
        """
        start = next((i + 1 for i in reversed(range(len(prompt))) if prompt[i] in self._borders), 0)
        turn = self._backend.decode(list(prompt[start:]), skip_special_tokens=False)
        opened, closed = turn.rfind(OPEN), turn.rfind(CLOSE)
        return "before" if opened == closed else "inside" if opened > closed else "after"


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text begin a string that they do not complete."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
