"""What pydantic says of a body, in one sentence: the field, what is wrong with it, the nearest name that exists."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from sla_jax.errors import nearest
from sla_jax.serving.errors import ApiError, bad
from sla_jax.serving.schema import NO_OPS


def complaint(errors: Sequence[Mapping[str, Any]], model: Any) -> ApiError:
    """The first of the errors (an unknown name before all others), in a body that should have been a `model`."""
    first = min(errors, key=lambda error: error["type"] != "extra_forbidden")
    place = [step for step in first["loc"] if step != "body"]
    if not place:
        return bad("the body has to be a JSON object.")
    field = str(place[0])
    if first["type"] == "extra_forbidden":
        return _unknown(place, model)
    if first["type"] == "missing":
        name = ".".join(map(str, place))
        return bad(f"{name} is missing.", name)
    said = dict.fromkeys(_lower(error["msg"]) for error in errors if error["loc"][1:2] == (place[0],))
    message = f"{field}: {' or '.join(said)}."
    last = str(place[-1])
    unable = field if field in NO_OPS else last if last in NO_OPS else None
    if unable:
        message = f"{unable} is not honoured by this server; leave it out ({' or '.join(said)})."
    return bad(message, field)


def _unknown(place: Sequence[Any], model: Any) -> ApiError:
    """A name that does not exist, where it stands, and the one that was perhaps meant."""
    name, known = str(place[-1]), sorted(_names(model, place[:-1]))
    path = ".".join(map(str, place))[:200]
    return bad(f"{path!r} is not a field that this server honours.{nearest(name[:100], known)}", path)


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
    return message[:1].lower() + message[1:300]
