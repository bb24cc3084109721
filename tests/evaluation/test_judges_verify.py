"""Verifiers and measures of answers alone, on answers whose judgement is known."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sla_jax.errors import UserError
from sla_jax.evaluation.benchmarks import load_benchmark
from sla_jax.evaluation.judges.ifeval import CHECKS, Instruction, instructions_of, kept, variants
from sla_jax.evaluation.judges.intrinsic import IntrinsicJudge, distinct
from sla_jax.evaluation.judges.language import is_language
from sla_jax.evaluation.judges.verify import Gsm8kJudge, IfevalJudge, MathJudge
from sla_jax.evaluation.settings import BenchmarkConfig
from tests.evaluation.answers import answer

LOREM = "This is a line of words that says nothing. "
# (instruction, its numbers and words, an answer that keeps it, one that does not)
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["Dog", "day"]}, "A dog a day", "A dog at night"),
    ("keywords:frequency", {"keyword": "knot", "relation": "at least", "frequency": 2}, "Knot, knot", "one knot"),
    ("keywords:frequency", {"keyword": "knot", "relation": "less than", "frequency": 2}, "one knot", "Knot, knot"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "a category", "my CAT."),
    ("keywords:letter_frequency", {"letter": "J", "let_relation": "at least", "let_frequency": 2}, "Jj", "j"),
    ("language:response_language", {"language": "hi"}, "यह हिन्दी में है।", "This is English."),
    ("language:response_language", {"language": "de"}, "Das ist nicht auf Englisch und es ist kurz.", LOREM),
    ("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 3}, LOREM * 2, LOREM * 3),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\nTwo", "One\n\nTwo"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\nOne\n***\nTwo\n***", "One***\n***Two"),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 3}, "one two-three", "one two"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "it"},
        "First.\n\n'It, then",
        "It.\n\nThen",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] of [place]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye\nP. P. S more", "Bye\nP.S. more"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye\nP.S. more", "Bye"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n- b\n* c"),
    ("detectable_format:constrained_response", {}, "Well. My answer is maybe.", "My answer is unclear."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b*", "*a* and **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Day", "num_sections": 2},
        "Day 1\nrest\nDay 2\nwork",
        "Day 1\nrest",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<On dogs>>\nThey bark.", "<On dogs>"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "say it. So.", "So: say it."),
    ("startend:end_checker", {"end_phrase": "So what is next?"}, 'Done. so what is next?"', "So what is next? Lunch."),
    ("startend:quotation", {}, ' "All of it" ', '"'),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 2},
        "NO and NEVER",
        "NO and Never",
    ),
    ("change_case:english_capital", {}, "THIS IS THE END OF IT", "THIS is the end"),
    ("change_case:english_lowercase", {}, "this is the end of it", "This is the end"),
    ("punctuation:no_comma", {}, "one and two", "one, two"),
]


@pytest.mark.parametrize(("name", "kwargs", "good", "bad"), CASES)
def test_ifevals_instructions(name: str, kwargs: dict[str, Any], good: str, bad: str) -> None:
    assert kept(Instruction(name, kwargs), good)
    assert not kept(Instruction(name, kwargs), bad)
    assert not kept(Instruction(name, kwargs), " \n")


def test_every_kind_of_instruction_is_tried() -> None:
    assert {name for name, *_ in CASES} == set(CHECKS) and len(CHECKS) == 25


def reference(*instructions: tuple[str, dict[str, Any]]) -> str:
    names, kwargs = zip(*instructions, strict=True)
    return json.dumps({"instruction_id_list": names, "kwargs": kwargs})


def test_ifeval_gives_the_share_kept_and_says_which() -> None:
    asked = reference(
        ("punctuation:no_comma", {"num_bullets": None}),
        ("detectable_format:number_bullet_lists", {"num_bullets": 1}),
        ("startend:quotation", {}),
    )
    one = answer("a", 'Here:\n"no bullets at all"', reference=asked)
    (found,) = IfevalJudge().score([one])
    assert found.score == 1 / 3
    assert found.details["strict"] == [True, False, False]
    assert found.details["loose"] == [True, False, True]  # without its first line the answer is quoted
    assert (found.details["prompt_strict"], found.details["prompt_loose"]) == (False, False)


def test_the_loose_variants_are_the_originals_eight() -> None:
    assert variants("a*\nb\nc") == ["a*\nb\nc", "b\nc", "a*\nb", "b", "a\nb\nc", "b\nc", "a\nb", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("42", "instruction_id_list"),
        ('{"instruction_id_list": ["punctuation:no_coma"], "kwargs": [{}]}', "Did you mean 'punctuation:no_comma'"),
        ('{"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}', "1 instructions, 0 kwargs"),
        ('{"instruction_id_list": ["keywords:existence"], "kwargs": [{}]}', "lacks 'keywords' of keywords:existence"),
    ],
)
def test_a_reference_that_is_not_ifevals_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        instructions_of(text, "here")


def test_languages_of_one_script_are_told_apart_by_their_words() -> None:
    assert is_language("Il gatto non è nel giardino", "it") and not is_language("Il gatto non è nel giardino", "en")
    assert is_language("42 + 30", "it")
    with pytest.raises(UserError, match="'xx' is not known"):
        is_language("text", "xx")


@pytest.mark.parametrize(
    ("text", "wanted", "right"),
    [
        ("So it is \\boxed{\\frac{1}{2}}.", "0.5", 1.0),
        ("So it is $\\frac{2}{4}$.", "\\frac{1}{2}", 1.0),
        ("The answer is 3.", "4", 0.0),
        ("No idea.", "4", 0.0),
    ],
)
def test_mathematics_is_compared_by_value(text: str, wanted: str, right: float) -> None:
    (found,) = MathJudge().score([answer("a", text, reference=wanted)])
    assert found.score == right


def test_gsm8ks_numbers_are_compared_exactly() -> None:
    texts = {"#### 1,000": 1.0, "It is $1000.00.": 1.0, "1001": 0.0, "many": 0.0}
    found = Gsm8kJudge().score([answer(text, text, reference="1 + 999\n#### 1000") for text in texts])
    assert [one.score for one in found] == list(texts.values())
    assert found[0].details == {"read": "1000", "reference": "1000"}


@pytest.mark.parametrize("judge", [MathJudge(), Gsm8kJudge(), IfevalJudge()])
def test_an_answer_without_a_reference_is_named(judge: MathJudge | Gsm8kJudge | IfevalJudge) -> None:
    with pytest.raises(UserError, match="'a' of greedy to bench: 'reference' is null"):
        judge.score([answer("a", "42")])


def test_measures_of_the_answer_alone() -> None:
    one = answer("a", "The dog sees the dog.", "round and round " * 30)
    (found,) = IntrinsicJudge().score([one])
    assert found.details["words"] == [5.0, 90.0] and found.details["loop"] == [0.0, 1.0]
    assert found.details["distinct_1"] == [3 / 5, 2 / 90]
    assert found.details["distinct_2"][0] == 3 / 4  # "the dog" stands there twice
    assert found.scores[0] == 1.0 and found.scores[1] < 0.1
    assert distinct([], 1) == 1.0


def test_what_the_benchmark_hands_over_is_what_the_judge_reads(tmp_path: Path) -> None:
    row = {"key": 7, "prompt": "Say no comma.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    path = tmp_path / "ifeval.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    prompt = load_benchmark(BenchmarkConfig(name="ifeval", file=str(path))).prompts[0]
    assert prompt.reference is not None
    assert [one.id for one in instructions_of(prompt.reference, "here")] == ["punctuation:no_comma"]
