"""A Hugging Face tokenizer (tokenizer.json) from a GGUF file's vocabulary, for byte-level BPE vocabularies.

GGUF names a pre-tokenizer (`tokenizer.ggml.pre`) instead of storing it, so each supported name is spelled out here from
the tokenizer that it was made from. SmolLM's splits digits one by one before GPT-2's rule; a reader that takes GPT-2's
alone gives other ids for every number. A name that is not listed is an error: nearly right ids are worse than none.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sla_jax.errors import UserError, nearest, shortened

CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
# Its fourth choice is \s*[\r\n]+ in Llama 3's tokenizer.json, for which Oniguruma gives up (a Rust panic) behind some
# millions of spaces: it tries each of them again. These atomic groups match the same and try nothing twice.
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|(?>(?>[^\S\r\n]*)[\r\n]+)+|\s+(?!\S)|\s+"


def _gpt2() -> Any:
    from tokenizers import pre_tokenizers as pre

    return pre.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm() -> Any:
    from tokenizers import pre_tokenizers as pre

    return pre.Sequence([pre.Digits(individual_digits=True), _gpt2()])


def _split(digits: str) -> Any:
    """The rule of Llama 3 (digits in threes) and Qwen2 (one by one)."""
    from tokenizers import Regex
    from tokenizers import pre_tokenizers as pre

    pattern = Regex(WORDS + digits + REST)
    return pre.Sequence([pre.Split(pattern, "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)])


PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "gpt-2": _gpt2,
    "smollm": _smollm,
    "llama-bpe": lambda: _split(r"\p{N}{1,3}"),
    "qwen2": lambda: _split(r"\p{N}"),
}


def tokenizer_files(metadata: Mapping[str, Any], path: Path) -> dict[str, str]:
    """tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja, by name."""
    model = metadata.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise UserError(
            f"{path} has a tokenizer of kind {model!r}; supported is 'gpt2' (byte-level BPE). Import the Hugging Face "
            "checkpoint of this model, which brings its own tokenizer."
        )
    pre = str(metadata.get("tokenizer.ggml.pre", "nothing"))
    if pre not in PRE_TOKENIZERS:
        raise UserError(
            f"{path} asks for the pre-tokenizer {pre!r}; supported are "
            f"{', '.join(PRE_TOKENIZERS)}.{nearest(pre, PRE_TOKENIZERS)} Import the Hugging Face checkpoint of this "
            "model, which brings its own tokenizer."
        )
    try:
        special = _special(metadata)
        tokenizer = _tokenizer(metadata, pre).to_str(pretty=True)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the Rust side raises bare Exception, and its panics are none
        reason = shortened(" ".join(str(error).split()), 400)
        raise UserError(f"{path} has a vocabulary that is not a whole BPE ({reason}). Download it again.") from None
    files = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": _dump(_config(metadata, special)),
        "special_tokens_map.json": _dump(special),
    }
    template = metadata.get("tokenizer.chat_template")
    return files | ({"chat_template.jinja": str(template)} if template else {})


def _tokenizer(metadata: Mapping[str, Any], pre: str) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    kinds: list[int] = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    steps: list[Any] = [processors.ByteLevel(trim_offsets=False)]
    if metadata.get("tokenizer.ggml.add_bos_token", False):
        bos = metadata["tokenizer.ggml.bos_token_id"]
        single, pair = f"{tokens[bos]} $A", f"{tokens[bos]} $A {tokens[bos]}:1 $B:1"
        steps.append(processors.TemplateProcessing(single=single, pair=pair, special_tokens=[(tokens[bos], bos)]))
    tokenizer.post_processor = processors.Sequence(steps)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (CONTROL, USER_DEFINED):
            tokenizer.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False)])
    return tokenizer


def _special(metadata: Mapping[str, Any]) -> dict[str, str]:
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for key, name in names.items()}
    return {name: metadata["tokenizer.ggml.tokens"][i] for name, i in ids.items() if i is not None}


def _config(metadata: Mapping[str, Any], special: Mapping[str, str]) -> dict[str, Any]:
    arch = metadata.get("general.architecture")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata.get(f"{arch}.context_length"),
        **special,
    }


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
