"""The tiny preset: a random two-layer Llama, a tokenizer made in code and pairs with a signal that can be learned.

Nothing is downloaded. Chosen answers are made of helpful words and rejected ones of dismissive words, with some of the
other kind mixed in, so the task is easy but not trivial. It exists to try train.py, and for tests.
"""

import random
import tempfile
from pathlib import Path
from typing import Any

import jax

from sla_jax.checkpoint import store
from sla_jax.files import own_line, write_text
from sla_jax.model.config import from_hf
from sla_jax.model.policy import init_policy
from sla_jax.training.data import Pair

TOPICS = ("tea", "rain", "bread", "maps", "clocks", "cats", "rivers", "stars", "bridges", "songs", "glass", "snow")
HELPFUL = ("gladly", "first", "because", "careful", "example", "thanks", "clear", "together", "learn", "kind")
DISMISSIVE = ("whatever", "boring", "never", "stupid", "nothing", "useless", "stop", "wrong", "silly", "no")
SHARED = ("the", "is", "about", "and", "with", "it", "some", "people", "often", "very")
NOISE = 0.2  # part of the telling words that is of the other kind
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def generated_pairs(count: int, seed: int) -> list[Pair]:
    """`count` pairs, a function of the arguments alone."""
    source = random.Random(seed)
    pairs = []
    for number in range(count):
        question = f"tell me about {source.choice(TOPICS)} and {source.choice(TOPICS)}, number {number}"
        chosen, rejected = (
            _answer(source, own, other) for own, other in ((HELPFUL, DISMISSIVE), (DISMISSIVE, HELPFUL))
        )
        pairs.append(Pair([{"role": "user", "content": question}], chosen, rejected))
    return pairs


def write_pairs(path: Path, pairs: list[Pair]) -> None:
    """The pairs as JSON lines that train.py and eval.py read."""
    rows = ({"messages": p.messages, "chosen": p.chosen, "rejected": p.rejected} for p in pairs)
    write_text(path, "".join(map(own_line, rows)))


def _answer(source: random.Random, own: tuple[str, ...], other: tuple[str, ...]) -> str:
    words = []
    for _ in range(source.randint(4, 16)):
        telling = other if source.random() < NOISE else own
        words.append(source.choice(telling if source.random() < 0.5 else SHARED))
    return " ".join(words)


def tokenizer_files() -> dict[str, str]:
    """A byte-level tokenizer with a ChatML template, as file name → content."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [" ".join(p.messages[0]["content"] for p in generated_pairs(64, 0)), *_vocabulary()], trainer
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|im_start|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = CHATML
    with tempfile.TemporaryDirectory() as folder:
        fast.save_pretrained(folder)
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())}


def _vocabulary() -> list[str]:
    return [" ".join(words) for words in (TOPICS, HELPFUL, DISMISSIVE, SHARED)] * 8


def raw_config() -> dict[str, Any]:
    """The preset's config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 384,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "dtype": "float32",
    }


def make_checkpoint(directory: Path, seed: int) -> None:
    """Write the preset's random policy as a checkpoint, unless it is there already."""
    if store.is_checkpoint(directory):
        return
    raw = raw_config()
    policy = init_policy(from_hf(raw), jax.random.key(seed))
    generation = '{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}\n'
    extras = {**tokenizer_files(), "generation_config.json": generation}
    store.save(directory, policy, raw, extras=extras, provenance={"source": "tiny preset", "seed": seed})
