"""The same weights in transformers + torch, float32: what the JAX model is compared with, in numbers and in speed."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from sla_jax.checkpoint.channel_file import public_array
from sla_jax.checkpoint.mapping import slots
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import Policy, param_paths

Weights = dict[str, torch.Tensor]
CHANNEL = ("tt_layers.", "sr_head.")


def build(directory: Path, policy: Policy, config: ModelConfig) -> tuple[Any, Weights]:
    """The transformers model of a checkpoint (its config.json, our arrays) and the channel's tensors by public name."""
    arrays = {name: np.asarray(leaf) for name, leaf in param_paths(policy).items()}
    public = {s.public: torch.from_numpy(public_array(arrays[s.ours], s).copy()) for s in slots(config)}
    channel = {name: public.pop(name) for name in list(public) if name.startswith(CHANNEL)}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_pretrained(directory))
    missing, unexpected = model.load_state_dict(public, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.to(torch.float32).eval(), channel


@torch.no_grad()
def read(model: Any, channel: Weights, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits [T, V] and rewards [T] of one text."""
    out = model(input_ids=torch.tensor([tokens]), output_hidden_states=True, use_cache=False)
    rewards = channel_rewards(out.hidden_states, channel, model.config.rms_norm_eps)
    return out.logits[0].numpy(), rewards[0].numpy()


def channel_rewards(states: Sequence[torch.Tensor], channel: Weights, eps: float) -> torch.Tensor:
    """L+1 hidden states [..., D] → rewards [...] (channel as in ALGORITHMS: u_i = silu(W norm[h; u]) + u)."""
    silu = torch.nn.functional.silu

    def layer(i: int, x: torch.Tensor) -> torch.Tensor:
        gain, weight = (channel[f"tt_layers.{i}.{part}.weight"] for part in ("tt_layernorm", "tt_linear"))
        return silu((x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gain) @ weight.T)

    u = layer(0, states[0])
    for i in range(1, len(states) - 1):
        u = layer(i, torch.cat([states[i], u], -1)) + u
    x = torch.cat([states[-1], u], -1)
    names = sorted(name for name in channel if name.startswith("sr_head."))
    for i, name in enumerate(names):
        x = (silu(x) if i else x) @ channel[name].T
    return x[..., 0]


class Greedy:
    """transformers' own `generate` on equal prompts; calling it gives seconds per step, prefill taken off."""

    def __init__(self, model: Any, prompt: list[int], rows: int, steps: int):
        self.model, self.rows, self.steps = model, rows, steps
        self.prompt = torch.tensor([prompt] * rows)

    def __call__(self) -> float:
        """Seconds per step of all rows."""
        return (self._seconds(self.steps + 1) - self._seconds(1)) / self.steps

    @torch.no_grad()
    def _seconds(self, tokens: int) -> float:
        began = time.perf_counter()
        mask = torch.ones_like(self.prompt)
        limits = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        self.model.generate(self.prompt, attention_mask=mask, pad_token_id=0, **limits)
        return time.perf_counter() - began
