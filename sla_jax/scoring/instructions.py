"""Instructions that can be read from a question by plain patterns and checked on an answer without a doubt.

Each rule finds its instructions in the question and gives True or False for each; what it cannot decide it does not
find. `kept` is the share that is kept, and 1 where nothing was found (which then decides nothing between candidates).
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterator

NUMBERS = {word: n for n, word in enumerate("one two three four five six seven eight nine ten".split(), 1)}
N = rf"(\d{{1,4}}|{'|'.join(NUMBERS)})"
AT_LEAST = ("at least", "more than", "over", "minimum of", "no less than", "not less than")
AT_MOST = (
    "at most",
    "less than",
    "fewer than",
    "under",
    "no more than",
    "not more than",
    "up to",
    "maximum of",
    "within",
)
ABOUT = ("about", "around", "approximately", "roughly")
BOUND = rf"(?:\b({'|'.join((*AT_LEAST, *AT_MOST, *ABOUT, 'exactly', 'in'))})\s+)?"
QUOTED = r"[\"“]([^\"”]{1,120})[\"”]"
LIST_LINE = re.compile(r"^\s*(?:[-*•]|\d{1,3}[.)])\s+\S", re.MULTILINE)
ITEMS = r"(?:bullet points?|bullets|items|ideas|tips|ways|examples|reasons|steps|facts|suggestions|names)"
SCRIPTS = {
    "hindi": "DEVANAGARI",
    "marathi": "DEVANAGARI",
    "nepali": "DEVANAGARI",
    "arabic": "ARABIC",
    "urdu": "ARABIC",
    "persian": "ARABIC",
    "farsi": "ARABIC",
    "russian": "CYRILLIC",
    "bulgarian": "CYRILLIC",
    "korean": "HANGUL",
    "chinese": "CJK",
    "japanese": "CJK",
    "thai": "THAI",
    "greek": "GREEK",
    "hebrew": "HEBREW",
    "bengali": "BENGALI",
    "tamil": "TAMIL",
    "telugu": "TELUGU",
    "kannada": "KANNADA",
    "gujarati": "GUJARATI",
    "punjabi": "GURMUKHI",
    "english": "LATIN",
    "german": "LATIN",
    "french": "LATIN",
    "italian": "LATIN",
    "spanish": "LATIN",
    "portuguese": "LATIN",
    "finnish": "LATIN",
    "swahili": "LATIN",
    "vietnamese": "LATIN",
}
Rule = Callable[[str, str], Iterator[bool]]


def script(sign: str) -> str:
    """What Unicode calls a letter's script: LATIN, CYRILLIC, … and CJK for Japanese syllables as well."""
    name = unicodedata.name(sign, "?").split()[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA") else name


def kept(question: str, text: str) -> float:
    """The share of the instructions found in the question that the answer keeps; 1 if none is found."""
    checks = found(question, text)
    return sum(checks) / len(checks) if checks else 1.0


def found(question: str, text: str) -> list[bool]:
    """One entry an instruction: is it kept?"""
    return [check for rule in RULES for check in rule(question, text)]


def asks(pattern: str, question: str) -> bool:
    """Whether the pattern stands in the question."""
    return re.search(pattern, question, re.IGNORECASE) is not None


def sizes(question: str, text: str) -> Iterator[bool]:
    """Words, sentences, paragraphs: "at least 3 sentences", "exactly two paragraphs"; "in 50 words" within a tenth."""
    counts = {
        "word": len(text.split()),
        "sentence": len([s for s in re.split(r"[.!?]+(?:\s|$)", text) if s.strip()]),
        "paragraph": len([p for p in re.split(r"\n\s*\n|\n?\s*\*\*\*\s*\n?", text) if p.strip()]),
    }
    pattern = rf"{BOUND}\b{N}\+?(?:\s+or\s+(more|less|fewer))?[\s-]+(word|sentence|paragraph)s?\b"
    for match in re.finditer(pattern, question, re.IGNORECASE):
        bound, number, after, unit = ((group or "").lower() for group in match.groups())
        if bound or after or "+" in match[0]:
            bound = {"more": "at least", "less": "at most", "fewer": "at most"}.get(after, bound)
            bound = "at least" if "+" in match[0] else bound
            yield _within(counts[unit], bound, NUMBERS.get(number) or int(number))


def _within(count: int, bound: str, number: int) -> bool:
    if bound in AT_LEAST:
        return count >= number
    if bound in AT_MOST:
        return 0 < count <= number
    slack = number // 5 if bound in ABOUT else number // 10
    return abs(count - number) <= (0 if bound == "exactly" else slack)


def items(question: str, text: str) -> Iterator[bool]:
    """As many list lines as "3 bullet points", "five ideas"; an answer without a list is judged for bullets only."""
    lines = len(LIST_LINE.findall(text))
    for match in re.finditer(rf"{BOUND}\b{N}\s+(?:\w+\s+)?({ITEMS})\b", question, re.IGNORECASE):
        bound, number, what = (match[1] or "").lower(), match[2].lower(), match[3].lower()
        wanted = NUMBERS.get(number) or int(number)
        if "bullet" in what or (lines > 1 and wanted > 1):
            yield _within(lines, bound if bound in (*AT_LEAST, *AT_MOST) else "exactly", wanted)


def json_only(question: str, text: str) -> Iterator[bool]:
    """Asked "in JSON format": the whole answer, or its one code block, parses."""
    if asks(r"\b(?:in|as|valid|output)\s+(?:an?\s+)?(?:valid\s+)?JSON\b|\bJSON format\b", question):
        bare = re.sub(r"^\s*```(?:json)?\s*|\s*```\s*$", "", text, flags=re.IGNORECASE)
        try:
            json.loads(bare)
        except ValueError:
            yield False
        else:
            yield True


def letter_case(question: str, text: str) -> Iterator[bool]:
    """Asked for "all lowercase" or "only capital letters"."""
    lower = r"\b(?:all|in|only)\s+(?:english\s+and\s+in\s+)?(?:all\s+)?lower\s?case\b|\bno capital letters\b"
    upper = r"\b(?:all|only|in|entirely in)\s+(?:all\s+)?(?:caps\b|capital letters\b|upper\s?case\b)"
    if asks(lower, question):
        yield text == text.lower()
    if asks(upper, question):
        yield text == text.upper()


def no_commas(question: str, text: str) -> Iterator[bool]:
    """Told "do not use any commas"."""
    no = r"(?:do not|don't|without|refrain from|avoid|not allowed to|never|no)"
    if asks(rf"\b{no}\s+(?:us(?:e|ing)\s+)?(?:of\s+)?(?:any\s+)?commas\b", question):
        yield "," not in text


def ending(question: str, text: str) -> Iterator[bool]:
    """Asked to "end your answer with "…"": these words, without regard to case and to quotation marks behind them."""
    pattern = rf"\b(?:end|finish)\b[^.\n]{{0,60}}?\bwith\b[^.\n]{{0,40}}?{QUOTED}"
    for match in re.finditer(pattern, question, re.IGNORECASE):
        yield text.rstrip(' \n"”').lower().endswith(match[1].rstrip(' "”').lower())


def in_quotes(question: str, text: str) -> Iterator[bool]:
    """Asked to "wrap your entire response with double quotation marks"."""
    if asks(r"\b(?:wrap|put|enclose)\b[^.\n]{0,60}\bdouble quotation marks\b", question):
        yield len(text.strip()) > 1 and text.strip()[0] in '"“' and text.strip()[-1] in '"”'


def titled(question: str, text: str) -> Iterator[bool]:
    """Asked for "a title, wrapped in double angular brackets"."""
    if asks(r"\btitle\b[^\n]{0,80}\bdouble angular brackets\b", question):
        yield re.search(r"<<[^<>\n]+>>", text) is not None


def named_words(question: str, text: str) -> Iterator[bool]:
    """Asked to "include the word "x"", or told "do not use the word "x""."""
    pattern = rf"\b(not\s+)?(?:include|use|mention|contain)\s+the\s+(?:key)?(?:word|phrase)s?\s+{QUOTED}"
    for match in re.finditer(pattern, question, re.IGNORECASE):
        yield (match[2].lower() in text.lower()) != bool(match[1])


def language(question: str, text: str) -> Iterator[bool]:
    """Asked to "answer in Hindi": most letters are of its script (languages of one script are not told apart)."""
    pattern = rf"\b(?:answer|respond|response|reply|write|written|speak)\b[^.\n]{{0,60}}\bin\s+({'|'.join(SCRIPTS)})\b"
    for match in re.finditer(pattern, question, re.IGNORECASE):
        letters = [sign for sign in text if sign.isalpha()]
        own = sum(script(sign) == SCRIPTS[match[1].lower()] for sign in letters)
        yield own > len(letters) / 2


RULES: tuple[Rule, ...] = (
    sizes,
    items,
    json_only,
    letter_case,
    no_commas,
    ending,
    in_quotes,
    titled,
    named_words,
    language,
)
