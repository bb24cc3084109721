"""Bodies: what reading and refusing one costs is bounded by its size, whatever is wrong with it and however often.

Work is counted here (names compared, errors made, values held, threads used); seconds are in benchmarks/hostile_bodies.
"""

import difflib
import gc
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.requests import Request

from benchmarks import hostile_bodies
from sla_jax.errors import nearest
from sla_jax.serving import bodies, messages, wire
from sla_jax.serving.bodies import LARGE, BodyRoute
from sla_jax.serving.complaints import MAX_NAMES
from sla_jax.serving.errors import ApiError
from sla_jax.serving.settings import Limits
from sla_jax.serving.wire import MAX_PARTS, MAX_VALUES, Extent, extent_of, parse_json
from tests.serving.asgi import call
from tests.serving.fake import FakeService, fake_app
from tests.serving.test_http_bad import CHAT, HELLO, JSON, POSTS, TEXT, refused
from tests.serving.test_http_fields import BODIES, STRICT

SERVICE = FakeService(sync=True)
APP = fake_app(SERVICE, limits=Limits())
MODELS = {
    route.path: bodies.model_of(route)
    for router in APP.router.routes
    for route in getattr(getattr(router, "original_router", None), "routes", [router])
    if isinstance(route, BodyRoute) and bodies.model_of(route)
}
SHORT = 1000  # characters that an error or a line of the log may have


def test_every_route_with_a_body_reads_it_here():
    assert set(MODELS) == set(POSTS)


# ---- JSON ----


class Name(str):
    """A name that counts how often it is hashed and compared."""

    work = 0

    def __hash__(self) -> int:
        Name.work += 1
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        Name.work += 1
        return super().__eq__(other)


@pytest.mark.parametrize("count", [10, 3000])
def test_a_name_said_twice_is_found_in_one_go(count):
    names = [f"{number:x}" for number in range(count)]
    Name.work = 0
    pairs = [(Name(name), 0) for name in [*names, names[-1]]]
    with pytest.raises(ValueError, match=f"{names[-1]}' stands there twice"):
        wire._distinct(pairs)
    assert Name.work <= 8 * len(pairs)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('a"\\[{,é', max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('a"\\[{,', max_size=3), inner, max_size=4),
    max_leaves=12,
)


def walk(value: Any) -> Iterator[Any]:
    yield value
    for item in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from walk(item)


def names_of(value: Any) -> int:
    return sum(len(one) for one in walk(value) if isinstance(one, dict))


@given(VALUES, st.booleans(), st.sampled_from([None, 2]))
def test_the_extent_of_a_text_is_what_reading_it_makes(value, ascii, indent):
    text = json.dumps(value, ensure_ascii=ascii, indent=indent).encode()
    everything = list(walk(value))
    parts = sum(isinstance(one, dict | list | str) for one in everything)
    found = extent_of(text)
    assert found.parts == parts
    assert len(everything) - names_of(value) <= found.values <= 2 * len(everything)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":' * MAX_PARTS,
        b"[" + b"{}," * MAX_PARTS + b"0]",
        b"[" + b'"",' * (MAX_PARTS + 1) + b"0]",
        b"{" + b",".join(b'"%x":0' % number for number in range(MAX_PARTS + 1)) + b"}",
        b"[" + b"0," * MAX_VALUES + b"0]",
    ],
    ids=["nested", "objects", "texts", "names", "numbers"],
)
def test_a_body_of_too_many_values_is_refused_before_any_of_them_is_made(monkeypatch, body):
    monkeypatch.setattr(wire.json, "loads", None)
    with pytest.raises(ApiError, match="this server reads at most") as error:
        parse_json(body)
    assert error.value.status == 413


def test_brackets_commas_and_quotes_in_a_text_are_no_values():
    text = '[{,"\\' * MAX_PARTS
    assert parse_json(json.dumps([text]).encode()) == [text]
    assert Extent(MAX_PARTS, MAX_VALUES).check("it") is None


PIECES = st.lists(
    st.sampled_from(["\\ud83d", "\\ude00", "\\uD83D", "\\\\", "ud83d", '\\"', "\\n", "a", "é"]), max_size=6
)


@pytest.mark.parametrize("piece", [1, 7, wire.PIECE])
@given(pieces=PIECES)
def test_half_a_surrogate_pair_is_found_wherever_it_stands(piece, pieces):
    """Also across the ends of the pieces in which it is looked for."""
    wire.PIECE, usual = piece, wire.PIECE
    try:
        check_halves(f'["{"".join(pieces)}"]')
    finally:
        wire.PIECE = usual


def check_halves(body: str) -> None:
    try:
        json.loads(body)[0].encode()
    except UnicodeEncodeError:
        with pytest.raises(ApiError, match="surrogate"):
            parse_json(body.encode())
    else:
        assert parse_json(body.encode()) == json.loads(body)


# ---- models ----


def lists_in(schema: Any) -> Iterator[dict[str, Any]]:
    """Every list in a pydantic core schema."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            yield schema
        for item in schema.values():
            yield from lists_in(item)
    elif isinstance(schema, list | tuple):
        for item in schema:
            yield from lists_in(item)


@pytest.mark.parametrize("path", POSTS)
def test_every_list_ends_at_its_first_bad_element(path):
    schemas = list(lists_in(MODELS[path].__pydantic_core_schema__))
    assert all(schema.get("fail_fast") for schema in schemas), f"a list of {path} is not body.Many"
    assert schemas or path in ("/abort_request", "/ck_check_reward_score")


MANY = 500
WRONG: list[Any] = [
    [{}] * MANY,
    [0.5] * MANY,
    [[{}] * MANY] * MANY,
    ["a", *[{}] * MANY],
    {f"n{number}": {} for number in range(MANY)},
    [{"role": "user", "content": [{}] * MANY}],
    [{"role": "user", "content": "a", "tool_calls": [0] * MANY}],
    [{"role": "user", "content": "a", "unknown": 0}] * MANY,
]


@pytest.mark.parametrize("path", POSTS)
def test_a_body_with_many_mistakes_has_few_errors(path):
    model = MODELS[path]
    for name in model.model_fields:
        for wrong in WRONG:
            try:
                model.model_validate({**BODIES[path], name: wrong})
            except ValidationError as error:
                assert error.error_count() <= 12, (name, wrong[:1] if isinstance(wrong, list) else "an object")


def calling(arguments: str, calls: int = 1) -> dict[str, Any]:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"messages": [HELLO["messages"][0], {"role": "assistant", "tool_calls": [call] * calls}], "max_tokens": 1}


@pytest.mark.parametrize(("texts", "calls"), [(MAX_PARTS, 1), (MAX_PARTS // 10, 11)])
def test_the_arguments_of_calls_are_counted_before_they_are_read(monkeypatch, texts, calls):
    """They are JSON in a text of the body, which the template gets as an object."""
    assert call(APP, CHAT, calling('{"a": [{}]}')).status_code == 200
    monkeypatch.setattr(messages, "_with_arguments", None)
    body = calling('{"a": [' + ",".join(["{}"] * texts) + "]}", calls)
    assert "the arguments of all calls" in refused(call(APP, CHAT, body), 413)["message"]


def test_a_call_that_is_none_of_a_function_is_taken_as_it_is():
    body = calling("{}")
    body["messages"][1]["tool_calls"] = [{"type": "custom", "function": 5}]
    assert call(APP, CHAT, body).status_code == 200


# ---- where it is done ----


@pytest.mark.parametrize("path", POSTS)
def test_large_bodies_are_read_off_the_event_loop_and_every_body_once(monkeypatch, path):
    seen, original = list[bool](), bodies.parse_json

    def parse(body: bytes) -> Any:
        seen.append(threading.current_thread().name == "a reader of large bodies")
        return original(body)

    monkeypatch.setattr(bodies, "parse_json", parse)
    monkeypatch.setattr(Request, "json", None)  # FastAPI's own way
    for size in (1, LARGE):
        answer = call(APP, path, {**BODIES[path], "padding": "a" * size})
        assert answer.status_code == 200, answer.text
    assert seen == [False, True]


HELD = 3 * LARGE
ITEMS = ",".join(["70000"] * HELD)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, '{"messages": [%s]}'),
        (TEXT, '{"prompt": [%s]}'),
        (TEXT, '{"prompt": "a", "stop_token_ids": [%s]}'),
        ("/detokenize", '{"tokens": [%s]}'),
        ("/v1/rewards", '{"prompt": "a", "token_ids": [%s]}'),
        ("/tokenize", '{"prompt": "a", "unknown": [%s]}'),
        (CHAT, '{"model": "none", "messages": [{"role": "user", "content": "a"}], "unknown": [%s]}'),
    ],
)
def test_nothing_of_a_large_body_is_held_after_its_answer(path, body):
    """With the collector off: a cycle of an error and its frames would keep it until there are enough of them."""
    content = (body % ITEMS).encode()
    call(APP, path, content=content, headers=JSON)  # what is made once is no part of this
    gc.collect()
    gc.disable()
    try:
        call(APP, path, content=content, headers=JSON)
        while APP.state.bodies._threads._busy:  # the thread hears last that the answer was taken
            call(APP, "/health")
        assert not [one for one in gc.get_objects() if type(one) is list and len(one) == HELD]
    finally:
        gc.enable()


def test_the_bodies_of_the_benchmark_are_as_large_as_may_be():
    most = Limits().body_bytes
    sizes = {name: len(body) for name, (path, body) in hostile_bodies.bodies().items() if path in POSTS}
    assert len(sizes) == len(hostile_bodies.bodies()) and all(0.98 * most <= size <= most for size in sizes.values())


# ---- names ----

WORDS = st.text("abc", max_size=30)


@given(st.text("abc", max_size=90), st.lists(WORDS, max_size=5))
def test_a_name_that_is_too_long_to_be_near_is_near_by_no_count(name, known):
    close = difflib.get_close_matches(name, [other for other in known if other != name], n=1, cutoff=0.6)
    assert nearest(name, known) == (f" Did you mean {close[0]!r}?" if close else "")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {**HELLO, "model": "tiny:sla" * 10**5}),
        (CHAT, {**HELLO, "search": {"profile": "sla-" * 10**5}}),
        (CHAT, {**HELLO, "search": {"width" * 10**5: 1}}),
        (CHAT, {**HELLO, "search": {"profile": "wide" * 10**5, "method": "sla"}, "model": "tiny:sla"}),
    ],
)
def test_long_names_are_not_compared_and_come_back_cut(monkeypatch, path, body):
    compared = list[str]()
    monkeypatch.setattr(difflib, "get_close_matches", lambda name, *more, **options: compared.append(name) or [])
    error = refused(call(APP, path, body), 404 if "tiny:slat" in body.get("model", "") else 400)
    assert not compared and len(error["message"]) < SHORT and len(error["param"] or "") < SHORT


@pytest.mark.parametrize("path", POSTS)
def test_unknown_names_are_told_as_a_few_and_a_number(path, caplog):
    many = {f"unknown{number}": 0 for number in range(MANY)}
    answer = call(APP, path, {**BODIES[path], **many})
    told = answer.headers["x-ignored-fields"].split(",")
    assert told == [*(f"unknown{number}" for number in range(MAX_NAMES - 1)), f"+{MANY - MAX_NAMES + 1}"]
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) < MAX_NAMES
    assert refused(call(STRICT, path, {**BODIES[path], **many}))["param"] == "unknown0"


# ---- what a client wrote is cut ----

LONG = "long\n" * 20_000


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        (CHAT, {**HELLO, "user": LONG}, {}),
        (CHAT, {**HELLO, "model": LONG}, {}),
        (CHAT, {**HELLO, LONG: 1}, {}),
        (CHAT, {**HELLO, "chat_template_kwargs": {LONG: 1}}, {}),
        (CHAT, {**HELLO, "chat_template_kwargs": {"chat_template": LONG}}, {}),
        (CHAT, {"messages": [{"role": LONG, "content": "a"}]}, {}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": LONG}]}]}, {}),
        (CHAT, {**HELLO, "tools": LONG}, {}),
        (CHAT, {**HELLO, "logit_bias": {LONG: 1}}, {}),
        (TEXT, {"prompt": LONG}, {}),
        (TEXT, {"prompt": "a", "suffix": LONG}, {}),
        ("/v1/rewards", {"prompt": "a", "response": LONG}, {}),
        ("/abort_request", {"request_id": LONG}, {}),
        ("/ck_generate", {"prompt": "a", "ck_mode": LONG}, {}),
        (f"/{'x' * 50_000}", {}, {}),
        (TEXT, {"prompt": "a"}, {"content-type": "x" * 50_000}),
        (TEXT, {"prompt": "a"}, {"x-request-id": "x" * 50_000}),
    ],
)
def test_no_answer_and_no_line_of_the_log_repeats_what_is_long(path, body, headers, caplog):
    caplog.set_level(logging.INFO, "sla_jax")
    answer = call(APP, path, body, headers=headers)
    assert len(answer.text) < SHORT and all(len(value) < SHORT for value in answer.headers.values()), answer.text[:200]
    assert caplog.records and all(len(record.getMessage()) < SHORT for record in caplog.records)


def test_no_error_object_is_long_whoever_forgot_to_cut():
    error = ApiError(400, LONG, param=LONG).body["error"]
    assert len(error["message"]) < 5000 and len(error["param"]) < SHORT
