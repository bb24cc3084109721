"""ArmoRM against its release's formulas in plain PyTorch, on a tiny random instance that went through our files."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from sla_jax.checkpoint import export_checkpoint, import_checkpoint, store
from sla_jax.checkpoint.armo import ARCHITECTURE, FILE, is_armo, load_armo
from sla_jax.errors import UserError
from sla_jax.scoring import rows
from sla_jax.scoring.armo import ArmoScorer
from sla_jax.scoring.candidate import Candidate, Detailed, Scorer
from sla_jax.scoring.reward_model import RewardModelScorer
from tests.tiny import byte_level_tokenizer

OBJECTIVES, HIDDEN, TEMPERATURE = 5, 24, 3.0
TALK = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "How much is 12 + 30?"},
]
CASES = [
    (TALK[:1], "Paris."),
    (TALK, "It is 42, and 7 more is 49."),
    (TALK, "Please do not be rude; I can't help with that. " * 3),
    (TALK[:1], ""),
]


@dataclasses.dataclass(frozen=True)
class Release:
    """A random model in the release's layout: its backbone in transformers, its head by public name, its directory."""

    model: Any
    head: dict[str, torch.Tensor]
    directory: Path


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BATCH_TOKENS", 256)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    directory = tmp_path_factory.mktemp("armo")
    torch.manual_seed(11)
    config = transformers.LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        attn_implementation="eager",
    )
    model = transformers.LlamaModel(config).to(torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn_like(weight)
            weight.copy_(1 + 0.2 * noise if "norm" in name else noise * weight.shape[-1] ** -0.5)
    sizes = [32, HIDDEN, HIDDEN, OBJECTIVES]
    head = {"regression_layer.weight": torch.randn(OBJECTIVES, 32), "gating.logit_scale": torch.tensor([1.7])}
    head["reward_transform_matrix"] = torch.eye(OBJECTIVES) - 0.3 * torch.rand(OBJECTIVES, OBJECTIVES)
    for i, (before, after) in enumerate(zip(sizes, sizes[1:], strict=False)):
        head[f"gating.layers.{i}.weight"] = torch.randn(after, before) * 2 * before**-0.5
        head[f"gating.layers.{i}.bias"] = torch.randn(after)
    raw = config.to_dict() | {
        "architectures": [ARCHITECTURE],
        "num_objectives": OBJECTIVES,
        "gating_temperature": TEMPERATURE,
        "auto_map": {"AutoModelForSequenceClassification": "modeling_custom.Armo"},
    }
    byte_level_tokenizer().save_pretrained(directory)
    write(directory, raw, {f"model.{name}": weight for name, weight in model.state_dict().items()} | head)
    return Release(model, head, directory)


def write(directory: Path, raw: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    whole = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    save_file(whole, directory / "model.safetensors")
    return directory


@pytest.fixture(scope="module")
def imported(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("imported") / "armo"
    import_checkpoint(str(release.directory), directory)
    return directory


def slow(release: Release, messages: list[dict[str, str]], text: str) -> tuple[float, np.ndarray, np.ndarray]:
    """The release's formulas, one answer at a time: (score, ratings, weights).

    The release looks for the last "<|eot_id|>" that the assistant's header follows; in ChatML what stands in front
    of the header is the line break behind "<|im_end|>"."""
    tokenizer, head = byte_level_tokenizer(), release.head
    whole = [*messages, {"role": "assistant", "content": text}]
    ids = tokenizer.encode(tokenizer.apply_chat_template(whole, tokenize=False), add_special_tokens=False)
    opening = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    at = max(i for i in range(len(ids)) if ids[i : i + len(opening)] == opening) - 1
    with torch.no_grad():
        states = release.model(torch.tensor([ids])).last_hidden_state[0]
        ratings = head["regression_layer.weight"] @ states[-1]
        x = states[at]
        for i in range(3):
            x = head[f"gating.layers.{i}.weight"] @ x + head[f"gating.layers.{i}.bias"]
            x = torch.relu(x) if i < 2 else x
        weights = torch.softmax(x / TEMPERATURE, dim=0) * head["gating.logit_scale"][0]
        score = torch.sum(weights * (ratings @ head["reward_transform_matrix"]))
    return float(score), ratings.numpy(), weights.numpy()


def test_scores_ratings_and_weights_are_the_releases(release: Release, imported: Path) -> None:
    scorer = ArmoScorer(imported)
    assert isinstance(scorer, Scorer) and isinstance(scorer, Detailed)
    found = scorer.detailed([Candidate(messages, text, [], False) for messages, text in CASES])
    wanted = [slow(release, messages, text) for messages, text in CASES]
    np.testing.assert_allclose([score.total for score in found], [want[0] for want in wanted], rtol=1e-4, atol=1e-5)
    assert len({round(score.total, 4) for score in found}) == len(CASES)
    for score, (_, ratings, weights) in zip(found, wanted, strict=True):
        values = list(score.parts.values())
        np.testing.assert_allclose(values[:OBJECTIVES], ratings, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(values[OBJECTIVES:], weights, rtol=1e-4, atol=1e-6)
        assert sum(values[OBJECTIVES:]) == pytest.approx(1.7, rel=1e-5)
    assert list(found[0].parts)[:2] == ["rating objective 0", "rating objective 1"]
    assert scorer.score([]) == []


def test_the_weights_are_the_prompts_alone(imported: Path) -> None:
    """Two answers to one question, and one of them finished, have one set of weights; another question has another."""
    scorer = ArmoScorer(imported)
    asked = [(TALK[:1], "Paris.", True), (TALK[:1], "Rude!", False), (TALK, "42", True)]
    found = scorer.detailed([Candidate(messages, text, [], finished) for messages, text, finished in asked])
    first, second, other = (list(score.parts.values())[OBJECTIVES:] for score in found)
    np.testing.assert_allclose(first, second, rtol=1e-5)
    assert not np.allclose(first, other, rtol=1e-3)


def test_the_gate_is_kept_bit_for_bit(release: Release, imported: Path) -> None:
    assert is_armo(imported) and store.info(imported).config.score is not None
    armo = load_armo(imported)
    assert armo.temperature == TEMPERATURE and len(armo.names) == OBJECTIVES
    np.testing.assert_array_equal(armo.gating.transform[...], release.head["reward_transform_matrix"].numpy())
    for i, weight in enumerate(armo.gating.weights):
        np.testing.assert_array_equal(weight[...], release.head[f"gating.layers.{i}.weight"].numpy().T)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gating.layers.1.bias": None}, "lacks the tensor 'gating.layers.1.bias'"),
        ({"gating.layers.1.weight": None, "gating.layers.1.bias": None}, "without a hole"),
        ({"gating.layers.0.weight": torch.zeros(HIDDEN, 31)}, "gating.layers.0.weight.*has shape"),
        ({"gating.extra": torch.zeros(1)}, "holds the tensor 'gating.extra'"),
        ({"regression_layer.weight": None}, "lacks the tensor 'score.weight'"),
        ({"model.norm.extra": torch.zeros(2)}, "model.norm.extra"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    release: Release, tmp_path: Path, change: dict[str, torch.Tensor | None], message: str
) -> None:
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(release.directory / "model.safetensors") | change
    raw = json.loads((release.directory / "config.json").read_text(encoding="utf-8"))
    broken = write(tmp_path / "broken", raw, {name: tensor for name, tensor in tensors.items() if tensor is not None})
    with pytest.raises(UserError, match=message):
        import_checkpoint(str(broken), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_none_is_refused_and_so_is_losing_the_gate(release: Release, imported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no {FILE}"):
        load_armo(release.directory)
    with pytest.raises(UserError, match=f"{OBJECTIVES} outputs"):
        RewardModelScorer(imported)
    with pytest.raises(UserError, match="would lose its gate"):
        export_checkpoint(imported, tmp_path / "out")
    assert not (tmp_path / "out").exists()
