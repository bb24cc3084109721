"""The reward channel and the searches in plain PyTorch, float32 and without a cache: what the JAX model must reproduce.

The channel is written from its definition over the `hidden_states` of a transformers model (h_0 the embeddings, h_i the
residual stream after block i, the last entry after the final norm). Weights carry their public names and shapes:
`tt_layers.{i}.tt_layernorm.weight`, `tt_layers.{i}.tt_linear.weight` [out, in], and `sr_head.weight` or
`sr_head.{0,2,…}.weight`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers

from tests import oracles

Weights = dict[str, torch.Tensor]

torch.set_num_threads(1)  # tests run in two processes; threads of tiny products only get in each other's way

CLASSES = {
    "LlamaForCausalLM": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "MistralForCausalLM": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "Qwen2ForCausalLM": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "Qwen3ForCausalLM": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}


def tiny_model(architecture: str, seed: int, **fields: Any) -> Any:
    """A random float32 transformers model whose every weight matters: norms and biases are random too."""
    make_config, make_model = CLASSES[architecture]
    torch.manual_seed(seed)
    config = make_config(**fields, architectures=[architecture], attn_implementation="eager")
    model = make_model(config).to(torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn_like(weight)
            weight.copy_(
                1 + 0.2 * noise if "norm" in name else noise * (0.3 if weight.ndim == 1 else weight.shape[-1] ** -0.5)
            )
    return model


def random_channel(model: Any, width: int, seed: int, head_layers: int = 1, outputs: int = 2, rate: int = 1) -> Weights:
    """Channel weights under their public names, scaled so that rewards spread over a few tenths."""
    draw = torch.Generator().manual_seed(seed)
    size, layers = model.config.hidden_size, model.config.num_hidden_layers
    weights: Weights = {}
    for i in range(layers):
        fan_in = size if i == 0 else size + width
        weights[f"tt_layers.{i}.tt_layernorm.weight"] = 1 + 0.2 * torch.randn(fan_in, generator=draw)
        weights[f"tt_layers.{i}.tt_linear.weight"] = torch.randn(width, fan_in, generator=draw) * fan_in**-0.5
    sizes = [size + width, *[rate * size] * (head_layers - 1), outputs]
    for i in range(head_layers):
        name = "sr_head.weight" if head_layers == 1 else f"sr_head.{2 * i}.weight"
        weights[name] = torch.randn(sizes[i + 1], sizes[i], generator=draw) * sizes[i] ** -0.5
    return weights


def rms_norm(x: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean x² + eps) · gain over the last axis."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gain


def channel_rewards(hidden_states: Sequence[torch.Tensor], weights: Weights, eps: float) -> torch.Tensor:
    """L+1 hidden states [B,T,D] → rewards [B,T]; pointwise in time.

    u_0 = silu(W_0 · norm(h_0));  u_i = silu(W_i · norm([h_i ; u_{i-1}])) + u_{i-1};  r = (H · [h_L ; u_{L-1}])[0].
    """
    silu = torch.nn.functional.silu
    layers = len(hidden_states) - 1
    norms = [weights[f"tt_layers.{i}.tt_layernorm.weight"] for i in range(layers)]
    linears = [weights[f"tt_layers.{i}.tt_linear.weight"] for i in range(layers)]
    u = silu(rms_norm(hidden_states[0], norms[0], eps) @ linears[0].T)
    for i in range(1, layers):
        both = torch.cat([hidden_states[i], u], dim=-1)
        u = silu(rms_norm(both, norms[i], eps) @ linears[i].T) + u
    return head(torch.cat([hidden_states[layers], u], dim=-1), weights)[..., 0]


def head(x: torch.Tensor, weights: Weights) -> torch.Tensor:
    """One linear layer, or an MLP with SiLU between its layers."""
    if "sr_head.weight" in weights:
        return x @ weights["sr_head.weight"].T
    places = sorted(int(name.split(".")[1]) for name in weights if name.startswith("sr_head."))
    for place in places:
        x = x @ weights[f"sr_head.{place}.weight"].T
        x = x if place == places[-1] else torch.nn.functional.silu(x)
    return x


@torch.no_grad()
def logits_and_rewards(model: Any, channel: Weights, tokens: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """tokens [B,T] without padding → logits [B,T,V], rewards [B,T], float32."""
    out = model(input_ids=tokens, output_hidden_states=True, use_cache=False)
    rewards = channel_rewards(out.hidden_states, channel, model.config.rms_norm_eps)
    return out.logits.numpy(), rewards.numpy()


@dataclasses.dataclass(frozen=True)
class TorchWorld:
    """An `oracles.World` with a whole forward pass for every token and no cache; equally long texts share one pass."""

    model: Any
    channel: Weights
    prompt: tuple[int, ...]

    @torch.no_grad()
    def __call__(self, texts: list[oracles.Text]) -> list[tuple[np.ndarray, float]]:
        """Log-probabilities [V] after each text and the reward of its last token."""
        answers: dict[oracles.Text, tuple[np.ndarray, float]] = {}
        for length in {len(text) for text in texts}:
            group = [text for text in texts if len(text) == length]
            tokens = torch.tensor([[*self.prompt, *text] for text in group])
            out = self.model(input_ids=tokens, output_hidden_states=True, use_cache=False, logits_to_keep=1)
            last = [state[:, -1:] for state in out.hidden_states]
            rewards = channel_rewards(last, self.channel, self.model.config.rms_norm_eps)[:, 0]
            logprobs = torch.log_softmax(out.logits[:, -1].float(), dim=-1).numpy()
            answers |= {text: (logprobs[i], float(rewards[i])) for i, text in enumerate(group)}
        return [answers[text] for text in texts]
