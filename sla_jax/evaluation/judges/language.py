"""Is a text in this language? By script, and among the languages of the Latin script by their commonest words.

Languages of one script other than the Latin one are not told apart (Hindi, Marathi and Nepali; Arabic, Persian and
Urdu; Russian and Bulgarian): what is asked of an answer is which alphabet to write, and a small model's failure is to
stay with English.
"""

import re

from sla_jax.errors import UserError, nearest
from sla_jax.scoring.instructions import script

SCRIPTS = {
    "hi": "DEVANAGARI",
    "mr": "DEVANAGARI",
    "ne": "DEVANAGARI",
    "ar": "ARABIC",
    "ur": "ARABIC",
    "fa": "ARABIC",
    "ru": "CYRILLIC",
    "bg": "CYRILLIC",
    "ko": "HANGUL",
    "ja": "CJK",
    "zh": "CJK",
    "th": "THAI",
    "el": "GREEK",
    "he": "HEBREW",
    "bn": "BENGALI",
    "ta": "TAMIL",
    "te": "TELUGU",
    "kn": "KANNADA",
    "gu": "GUJARATI",
    "pa": "GURMUKHI",
    "ml": "MALAYALAM",
}
WORDS = {
    language: frozenset(words.split())
    for language, words in {
        "en": "the and of to is in that it for was with as are this you be not have on at by from or an we can will",
        "de": "der die das und ist nicht ein eine zu den mit von sie für auf des im dem auch es sich wir ich als wie",
        "fr": "le la les et de des est un une que pour dans pas qui sur du au il elle nous vous avec ce plus sont",
        "es": "el la los las y de que en un una es por con para no se su del al lo como más pero son está",
        "it": "il la le e di che è un una per non in con del della sono si come gli lo al dei anche nel più",
        "pt": "o a os as e de que em um uma é para não com por do da no na se mais como são ao dos",
        "fi": "ja on ei että se hän oli mutta kun niin kuin ovat tai myös jos voi ole minä sinä me he tämä joka mitä",
        "sw": "na ya wa kwa ni la za katika kuwa hii hiyo huo yake wake kama au pia sana kila watu mtu lakini ili",
        "vi": "và là của có không được cho một những trong với các này người tôi bạn để đã khi từ như ở đó rất",
        "nl": "de het een en van is niet dat te in op met voor zijn aan ook maar er ik je hij we naar",
        "tr": "ve bir bu için ile da de çok daha ne gibi olarak olan ama en var değil ben sen o kadar",
    }.items()
}
WORD = re.compile(r"[^\W\d_]+")


def is_language(text: str, language: str) -> bool:
    """Whether most letters are of the language's script and, of a Latin one, no other language has more words in it.

    A text without letters is in every language, as the original counts what its library cannot decide. Raises UserError
    for a code that is not known."""
    if language not in SCRIPTS and language not in WORDS:
        known = (*SCRIPTS, *WORDS)
        raise UserError(f"the language {language!r} is not known; known: {', '.join(known)}.{nearest(language, known)}")
    letters = [script(sign) for sign in text if sign.isalpha()]
    if not letters:
        return True
    if letters.count(SCRIPTS.get(language, "LATIN")) * 2 <= len(letters):
        return False
    said = WORD.findall(text.casefold())
    counts = {name: sum(word in known for word in said) for name, known in WORDS.items()}
    return language in SCRIPTS or counts[language] == max(counts.values())
