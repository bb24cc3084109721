"""IFEval's 25 kinds of checkable instructions (arXiv 2311.07911), written from their public description.

    {"instruction_id_list": ["punctuation:no_comma", …], "kwargs": [{}, …]}

Where the original asks a library we ask ourselves: languages by their script and, of Latin ones, by their commonest
words (`language.py`) instead of langdetect; sentences by their closing signs and words in capitals by white space
instead of nltk. On these kinds single answers may come out otherwise than there; the other kinds are its patterns.
An empty answer keeps nothing. `variants` are the original's eight of the loose accuracy: without the first line, the
last line, both or none, each with and without asterisks.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sla_jax.errors import UserError, nearest
from sla_jax.evaluation.judges.language import is_language

Kwargs = Mapping[str, Any]
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
SENTENCE = re.compile(r"[^.!?。！？।]+[.!?。！？।]*")


class Instruction(NamedTuple):
    """One instruction of a prompt and its numbers and words."""

    id: str
    kwargs: Kwargs


def instructions_of(reference: str, where: str) -> list[Instruction]:
    """The instructions of a prompt. Raises UserError naming the field of its reference that is wrong."""
    try:
        row = json.loads(reference)
        ids, kwargs = row["instruction_id_list"], row["kwargs"]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{where}: 'reference' is {reference[:60]!r}; IFEval's is an object with instruction_id_list and kwargs."
        ) from None
    if not ids or len(ids) != len(kwargs):
        raise UserError(
            f"{where}: 'reference' has {len(ids)} instructions, {len(kwargs)} kwargs; it needs as many of both."
        )
    for name in ids:
        if name not in CHECKS:
            raise UserError(
                f"{where}: 'reference' asks for {name!r}, which IFEval does not have.{nearest(name, CHECKS)}"
            )
    given = [{key: value for key, value in one.items() if value is not None} for one in kwargs]
    found = [Instruction(name, one) for name, one in zip(ids, given, strict=True)]
    for one in found:
        _check_kwargs(one, where)
    return found


def kept(instruction: Instruction, text: str) -> bool:
    """Whether an answer keeps an instruction."""
    return bool(text.strip()) and CHECKS[instruction.id](text, instruction.kwargs)


def variants(text: str) -> list[str]:
    """What the loose accuracy looks at: an answer keeps an instruction loosely if one of these keeps it."""
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(one.replace("*", "") for one in cut)]


def _check_kwargs(instruction: Instruction, where: str) -> None:
    for name in NEEDED.get(instruction.id, ()):
        if name not in instruction.kwargs:
            raise UserError(f"{where}: 'reference' lacks {name!r} of {instruction.id}.")


def _compared(count: int, relation: str, number: int) -> bool:
    return count < number if relation == "less than" else count >= number


def _found(pattern: str, text: str) -> bool:
    return re.search(pattern, text, re.IGNORECASE) is not None


# ---- keywords, language, length ----


def _existence(text: str, given: Kwargs) -> bool:
    return all(_found(re.escape(word), text) for word in given["keywords"])


def _frequency(text: str, given: Kwargs) -> bool:
    count = len(re.findall(re.escape(given["keyword"]), text, re.IGNORECASE))
    return _compared(count, given["relation"], given["frequency"])


def _forbidden(text: str, given: Kwargs) -> bool:
    return not any(_found(rf"\b{re.escape(word)}\b", text) for word in given["forbidden_words"])


def _letters(text: str, given: Kwargs) -> bool:
    return _compared(text.lower().count(given["letter"].lower()), given["let_relation"], given["let_frequency"])


def _language(text: str, given: Kwargs) -> bool:
    return is_language(text, given["language"])


def _sentences(text: str, given: Kwargs) -> bool:
    count = sum(re.search(r"\w", sentence) is not None for sentence in SENTENCE.findall(text))
    return _compared(count, given["relation"], given["num_sentences"])


def _words(text: str, given: Kwargs) -> bool:
    return _compared(len(re.findall(r"\w+", text)), given["relation"], given["num_words"])


def _paragraphs(text: str, given: Kwargs) -> bool:
    parts = _without_empty_ends(re.split(r"\s?\*\*\*\s?", text))
    return parts is not None and len(parts) == given["num_paragraphs"]


def _first_word(text: str, given: Kwargs) -> bool:
    """The n-th of exactly so many paragraphs begins with a word; paragraphs are divided by an empty line."""
    parts = re.split(r"\n\n", text)
    number = sum(bool(part.strip()) for part in parts)
    place = given["nth_paragraph"]
    if place > number or number != given["num_paragraphs"] or not parts[place - 1].strip():
        return False
    word = parts[place - 1].split()[0].lstrip("'\"")
    return re.split(r"[.,?!'\"]", word)[0].lower() == given["first_word"].lower()


def _without_empty_ends(parts: Sequence[str]) -> list[str] | None:
    """The parts, less an empty first and last one; None if one between them is empty."""
    kept = [part for i, part in enumerate(parts) if part.strip() or 0 < i < len(parts) - 1]
    return kept if all(part.strip() for part in kept) else None


# ---- content and format ----


def _placeholders(text: str, given: Kwargs) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= given["num_placeholders"]


def _postscript(text: str, given: Kwargs) -> bool:
    marker = given["postscript_marker"]
    patterns = {"P.P.S": r"\s*p\.\s?p\.\s?s.*$", "P.S.": r"\s*p\.\s?s\..*$"}
    pattern = patterns.get(marker, r"\s*" + re.escape(marker.lower()) + r".*$")
    return re.search(pattern, text.lower(), re.MULTILINE) is not None


def _bullets(text: str, given: Kwargs) -> bool:
    stars, lines = (re.findall(p, text, re.MULTILINE) for p in (r"^\s*\*[^\*].*$", r"^\s*-.*$"))
    return len(stars) + len(lines) == given["num_bullets"]


def _constrained(text: str, given: Kwargs) -> bool:
    return any(option in text for option in OPTIONS)


def _highlights(text: str, given: Kwargs) -> bool:
    single, double = (re.findall(p, text) for p in (r"\*[^\n\*]*\*", r"\*\*[^\n\*]*\*\*"))
    count = sum(bool(part.strip("*").strip()) for part in (*single, *double))
    return count >= given["num_highlights"]


def _sections(text: str, given: Kwargs) -> bool:
    return len(re.split(r"\s?" + re.escape(given["section_spliter"]) + r"\s?\d+\s?", text)) - 1 >= given["num_sections"]


def _json(text: str, given: Kwargs) -> bool:
    bare = re.sub(r"^```(?:json)?|```$", "", text.strip(), flags=re.IGNORECASE).strip()
    try:
        json.loads(bare)
    except ValueError:
        return False
    return True


def _title(text: str, given: Kwargs) -> bool:
    return any(title.strip("<>").strip() for title in re.findall(r"<<[^\n]+>>", text))


def _two_responses(text: str, given: Kwargs) -> bool:
    parts = _without_empty_ends(text.split("******"))
    return parts is not None and len(parts) == 2 and parts[0].strip() != parts[1].strip()


def _repeats(text: str, given: Kwargs) -> bool:
    return text.strip().lower().startswith(given["prompt_to_repeat"].strip().lower())


def _ends(text: str, given: Kwargs) -> bool:
    return text.strip().strip('"').lower().endswith(given["end_phrase"].strip().lower())


def _quoted(text: str, given: Kwargs) -> bool:
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


def _capital_words(text: str, given: Kwargs) -> bool:
    count = sum(word.isupper() for word in text.split())
    return _compared(count, given["capital_relation"], given["capital_frequency"])


def _capitals(text: str, given: Kwargs) -> bool:
    return text.isupper() and is_language(text, "en")


def _lowercase(text: str, given: Kwargs) -> bool:
    return text.islower() and is_language(text, "en")


def _no_comma(text: str, given: Kwargs) -> bool:
    return "," not in text


CHECKS: dict[str, Callable[[str, Kwargs], bool]] = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden,
    "keywords:letter_frequency": _letters,
    "language:response_language": _language,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": _words,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _constrained,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats,
    "startend:end_checker": _ends,
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _capitals,
    "change_case:english_lowercase": _lowercase,
    "punctuation:no_comma": _no_comma,
}
NEEDED = {
    "keywords:existence": ("keywords",),
    "keywords:frequency": ("keyword", "relation", "frequency"),
    "keywords:forbidden_words": ("forbidden_words",),
    "keywords:letter_frequency": ("letter", "let_relation", "let_frequency"),
    "language:response_language": ("language",),
    "length_constraints:number_sentences": ("relation", "num_sentences"),
    "length_constraints:number_paragraphs": ("num_paragraphs",),
    "length_constraints:number_words": ("relation", "num_words"),
    "length_constraints:nth_paragraph_first_word": ("nth_paragraph", "num_paragraphs", "first_word"),
    "detectable_content:number_placeholders": ("num_placeholders",),
    "detectable_content:postscript": ("postscript_marker",),
    "detectable_format:number_bullet_lists": ("num_bullets",),
    "detectable_format:number_highlighted_sections": ("num_highlights",),
    "detectable_format:multiple_sections": ("section_spliter", "num_sections"),
    "combination:repeat_prompt": ("prompt_to_repeat",),
    "startend:end_checker": ("end_phrase",),
    "change_case:capital_word_frequency": ("capital_relation", "capital_frequency"),
}
