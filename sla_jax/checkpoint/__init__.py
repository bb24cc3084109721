"""Checkpoints: our store, and the way in and out of it (Hugging Face, the SLA release, GGUF)."""

from sla_jax.checkpoint.channel_file import load_channel, save_channel
from sla_jax.checkpoint.exporter import export_checkpoint
from sla_jax.checkpoint.importer import import_checkpoint
from sla_jax.checkpoint.store import Checkpoint, Info, info, is_checkpoint, load, raw_with_channel, raw_with_score, save

__all__ = [
    "Checkpoint",
    "Info",
    "export_checkpoint",
    "import_checkpoint",
    "info",
    "is_checkpoint",
    "load",
    "load_channel",
    "raw_with_channel",
    "raw_with_score",
    "save",
    "save_channel",
]
