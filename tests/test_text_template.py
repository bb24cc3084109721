"""Templates: as `transformers` renders them, on any day, with variables, in the form that they want, or refused."""

import copy
import datetime
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sla_jax.errors import UserError
from sla_jax.text import (
    MARKER,
    chat_ids,
    chat_text,
    check_date,
    check_variables,
    response_ids,
    text_of,
    turn_end,
    unread_variables,
    with_template,
)
from sla_jax.text.template import _loses_text
from tests import tiny
from tests.tiny import CHATML

ASK = [{"role": "user", "content": "Hi"}]
THINK = (
    "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}"
)
QWEN3 = CHATML + THINK  # as Qwen3's, less its history
TODAY = (
    "{% if strftime_now is defined %}{% set date = strftime_now('%d %b %Y') %}{% else %}{% set date = '?' %}{% endif %}"
    "Today: {{ date }}\n" + CHATML
)
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'text' %}"
    "{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EITHER = PARTS.replace("{% for part", "{% if m.content is string %}{{ m.content }}{% else %}{% for part", 1).replace(
    "{% endif %}{% endfor %}<|im_end|>", "{% endif %}{% endfor %}{% endif %}<|im_end|>", 1
)
TOOLS = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}[{{ m.role }}]"
    "{{ m.content if m.content is defined else '' }}{% for call in m.tool_calls or [] %}{{ call | tojson(indent=1) }}"
    "{% endfor %}{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TRIM = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}<|im_end|>{% endfor %}"
DEEP = "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
CALL = {"type": "function", "function": {"name": "f", "arguments": {"é": 1}}}
MESSAGE = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": TEXT}),
    st.just({"role": "assistant", "content": None, "tool_calls": [CALL]}),
    st.just({"role": "assistant", "tool_calls": [CALL]}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": TEXT, "reasoning": TEXT | st.none()}),
)


def of(template):
    return tiny.byte_level_tokenizer(template=template)


# ---- as transformers does it ----


@pytest.mark.parametrize(
    "template", [CHATML, QWEN3, EITHER, TOOLS, TRIM], ids=["chatml", "qwen3", "parts", "tools", "trim"]
)
@given(messages=st.lists(MESSAGE, min_size=1, max_size=3), answer=st.booleans(), thinks=st.booleans())
def test_templates_are_rendered_as_transformers_does(template, messages, answer, thinks):
    tokenizer = of(template)
    more = {"tools": [CALL]} if template == TOOLS else {"enable_thinking": thinks}
    theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer, **more)
    assert chat_text(tokenizer, messages, add_generation_prompt=answer, variables=more) == theirs


@pytest.mark.parametrize("template", [CHATML, TRIM, EITHER, PARTS], ids=["chatml", "trim", "either", "parts"])
@given(text=TEXT.filter(str.strip))
def test_the_last_message_is_continued_as_transformers_does(template, text):
    tokenizer = of(template)
    parts = [{"type": "text", "text": text}] if template == PARTS else text
    theirs = tokenizer.apply_chat_template(
        [
            {**ASK[0], "content": "Hi" if template != PARTS else [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": parts},
        ],
        tokenize=False,
        continue_final_message=True,
    )
    chat = [*ASK, {"role": "assistant", "content": text}]
    assert chat_text(tokenizer, chat, add_generation_prompt=False, continue_final_message=True) == theirs


def test_what_cannot_be_continued_is_refused():
    both = {"add_generation_prompt": True, "continue_final_message": True}
    with pytest.raises(UserError, match="set one of them to false"):
        chat_ids(of(CHATML), ASK, **both)
    with pytest.raises(UserError, match="does not write the last message as it is"):
        chat_ids(of("{{ messages | length }}"), ASK, add_generation_prompt=False, continue_final_message=True)


# ---- whatever a template raises ----


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% if tools | length > 0 %}x{% endif %}", "TypeError: object of type 'NoneType' has no len()"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ messages[7].content }}", "has no element 7"),
        ("{{ range(10 ** 9) | list }}", "OverflowError"),
        ("{{ ''.__class__ }}{{ messages.__class__.mro() }}", "unsafe"),
        ("{% if %}", "Expected an expression"),
        ("{{ 'a' | no_such_filter }}", "no_such_filter"),
        ("{{ raise_exception('user first') }}", "(user first)"),
        ("{{ int('x') }}", "'int' is undefined"),
        ("{{ raise_exception('two\n  lines') }}", "(two lines)"),
        ("{{ raise_exception('') }}", "(TemplateError)"),
        (DEEP, "RecursionError"),
    ],
)
def test_whatever_a_template_raises_is_told(template, said):
    with pytest.raises(UserError, match="chat template refuses these messages") as error:
        chat_ids(of(template), ASK)
    assert said in str(error.value) and str(error.value).endswith("their roles are: user.")


# ---- several templates ----


def test_of_several_templates_one_is_chosen():
    two = of({"tool_use": "tools {{ tools }}", "default": "plain", "rag": "rag"})
    assert chat_text(two, ASK) == "plain"
    assert chat_text(two, ASK, variables={"tools": [1]}) == "tools [1]"
    assert chat_text(two, ASK, variables={"chat_template": "rag"}) == "rag"
    assert chat_text(of({"rag": "rag"}), ASK) == "rag"
    assert chat_text(of("alone"), ASK, variables={"chat_template": "default"}) == "alone"
    assert chat_text(with_template(two, {"chat_template": "rag"}), ASK) == "rag"


def test_a_choice_that_is_none_names_the_templates():
    two = of({"tool_use": CHATML, "rag": CHATML})
    with pytest.raises(
        UserError, match="none is called default: tool_use, rag. Name one by the template variable chat_"
    ):
        chat_ids(two, ASK)
    with pytest.raises(
        UserError, match=r"no chat template 'rga'; this tokenizer has: tool_use, rag. Did you mean 'rag'"
    ):
        chat_ids(two, ASK, variables={"chat_template": "rga"})
    with pytest.raises(UserError, match="there is no chat template '{{ messages }}'; this tokenizer has: default"):
        chat_ids(of(CHATML), ASK, variables={"chat_template": "{{ messages }}"})


@pytest.mark.parametrize("template", [5, True, {"default": 5}, {"default": CHATML, "rag": None}])
def test_a_template_that_is_no_text_is_told(template):
    with pytest.raises(UserError, match="chat_template is .*; expected a text, or a list of {name, template}"):
        chat_ids(of(template), ASK)
    assert turn_end(of(template)) is None, "a plain prompt goes without it"


# ---- variables ----


def test_variables_reach_the_template():
    tokenizer = of(QWEN3)
    plain, off = chat_text(tokenizer, ASK), chat_text(tokenizer, ASK, variables={"enable_thinking": False})
    assert off == plain + "<think>\n\n</think>\n\n"
    assert chat_text(tokenizer, ASK, variables={"enable_thinking": True}) == plain


def test_variables_of_a_call_go_before_those_of_the_tokenizer():
    bound = with_template(of(QWEN3), {"enable_thinking": False})
    assert chat_text(bound, ASK).endswith("</think>\n\n")
    assert chat_text(bound, ASK, variables={"enable_thinking": True}).endswith("assistant\n")
    assert chat_text(of(QWEN3), ASK).endswith("assistant\n")


@pytest.mark.parametrize(
    "name", ["messages", "add_generation_prompt", "continue_final_message", "strftime_now", "tokenize"]
)
def test_what_rendering_gives_itself_cannot_be_given(name):
    with pytest.raises(UserError, match=f"the template variable '{name}' is not free"):
        chat_ids(of(CHATML), ASK, variables={name: 1})
    with pytest.raises(UserError, match=f"the template variable '{name}' is not free"):
        with_template(of(CHATML), {name: 1})


def test_variables_that_nobody_reads_are_told():
    tokenizer = of(QWEN3)
    assert unread_variables(tokenizer, {"enable_thinking": 1, "tools": [], "x": 1}) == ["x"]
    with pytest.raises(
        UserError, match="does not read the variable 'enable_thinkin', .* Did you mean 'enable_thinking'"
    ):
        check_variables(tokenizer, {"enable_thinkin": False})
    with pytest.raises(UserError, match="it reads none"):
        with_template(of(CHATML), {"enable_thinking": False})
    with pytest.raises(UserError, match="has no chat template"):
        with_template(of(None), {"enable_thinking": False})
    with pytest.raises(UserError, match="cannot be read .RecursionError"):
        with_template(of(DEEP), {"enable_thinking": False})
    assert chat_text(tokenizer, ASK, variables={"x": 1}) == chat_text(tokenizer, ASK), "rendering itself is not strict"


@given(response=TEXT)
def test_what_only_opens_an_answer_stays_the_prompts(response):
    """Qwen3's empty thoughts stand in the prompt and, here, not in the turn: the response is behind them."""
    tokenizer, off = of(QWEN3), {"enable_thinking": False}
    before, said = response_ids(tokenizer, ASK, response, variables=off)
    assert before == chat_ids(tokenizer, ASK, variables=off)
    assert tokenizer.decode(said) == response + "<|im_end|>"


def test_an_answer_that_the_template_rewrites_is_still_refused():
    cut = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
    with pytest.raises(UserError, match="writes the prompt differently"):
        response_ids(of(cut + THINK), ASK, "so</think>it is", variables={"enable_thinking": False})


# ---- the day ----


@given(day=st.dates(datetime.date(1970, 1, 1)))
def test_a_tokenizer_has_the_day_that_it_was_given(day):
    assert chat_text(with_template(of(TODAY), date=day.isoformat()), ASK).startswith(
        f"Today: {day.strftime('%d %b %Y')}"
    )


def test_without_a_day_it_is_today():
    before = datetime.date.today()
    said = chat_text(of(TODAY), ASK)
    assert said.splitlines()[0] in {f"Today: {day.strftime('%d %b %Y')}" for day in (before, datetime.date.today())}


@pytest.mark.parametrize("date", ["", "today", "2024-7-26", "20240726", "2024-W30-5", "2024-02-30", "26 Jul 2024"])
def test_what_is_no_day_is_refused(date):
    with pytest.raises(UserError, match="is no day; expected YYYY-MM-DD"):
        check_date(date)


# ---- the form of contents ----


@pytest.mark.parametrize("template", [PARTS, EITHER, CHATML], ids=["parts", "either", "text"])
@given(texts=st.lists(TEXT, max_size=3))
def test_contents_come_in_the_form_that_the_template_wants(template, texts):
    parts = [{"type": "text", "text": text} for text in texts]
    wanted = f"<|im_start|>user\n{''.join(texts)}<|im_end|>\n<|im_start|>assistant\n"
    assert chat_text(of(template), [{"role": "user", "content": parts}]) == wanted
    assert chat_text(of(template), [{"role": "user", "content": "".join(texts)}]) == wanted


def test_a_template_of_parts_that_needs_a_variable_gets_them():
    strict = of("{% if date is not defined %}{{ raise_exception('no date') }}{% endif %}" + PARTS)
    assert chat_text(strict, ASK, variables={"date": datetime.date(2024, 7, 26)}) == chat_text(of(PARTS), ASK)
    assert chat_text(with_template(strict, {"date": "now"}), ASK) == chat_text(of(PARTS), ASK)


def test_a_template_of_parts_that_refuses_a_lone_user_gets_them():
    chat = [{"role": "system", "content": "Be brief."}, *ASK]
    strict = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}" + PARTS
    assert chat_text(of(strict), chat) == chat_text(of(PARTS), chat)
    assert "Be brief." in chat_text(of(PARTS), chat)


def test_a_response_to_a_template_of_parts_ends_where_its_turn_does():
    tokenizer = of(PARTS)
    before, said = response_ids(tokenizer, ASK, "Yes.")
    assert (tokenizer.decode(before), tokenizer.decode(said)) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "Yes.<|im_end|>",
    )


def test_a_template_that_prints_lists_wants_none():
    """Printed as Python does, a list shows its text and its brackets."""
    assert chat_text(of("{{ messages[0].content }}"), ASK) == "Hi"
    assert chat_text(of("{{ messages[0].content | tojson }}"), ASK) == json.dumps("Hi")
    assert MARKER not in chat_text(of("nothing"), ASK)


@pytest.mark.parametrize("part", ["text", {"type": "image_url", "image_url": {}}, {"type": "text"}, {"text": "x"}])
def test_parts_that_are_no_text_are_refused(part):
    with pytest.raises(UserError, match="expected text alone"):
        text_of([{"type": "text", "text": "a"}, part])


@pytest.mark.parametrize(
    "message", [{"role": "user"}, {"content": "x"}, {"role": 1, "content": ""}, {"role": "user", "content": 7}]
)
def test_messages_of_another_form_are_refused(message):
    with pytest.raises(UserError, match="expected the strings 'role' and 'content'"):
        chat_ids(of(CHATML), [message])


def test_an_empty_conversation_is_refused():
    with pytest.raises(UserError, match="the conversation is empty"):
        chat_ids(of(CHATML), [])


def test_variables_that_a_client_chose_are_not_remembered(tiny_tokenizer):
    """What a template does with contents is; neither variables that it does not read nor long ones may fill that."""
    tokenizer = copy.copy(tiny_tokenizer)
    tokenizer.chat_template = "{{ mood }}" + CHATML
    chat_text(tokenizer, ASK, variables={"mood": "a"})
    before = _loses_text.cache_info().currsize
    for number in range(5):
        assert "Hi" in chat_text(tokenizer, ASK, variables={"mood": "a", f"unread{number}": "b"})
        assert chat_text(tokenizer, ASK, variables={"mood": f"{number}" * 5000}).startswith(f"{number}" * 5000)
    assert _loses_text.cache_info().currsize == before
