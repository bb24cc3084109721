"""Runs chat templates, which are programs of strangers, in a process of its own that the system bounds and can end.

`sandbox.py` starts this file as a script, so that it imports Jinja and nothing of ours. A frame is its length as eight
bytes, big-endian, and its text as UTF-8. A request is JSON: {do: "render", template, values, date} or {do: "names",
template}; a reply is a letter of `REPLIES` and the text that it announces. Nothing that Python or Jinja computes for a
template can be trusted to end (`10 ** 10 ** 8`, `'a'.center(10 ** 10)`, the text of a list that holds itself by the
dozen), so none of it is counted here: processor time and memory are the system's to count. Processor time does not
pass while a loaded machine does something else.

Templates see what those of `transformers` see, for which they were written (utils/chat_template_utils.py of 5.23,
compared in the tests): its sandbox, filters, functions, tags, and its own `dict` and `namespace`.
"""

import datetime
import functools
import json
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

import jinja2.ext
from jinja2 import TemplateError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

SAID, REFUSED, TOO_MUCH = REPLIES = b"SRT"  # a text; what the template raised; what it would have taken too much of
LONGEST = 16 * 2**20  # characters of a text
SHOWN = 500  # characters of what a template raised
PATIENCE = 60.0  # seconds for what waits without using the processor; nothing is known that does


class Generation(jinja2.ext.Extension):
    """Reads `{% generation %}…{% endgeneration %}`, which marks an assistant's text for training and writes it."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """See jinja2.ext.Extension."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Macro) -> str:
        return caller()


class TemplateDict:
    """Makes dictionaries: `dict` itself would give a template the attributes of a type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """See dict.fromkeys."""
        return dict.fromkeys(*args, **kwargs)


class TemplateNamespace(Namespace):
    """Jinja's `namespace`, without attributes that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` is in args, so that an attribute may be called that
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r:.80}: it begins with an underscore")


def _raise_exception(message: Any) -> NoReturn:
    raise TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> ImmutableSandboxedEnvironment:
    """What a template is compiled in."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals |= {"raise_exception": _raise_exception, "dict": TemplateDict(), "namespace": TemplateNamespace}
    return made


ENVIRONMENT = environment()


@functools.lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template:
    return ENVIRONMENT.from_string(template)


def render(template: str, values: dict[str, Any], date: str | None) -> str:
    """The text that a template makes of `values`, as if on the day `date` (None: today). Raises whatever it raises."""
    day = datetime.datetime.now() if date is None else datetime.datetime.fromisoformat(date)
    return _compiled(template).render(values | {"strftime_now": day.strftime})


def names(template: str) -> str:
    """All variables that a template reads, as a JSON list. Raises TemplateError, RecursionError, …"""
    return json.dumps(sorted(meta.find_undeclared_variables(ENVIRONMENT.parse(template))))


ACTIONS: dict[str, Callable[..., str]] = {"render": render, "names": names}


def answer(request: bytes) -> tuple[int, str]:
    """(reply's letter, text) to one request."""
    try:
        asked = json.loads(request)
        text = ACTIONS[asked.pop("do")](**asked)
    except MemoryError:
        return TOO_MUCH, "memory"
    except Exception as error:  # a template is a program: it may raise anything
        return REFUSED, reason(error)
    return (SAID, text) if len(text) <= LONGEST else (TOO_MUCH, "text")


def reason(error: Exception) -> str:
    """What a template raised, in one line; what it says itself as it says it."""
    said, kind = " ".join(str(error)[: 4 * SHOWN].split())[:SHOWN], type(error).__name__
    return said if said and isinstance(error, TemplateError) else f"{kind}: {said}" if said else kind


def serve(requests: BinaryIO, replies: BinaryIO, seconds: float) -> None:
    """Answer requests until there are no more; one that takes more than `seconds` of processor time ends the process.

    The signal that a timer sends has no handler, which Python would run only between two of its own steps."""
    while size := requests.read(8):
        request = requests.read(int.from_bytes(size))
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        letter, text = answer(request)
        raw = text.encode("utf-8", "surrogatepass")
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(bytes([letter]) + len(raw).to_bytes(8) + raw)
        replies.flush()


def main(seconds: float, memory: int) -> None:
    """Answer the requests of standard input, in at most `memory` bytes of address space (Linux counts them)."""
    for ends in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(ends, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started this; its end is the end of the requests
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if sys.platform == "linux":
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        memory = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    serve(sys.stdin.buffer, sys.stdout.buffer, seconds)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
