"""What is wrong with a body, in one sentence: the field, what pydantic says of it, the nearest name that exists.

A name that no model has is no fault, unless it stands in an object of ours or the server is strict: clients of other
servers send such fields. They have no effect, and the answer's header x-ignored-fields says so.
"""

import contextlib
import itertools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from sla_jax.errors import UserError, nearest, quoted
from sla_jax.serving.body import NOT_HONOURED, without_nulls
from sla_jax.serving.errors import ApiError, bad
from sla_jax.text import PreTrainedTokenizerBase, unread_variables

log = logging.getLogger(__name__)
Path = tuple[str | int, ...]
MAX_NAME, MAX_NAMES, MAX_TOLD = 64, 32, 1000  # characters of a name, names in a header, names that the log remembers


class UnknownFields:
    """Finds the fields of a body that nobody knows, before anything else looks at it; for every route alike.

    Likewise variables that the chat template does not read. Each name is told to the log once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strict: bool):
        self._tokenizer, self._strict, self._told = tokenizer, strict, set[str]()

    def of(self, model: Any, body: Any) -> list[str]:
        """Their names, as words of a header: `MAX_NAMES` at most, where the last one counts the rest ("+17").

        Raises ApiError if the server is strict."""
        if not isinstance(body, dict):
            return []
        names, more = dict[str, None](), 0
        for path in itertools.chain(unknown_fields(model, body), self._unread(model, body)):
            if self._strict:
                raise _unknown(path, model)
            name = _printable(".".join(step[:MAX_NAME] for step in path if isinstance(step, str)))
            if name not in names and len(names) == MAX_NAMES - 1:
                more += 1
            else:
                names[name] = None
        for name in names:
            if name not in self._told and len(self._told) < MAX_TOLD:
                self._told.add(name)
                log.warning("requests have the field %s, which this server does not know and ignores", name)
        return [*names, *([f"+{more}"] if more else [])]

    def _unread(self, model: Any, body: dict[str, Any]) -> Iterator[Path]:
        """The variables without effect; what cannot be a variable is an error later on."""
        given = body.get("chat_template_kwargs")
        if "chat_template_kwargs" in model.model_fields and isinstance(given, dict):
            with contextlib.suppress(UserError):
                yield from (("chat_template_kwargs", name) for name in unread_variables(self._tokenizer, given))


def unknown_fields(model: Any, value: Any) -> Iterator[Path]:
    """Where a value that should become a `model` has names that it does not know; pydantic looks for those in ours."""
    models = list(_models(model))
    if not models or any(one.model_config.get("extra") == "forbid" for one in models):
        return
    known = {name: field.annotation for one in models for name, field in one.model_fields.items()}
    if isinstance(value, dict):
        yield from _unknown_of(known, value)
    elif isinstance(value, list):
        for position, item in enumerate(value):
            if isinstance(item, dict):
                yield from ((position, *path) for path in _unknown_of(known, item))


def _unknown_of(known: Mapping[str, Any], value: dict[str, Any]) -> Iterator[Path]:
    """The same of an object and the annotations of its fields."""
    for name, item in without_nulls(value).items():
        if name not in known:
            yield (name,)
        elif isinstance(item, dict | list):
            yield from ((name, *path) for path in unknown_fields(known[name], item))


def _printable(name: str) -> str:
    """A name that a client chose, as a word of a header and of the log."""
    return re.sub(r"[^\w.-]", "?", name[:MAX_NAME], flags=re.ASCII) or "?"


def complaint(errors: Sequence[Mapping[str, Any]], model: Any) -> ApiError:
    """The first of the errors (an unknown name before all others), in a body that should have been a `model`.

    They are few, however much is wrong: lists fail at their first bad element, and objects of ours at their first
    unknown names (`body.Body`)."""
    first = min(errors, key=lambda error: error["type"] != "extra_forbidden")
    place = first["loc"]
    if not place:
        whole = first["type"] == "value_error"  # of fields that do not go together
        return bad(f"{_lower(first['msg'])}." if whole else "the body has to be a JSON object.")
    field = str(place[0])
    if first["type"] == "extra_forbidden":
        return _unknown(place, model)
    if first["type"] == "missing":
        name = ".".join(map(str, place))
        return bad(f"{name} is missing.", name)
    said = dict.fromkeys(_lower(error["msg"]) for error in errors if error["loc"][0] == place[0])
    message = f"{field}: {' or '.join(said)}."
    if first["type"] == NOT_HONOURED:
        message = f"{place[-1]} is not honoured by this server; leave it out ({' or '.join(said)})."
    return bad(message, field)


def _unknown(place: Sequence[Any], model: Any) -> ApiError:
    """A name that does not exist, where it stands, and the one that was perhaps meant."""
    name, known = str(place[-1]), sorted(_names(model, place[:-1]))
    path = ".".join(map(str, place))
    return bad(f"{quoted(path)} is not a field that this server honours.{nearest(name, known)}", path)


def _names(model: Any, path: Sequence[Any]) -> list[str]:
    """The fields of the model at a path."""
    for step in path:
        field = model.model_fields.get(step) if isinstance(model, type) and issubclass(model, BaseModel) else None
        model = next(_models(field.annotation), model) if field else model
    found = next(_models(model), None)
    return list(found.model_fields) if found else []


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _lower(message: str) -> str:
    """pydantic's message as part of our sentence."""
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:300]
