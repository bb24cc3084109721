"""The tokenizer of a checkpoint, text as its ids, and tokens that the model has no embedding for.

The tokenizer is what `tokenizer.json` says, loaded as it stands: no class is chosen by a model's name, so nothing is
rebuilt or repaired on the way. Only what a trainer left in the file and what would change a text's ids from call to
call is switched off: truncation, padding, and dropout of merges.

`transformers` takes seconds to import and is imported where a tokenizer is loaded, not before.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Encoding, Tokenizer

from sla_jax.errors import UserError, quoted, shortened
from sla_jax.files import read_object
from sla_jax.text.growth import check_growth

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
else:
    PreTrainedTokenizerBase = Any  # beartype reads annotations when the tests run; a second of import is not worth that

PANICS = "pyo3_runtime"  # the module of the exceptions that Rust's panics become


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer and chat template of a checkpoint directory; local files only. Raises UserError."""
    directory = Path(directory)
    if not (directory / "tokenizer.json").is_file():
        missing = "has no tokenizer.json" if directory.is_dir() else "is not a directory"
        raise UserError(
            f"{directory} {missing}; expected a checkpoint made by convert.py, or a Hugging Face directory that was "
            "saved with a fast tokenizer (tokenizer.json beside tokenizer_config.json)."
        )
    check_growth(read_object(directory / "tokenizer.json"), str(directory / "tokenizer.json"))
    _check_settings(directory / "tokenizer_config.json")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that torch is absent is no news
    from transformers import PreTrainedTokenizerFast

    with reading(f"the tokenizer files in {directory}"):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    if isinstance(tokenizer.chat_template, str):
        tokenizer.chat_template = tokenizer.chat_template.removeprefix("\ufeff")  # of a file saved by Windows
    backend = backend_of(tokenizer)
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None) is not None:
        backend.model.dropout = None
    return tokenizer


def _check_settings(path: Path) -> None:
    """Raise UserError for settings by which `transformers` would read another file than tokenizer.json."""
    named = read_object(path).get("fast_tokenizer_files") if path.is_file() else None
    if named and named != ["tokenizer.json"]:
        raise UserError(
            f"{path} names other files than tokenizer.json: fast_tokenizer_files={quoted(named)}. Take that out, and "
            "call the one that is meant tokenizer.json."
        )


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Whatever the Rust side raises of a tokenizer's files becomes a UserError: bare Exceptions, and panics, which are
    no Exceptions at all."""
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        reason = shortened(" ".join(str(error).split()), 400)
        raise UserError(f"{what} cannot be read ({reason}); convert the model again.") from None


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The `tokenizers.Tokenizer` underneath."""
    return tokenizer.backend_tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False) -> list[int]:
    """Ids of a text; with `special`, those that the tokenizer puts around a text too. Special tokens that are written
    out in the text are tokens in any case. Raises UserError for what no tokenizer reads, or this one cannot."""
    return list(encoding(tokenizer, text, special=special).ids)


def encoding(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False) -> Encoding:
    """A text's `tokenizers.Encoding`: ids and offsets in characters. Errors are those of `encode`.

    `tokenizers` lets other threads run while it encodes a batch, and not while it encodes a single text. Its regular
    expressions give up on some texts (some million spaces before a word, with the rule of Llama 3): a Rust panic, which
    is no Exception.
    """
    check_characters(text)
    try:
        (found,) = backend_of(tokenizer).encode_batch([text], add_special_tokens=special)
    except BaseException as error:
        if type(error).__module__ != PANICS and not isinstance(error, Exception):
            raise
        raise UserError(
            f"the tokenizer cannot read this text of {len(text)} characters ({shortened(' '.join(str(error).split()))}"
            "); it may have a very long run of one kind of character, such as spaces. Shorten it."
        ) from None
    return found


def encode_behind(tokenizer: PreTrainedTokenizerBase, before: str, text: str) -> tuple[list[int], list[int]]:
    """(ids of `before`, ids of the text that goes on from it): one encoding cut in two, unless a token would run across
    the cut; then the text is tokenized by itself."""
    ids, both = encode(tokenizer, before), encode(tokenizer, before + text)
    return ids, both[len(ids) :] if both[: len(ids)] == ids else encode(tokenizer, text)


def check_characters(text: str) -> None:
    """Raise UserError for half a surrogate pair: it is no character, and UTF-8 has no bytes for it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text has half a surrogate pair (U+{ord(text[error.start]):04X}) at character {error.start}; expected "
            "whole characters. Write them in UTF-8, or as both halves in JSON (\\ud83d\\ude00)."
        ) from None


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], vocabulary: int, where: str) -> None:
    """Raise UserError if a token is not among the model's 0 to `vocabulary` - 1; `where` it stands begins the error.

    Fine-tunes add tokens ([PAD]) without enlarging the embedding; a lookup beyond its end would give any row at all.
    """
    if not ids or 0 <= min(ids) <= max(ids) < vocabulary:
        return
    bad = next(token for token in ids if not 0 <= token < vocabulary)
    backend = backend_of(tokenizer)
    name = backend.id_to_token(bad) if bad >= 0 else None
    spelled = f"the token {bad}" if name is None else f"the token {name!r} ({bad})"
    known = backend.get_vocab_size(with_added_tokens=True)
    raise UserError(
        f"{where}: {spelled} has no embedding; the model's tokens are 0 to {vocabulary - 1}, and its tokenizer has "
        f"{known}. Leave it out."
    )


def tokens_beyond(directory: Path, vocabulary: int) -> dict[str, int]:
    """The tokens of a checkpoint's tokenizer.json that an embedding of `vocabulary` rows does not have, by id; none if
    there is no such file. Raises UserError for a file that cannot be read."""
    file = directory / "tokenizer.json"
    if not file.is_file():
        return {}
    check_growth(read_object(file), str(file))
    with reading(str(file)):
        known = Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
    return {token: i for token, i in sorted(known.items(), key=lambda item: item[1]) if i >= vocabulary}
