"""The process that runs chat templates: whatever a template does ends within its bounds, and takes nothing along."""

import datetime
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template, _get_template_variables

from sla_jax.errors import UserError
from sla_jax.text.sandbox import TemplateProcess, TemplateRefusedError

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "tools": None}
SET = "{% set ns = namespace(x=[1], y=[1], s='a', f=1.5) %}"
TWICE = SET + "{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}"
# what each would take: time, or memory, of a machine
BOMBS = {
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a power, computed while it is compiled": "{{ 10 ** (10 ** 8) % 7 }}",
    "a shift by digits": "{{ ('9' * 4000) | int ** 99999 % 3 }}",
    "a text": "{{ 'a' * 10 ** 10 }}",
    "a list": "{{ ([0] * 10 ** 9) | length }}",
    "a text that doubles": SET + "{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "a list that is written out": TWICE + "{{ ns.x }}",
    "lists that are compared": TWICE + "{{ ns.x == ns.y }}",
    "lists as JSON": TWICE + "{{ ns.x | tojson }}",
    "center": "{{ 'a' | center(10 ** 10) }}",
    "ljust": "{{ 'a'.ljust(10 ** 10) }}",
    "a width in a format": "{{ '%10000000000d' % 1 }}",
    "a width in another format": "{{ '{:>10000000000}'.format(1) }}",
    "expandtabs": "{{ ('\t' * 1000).expandtabs(10 ** 9) }}",
    "replace": "{{ ('a' * 10 ** 6).replace('a', 'a' * 10 ** 6) }}",
    "join": "{{ ('a' * 10 ** 6).join(range(99999) | map('string')) }}",
    "batch": "{{ range(10) | batch(10 ** 10, 'x') | list | length }}",
    "slice": "{{ range(10) | slice(10 ** 10, 'x') | list | length }}",
    "indent": "{{ ('\n' * 10 ** 5) | indent(10 ** 9) }}",
    "lipsum": "{{ lipsum(n=10 ** 9) }}",
    "a macro that calls itself twice": "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n }}{% endmacro %}{{ f(99) }}",
}
# nothing of the process, of its files or of Python's insides
ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "{{ ('{0.__cl' ~ 'ass__}').format('') }}",
    "{{ [''] | map(attribute='__class__') | list }}",
    "{{ dict.__call__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__self__.__class__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{% set n = namespace(__class__=1) %}{{ n }}",
    "{% import 'os' as os %}{{ os }}",
    "{% include '/etc/passwd' %}",
    "{% set _ = messages.append(1) %}{{ messages }}",
    "{% set _ = messages[0].clear() %}{{ messages }}",
]
ALIKE = [
    "{% generation %}{{ messages[0].content }}{% endgeneration %}!",
    "{% set n = namespace(self=1, a=2) %}{% set n.a = n.a + 1 %}{{ n.a }}{{ n.self }}",
    "{{ dict(a=1, b=2) | tojson }}{{ dict.fromkeys('ab', 1) | tojson(indent=2) }}{{ {'b': 'é<', 'a': 1} | tojson }}",
    "{{ {'b': 1, 'a': 'é'} | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "  {% if true %}\n  x\n  {% endif %}\n\n{#- c -#} y\n",
    "{{ messages | map(attribute='role') | join(',') }}{{ messages[0].get('name', 'nobody') }}{{ tools }}",
]


@pytest.fixture(scope="module")
def small() -> Iterator[TemplateProcess]:
    """With a tenth of a second and a quarter of a gigabyte, so that bombs are cheap."""
    process = TemplateProcess(seconds=0.1, memory=2**28)
    yield process
    process.close()


@pytest.mark.parametrize("template", BOMBS.values(), ids=list(BOMBS))
def test_a_template_that_takes_too_much_is_stopped(small: TemplateProcess, template: str) -> None:
    with pytest.raises(UserError, match=r"was stopped: it takes more than (0.1 s of processor time|256 MiB of memory)"):
        small.render(template, ASK, None)
    assert small.render("{{ messages[0].content }}", ASK, None) == "Hi", "the next one is rendered"


def test_a_template_that_takes_too_much_to_be_read_is_stopped(small: TemplateProcess) -> None:
    with pytest.raises(UserError, match="was stopped: it takes more than"):
        small.names("{{ 'a' * 10 ** 10 }}{{ 10 ** (10 ** 8) }}")


def test_a_text_that_nobody_could_read_is_not_given() -> None:
    process = TemplateProcess()
    with pytest.raises(UserError, match="more than 16777216 characters of text"):
        process.render("{{ 'a' * (16 * 2 ** 20 + 1) }}", ASK, None)
    process.close()


@pytest.mark.parametrize("template", ESCAPES)
def test_nothing_leaves_the_sandbox(small: TemplateProcess, template: str) -> None:
    try:
        said = small.render(template, ASK, None)
    except TemplateRefusedError as error:
        said = str(error)
        assert "unsafe" in said or "loader" in said or "underscore" in said or "undefined" in said, said
    assert not any(inside in said for inside in ("<class", "uid=", "root:", "<module", "builtins"))


@pytest.mark.parametrize("template", ALIKE)
def test_templates_see_what_those_of_transformers_see(small: TemplateProcess, template: str) -> None:
    assert small.render(template, ASK, None) == _compile_jinja_template(template).render(**ASK)
    assert small.names(template) == _get_template_variables(template)


def test_one_process_renders_for_all_threads() -> None:
    process = TemplateProcess()
    with ThreadPoolExecutor(8) as pool:
        said = list(
            pool.map(lambda i: process.render("{{ i }}" + "{{ x }}" * 9, {"i": i, "x": "x" * i}, None), range(200))
        )
    assert said == [f"{i}{'x' * i * 9}" for i in range(200)] and process.started == 1
    for broken in (
        "{% if %}",
        "{{ 1 / 0 }}",
        "{{ raise_exception('no') }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    ):
        with pytest.raises(TemplateRefusedError):
            process.render(broken, ASK, None)
    assert process.started == 1, "what a template raises ends nothing"
    process.close()
    assert process.render("x", {}, None) == "x" and process.started == 2
    process.close()
    process.close()


def test_closing_waits_for_no_template() -> None:
    process = TemplateProcess(seconds=3600.0)
    with ThreadPoolExecutor(1) as pool:
        endless = pool.submit(process.render, BOMBS["loops in loops"], ASK, None)
        while process._process is None:
            pass
        process.close()
        with pytest.raises(UserError, match="was stopped: its process ended with the code -9"):
            endless.result()


def test_a_process_that_somebody_ends_is_started_again(small: TemplateProcess) -> None:
    pid = small._running().pid
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert small.render("{{ messages | length }}", ASK, None) == "1"


def test_what_is_given_is_what_json_has(small: TemplateProcess) -> None:
    given = {"a": MappingProxyType({"b": (1, 2)}), "day": datetime.date(2024, 7, 26), "no": np.bool_(False)}
    assert small.render("{{ a.b }}{{ day }}{{ no }}{{ half }}", {**given, "half": "\udc00"}, None) == (
        "[1, 2]2024-07-26False\udc00"
    )
    circle: list[Any] = []
    circle.append(circle)
    for wrong in (circle, 10**5000):
        with pytest.raises(UserError, match="cannot be written as JSON"):
            small.render("x", {"a": wrong}, None)


def test_what_a_template_raises_is_cut(small: TemplateProcess) -> None:
    with pytest.raises(TemplateRefusedError) as error:
        small.render("{{ raise_exception('x' * 10 ** 6) }}", ASK, None)
    assert len(str(error.value)) == 500


def test_the_day_is_the_one_that_was_asked_for(small: TemplateProcess) -> None:
    assert small.render("{{ strftime_now('%d %b %Y') }}", {}, "2024-07-26") == "26 Jul 2024"
    today = {datetime.date.today().isoformat()}
    said = small.render("{{ strftime_now('%Y-%m-%d') }}", {}, None)
    assert said in today | {datetime.date.today().isoformat()}
