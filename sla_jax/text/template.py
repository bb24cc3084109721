"""Chat templates: which one, with which variables, on which day, and in which form it wants contents.

Templates come with a checkpoint, from anyone, and are programs: they run in a process with a bound of time and memory
(`sandbox.py`), where they see the filters and functions of `transformers` that they were written for. `strftime_now`,
by which some write today's date into the prompt, is a function of the clock: whatever may be resumed or cached is
rendered as if on a fixed day (`with_template`), which is one of its settings. Without one it is today.
"""

import copy
import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from sla_jax.errors import UserError, nearest
from sla_jax.text.sandbox import TEMPLATES, TemplateRefusedError
from sla_jax.text.tokenizer import PreTrainedTokenizerBase

DAY = "2024-07-26"  # the day that is a setting's default; Llama 3.2's template falls back to the same one
NO_VARIABLES: Mapping[str, Any] = MappingProxyType({})
# stands for a text while it is looked for in what a template makes of it; of private-use characters
MARKER = "\ue0f1response\ue0f1"
# what rendering itself gives to a template, or what would ask `transformers` for something else than a text
RESERVED = (
    *("messages", "conversation", "add_generation_prompt", "continue_final_message", "strftime_now"),
    *("raise_exception", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens"),
)
CHOICE = "chat_template"  # the variable that names one of several templates
IMPLIED = ("tools", "documents", CHOICE)  # templates need not read these
REMEMBERED = 4096  # characters of variables up to which what a template does with them is remembered
# the roles of conversations with which a template is tried; some refuse one without a system message
OPENINGS = (("user",), ("system", "user"))
SHOWN_ROLES = 40  # of a conversation that a template refuses


class Rendering(NamedTuple):
    """How a tokenizer's chats are rendered where a call does not say."""

    variables: Mapping[str, Any] = NO_VARIABLES
    date: str | None = None  # None: today


def with_template(
    tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any] = NO_VARIABLES, date: str | None = None
) -> PreTrainedTokenizerBase:
    """The same tokenizer, whose chats are rendered with these variables, as if on the day `date` (None: today).

    Raises UserError for variables that the template does not read, and for what is no date.
    """
    check_variables(tokenizer, variables)
    if date is not None:
        check_date(date)
    bound = copy.copy(tokenizer)
    bound.chat_rendering = Rendering(dict(variables), date)
    return bound


def check_date(date: str) -> None:
    """Raise UserError for anything but a day as YYYY-MM-DD."""
    try:
        known = datetime.date.fromisoformat(date).isoformat() == date
    except ValueError:
        known = False
    if not known:
        raise UserError(f"date={date!r} is no day; expected YYYY-MM-DD, such as {DAY}.")


def check_variables(tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any]) -> None:
    """Raise UserError for variables that cannot be given, or that would have no effect."""
    if unread := unread_variables(tokenizer, variables):
        known = sorted(_names(_chosen(tokenizer, variables)) - {*RESERVED, *_given(tokenizer)})
        hint = nearest(unread[0], known)
        raise UserError(
            f"the chat template does not read the variable {unread[0]!r}, so it would have no effect; it reads "
            f"{', '.join(known) or 'none'}.{hint}"
        )


def unread_variables(tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any]) -> list[str]:
    """Those of the variables that the template never reads, so that they have no effect. Raises UserError."""
    if not variables:
        return []
    read = _names(_chosen(tokenizer, _checked(variables)))
    return [name for name in variables if name not in read and name not in IMPLIED]


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
    *,
    add_generation_prompt: bool,
) -> str:
    """What the template makes of messages that have the form which it wants. Raises UserError, whatever it raises."""
    bound = getattr(tokenizer, "chat_rendering", Rendering())
    given = {**bound.variables, **_checked(variables)}
    template = _chosen(tokenizer, given)
    values = {"tools": None, "documents": None, **_given(tokenizer), **given}
    values |= {"messages": [dict(message) for message in messages], "add_generation_prompt": add_generation_prompt}
    values.pop(CHOICE, None)
    try:
        return TEMPLATES.render(template, values, bound.date)
    except TemplateRefusedError as error:
        raise _refused(error, messages) from None


def takes_parts(tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any]) -> bool:
    """Whether the template wants contents as lists of parts, [{"type": "text", "text": …}], and loses plain text."""
    bound = getattr(tokenizer, "chat_rendering", Rendering())
    given = {**bound.variables, **variables}
    template = _chosen(tokenizer, given)
    try:
        read = _names(template)
    except UserError:  # rendering will say so
        return False
    known = {name: value for name, value in {**_given(tokenizer), **given}.items() if name in read}
    values = json.dumps(known, sort_keys=True, default=str)
    return (_loses_text if len(values) <= REMEMBERED else _loses_text.__wrapped__)(template, values)


@functools.lru_cache(maxsize=32)
def _loses_text(template: str, given: str) -> bool:
    """Tried with a marker and the variables of the JSON `given`.

    A template that merely prints a list as Python does is none that wants one."""

    def shows(content: str | list[dict[str, str]]) -> bool:
        for roles in OPENINGS:
            chat = [{"role": role, "content": content} for role in roles]
            values = {"tools": None, "documents": None, **json.loads(given)}
            try:
                said = TEMPLATES.render(template, {**values, "messages": chat, "add_generation_prompt": True}, None)
            except TemplateRefusedError:  # it is tried, and may refuse anything
                continue
            return MARKER in said and repr(MARKER) not in said
        return False

    return not shows(MARKER) and shows([{"type": "text", "text": MARKER}])


def _checked(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """The variables. Raises UserError for names that cannot be given."""
    for name in variables:
        if name in RESERVED:
            raise UserError(
                f"the template variable {name!r} is not free: it is given by whoever renders the chat. Leave it out."
            )
    return variables


def _chosen(tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any]) -> str:
    """The template's text: of several, the one that `chat_template` names, else the one for tools if there are tools,
    else `default`, else the only one. Raises UserError."""
    templates, name = tokenizer.chat_template, variables.get(CHOICE)
    if not templates:
        raise UserError(
            "this tokenizer has no chat template (chat_template.jinja); give a plain prompt instead of messages."
        )
    if isinstance(templates, str):
        templates = {"default": templates}
    if not isinstance(templates, Mapping) or not all(isinstance(one, str) for one in templates.values()):
        raise UserError(
            f"this tokenizer's chat_template is {templates!r:.80}; expected a text, or a list of {{name, template}} "
            "with a text each. Correct tokenizer_config.json, or put the template into chat_template.jinja."
        )
    if name is None:
        usual = [*(["tool_use"] if variables.get("tools") else []), "default"]
        name = next((one for one in usual if one in templates), next(iter(templates)) if len(templates) == 1 else None)
    if name is None:
        raise UserError(
            f"this tokenizer has several chat templates and none is called default: {', '.join(templates)}. Name one "
            f"by the template variable {CHOICE}."
        )
    if name not in templates:
        shown, known = str(name)[:40], ", ".join(templates)
        raise UserError(f"there is no chat template {shown!r}; this tokenizer has: {known}.{nearest(shown, templates)}")
    return templates[name]


def _given(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Special tokens by their names: bos_token and the like."""
    return dict(tokenizer.special_tokens_map)


@functools.lru_cache(maxsize=32)
def _names(template: str) -> frozenset[str]:
    """All variables that a template reads. Raises UserError if it is no template."""
    try:
        return TEMPLATES.names(template)
    except TemplateRefusedError as error:  # nested too deeply, it is a RecursionError
        raise UserError(f"the chat template cannot be read ({error}).") from None


def _refused(error: TemplateRefusedError, messages: Sequence[Mapping[str, Any]]) -> UserError:
    roles = ", ".join(str(message["role"])[:40] for message in messages[:SHOWN_ROLES])
    more = f" and {len(messages) - SHOWN_ROLES} more" if len(messages) > SHOWN_ROLES else ""
    return UserError(f"the chat template refuses these messages ({error}); their roles are: {roles}{more}.")
