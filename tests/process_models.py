"""Process reward models of every public format: tiny and random, on disk as their releases lay them out, and judged the
slow way, written from the releases' descriptions: plain PyTorch, one text at a time, nothing kept."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from tests import families
from tests.tiny import CHATML, CORPUS, SPECIALS, byte_level_tokenizer
from tests.torch_reference import tiny_model

Steps = Sequence[str]
SIZES = families.SIZES | {"max_position_embeddings": 512}
GOOD, BAD, TAG = 648, 387, 12902  # Math-Shepherd's tokens ▁+, ▁- and ки


class Made(NamedTuple):
    """A model on disk, and how it judges the steps of an answer to a question."""

    directory: Path
    judge: Callable[[str, Steps], list[float]]


def math_shepherd(path: Path) -> Made:
    """Mistral, its tags at their public ids."""
    tokenizer = shepherd_tokenizer()
    model = tiny_model("MistralForCausalLM", 3, **(SIZES | {"vocab_size": len(tokenizer), "sliding_window": 7}))
    _save(path, model, tokenizer)

    def judge(question: str, steps: Steps) -> list[float]:
        output = "\n".join(f"{step} ки" for step in steps)
        ids = torch.tensor([tokenizer.encode(f"{question} {output}")])
        return logits(model, ids)[:, :, [GOOD, BAD]].softmax(dim=-1)[:, :, 0][ids == TAG].tolist()

    return Made(path, judge)


def rlhflow(path: Path) -> Made:
    """Llama with a chat template; each step judged by a pass of its own over the conversation so far."""
    tokenizer = byte_level_tokenizer()
    model = tiny_model("LlamaForCausalLM", 4, **(SIZES | {"vocab_size": len(tokenizer)}))
    _save(path, model, tokenizer)
    labels = [tokenizer.encode(label)[-1] for label in "+-"]

    def judge(question: str, steps: Steps) -> list[float]:
        conversation: list[dict[str, str]] = []
        scores = []
        for number, step in enumerate(steps):
            conversation.append({"role": "user", "content": step if number else f"{question} {step}"})
            conversation.append({"role": "assistant", "content": "+"})
            text = tokenizer.apply_chat_template(conversation, tokenize=False)
            ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
            assert ids[0, -3] == labels[0]  # "+", the end of the turn, a line break
            scores.append(float(logits(model, ids)[0, -4, labels].softmax(dim=-1)[0]))
        return scores

    return Made(path, judge)


def skywork(path: Path) -> Made:
    """Qwen2 with a value head beside its LM head."""
    tokenizer = byte_level_tokenizer()
    model = tiny_model("Qwen2ForCausalLM", 5, **(SIZES | {"vocab_size": len(tokenizer)}))
    head = random_linear(SIZES["hidden_size"], 1)
    extra = {"v_head.summary.weight": head.weight, "v_head.summary.bias": head.bias}
    _save(path, model, tokenizer, "Qwen2ForPrmModel", extra)

    def judge(question: str, steps: Steps) -> list[float]:
        ids = tokenizer.encode(tokenizer.bos_token + question + "\n")
        flags = [0] * len(ids)
        for step in steps:
            piece = [*tokenizer.encode(step), tokenizer.encode("\n")[-1]]
            ids, flags = ids + piece, flags + [0] * (len(piece) - 1) + [1]
        hidden = last_hidden(model, torch.tensor([ids]))
        return torch.sigmoid(head(hidden))[0, :, 0][torch.tensor(flags) == 1].tolist()

    return Made(path, torch.no_grad()(judge))


def qwen(path: Path) -> Made:
    """Qwen2 with a head of two layers and a token of its own behind each step."""
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens([AddedToken("<extra_0>", special=True)])
    size = SIZES["hidden_size"]
    model = tiny_model("Qwen2ForCausalLM", 6, **(SIZES | {"vocab_size": len(tokenizer)}))
    head = torch.nn.Sequential(random_linear(size, size), torch.nn.ReLU(), random_linear(size, 2))
    extra = {f"score.{name}": weight for name, weight in head.state_dict().items()}
    _save(path, model, tokenizer, "Qwen2ForProcessRewardModel", extra)

    def judge(question: str, steps: Steps) -> list[float]:
        answer = "<extra_0>".join(steps) + "<extra_0>"
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
        ids = torch.tensor([tokenizer.encode(text)])
        marked = ids == tokenizer.encode("<extra_0>")[0]
        return head(last_hidden(model, ids)).softmax(dim=-1)[marked][:, 1].tolist()

    return Made(path, torch.no_grad()(judge))


def head(path: Path) -> Made:
    """Token classification as TRL trains it, and as train.py does, an empty line behind each step."""
    tokenizer = byte_level_tokenizer()
    config = transformers.LlamaConfig(**SIZES | {"vocab_size": len(tokenizer), "num_labels": 2})
    torch.manual_seed(7)
    model = transformers.LlamaForTokenClassification(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn_like(weight)
            weight.copy_(1 + 0.2 * noise if "norm" in name else noise * weight.shape[-1] ** -0.5)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)

    def judge(question: str, steps: Steps) -> list[float]:
        messages = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer.encode(text)
        places = []
        for step in steps:
            ids = ids + tokenizer.encode(step) + tokenizer.encode("\n\n")
            places.append(len(ids) - 1)
        return logits(model, torch.tensor([ids]))[0, places].softmax(dim=-1)[:, 1].tolist()

    return Made(path, judge)


MODELS = {"math_shepherd": math_shepherd, "rlhflow": rlhflow, "skywork": skywork, "qwen": qwen, "head": head}


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Of every token."""
    found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return found


def last_hidden(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """What leaves the final norm."""
    found: torch.Tensor = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[-1]
    return found


def random_linear(size: int, outputs: int) -> torch.nn.Linear:
    """A layer whose outputs spread over about one."""
    torch.manual_seed(size + outputs)
    layer = torch.nn.Linear(size, outputs)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, size) * size**-0.5)
        layer.bias.copy_(torch.randn(outputs))
    return layer


def shepherd_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece's kind, with a token in front of every text, and Math-Shepherd's three tokens where they belong."""
    letters = sorted(set("".join(CORPUS)) & set(map(chr, range(33, 127)))) + ["▁", "+", "-", "к", "и"]
    pieces = [*SPECIALS, *(f"<0x{value:02X}>" for value in range(256)), *dict.fromkeys(letters)]
    assert len(pieces) < BAD
    placed = {BAD: "▁-", GOOD: "▁+", TAG: "ки"}
    pieces += [placed.get(number, f"<unused{number}>") for number in range(len(pieces), TAG + 1)]
    merges = [("▁", "-"), ("▁", "+"), ("к", "и")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(list(SPECIALS))
    first = SPECIALS[1]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A", special_tokens=[(first, 1)])
    names = {"bos_token": first, "eos_token": SPECIALS[2]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHATML, **names)


def _save(
    path: Path,
    model: Any,
    tokenizer: Any,
    architecture: str | None = None,
    extra: dict[str, torch.Tensor] | None = None,
) -> None:
    """As transformers saves it, with another architecture's name and more tensors if given."""
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    if architecture is None or extra is None:
        return
    raw = json.loads((path / "config.json").read_text()) | {"architectures": [architecture]}
    (path / "config.json").write_text(json.dumps(raw))
    tensors = {**model.state_dict(), **extra}
    kept = {name: weight.detach().contiguous() for name, weight in tensors.items()}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
