"""The 8B shape that accelerators are measured with, and a tiny one to try the programs themselves."""

from sla_jax.decode.greedy import Greedy
from sla_jax.decode.sla import SLA
from sla_jax.model.config import ChannelConfig, ModelConfig, Rope

LLAMA3_8B = ModelConfig(
    vocab_size=128256,
    width=4096,
    ffn=14336,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    eps=1e-5,
    rope=Rope(theta=500000.0),
    max_positions=16384,
    activation="silu",
    tied=False,
    channel=ChannelConfig(width=256),
)
TINY = ModelConfig(
    vocab_size=512,
    width=64,
    ffn=128,
    layers=2,
    heads=16,
    kv_heads=8,
    head_dim=16,
    eps=1e-5,
    rope=Rope(theta=500000.0),
    max_positions=16384,
    activation="silu",
    tied=False,
    channel=ChannelConfig(width=32),
)
SEARCHES: dict[str, Greedy | SLA] = {
    "greedy": Greedy(chunk=10),
    "SLA 2/10/2": SLA(width=2, chunk=10, depth=2),
    "SLA 4/8/2": SLA(width=4, chunk=8, depth=2),
}
