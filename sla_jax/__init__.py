"""sla_jax: language models that reward their own tokens, search ahead with those rewards, and stream while they search.

Names are imported on first use, so that `import sla_jax.errors` does not pull in jax.
What XLA has to be told before it starts is told here (`xla.py`).
"""

from typing import Any

from sla_jax.xla import set_flags

set_flags()

_HOMES = {
    "load": "api",
    "use_compilation_cache": "loading",
    "LanguageModel": "api",
    "Chunk": "api",
    "SLA": "decode.sla",
    "Greedy": "decode.greedy",
    "BeamSearch": "decode.beam",
    "BestOfN": "decode.best_of_n",
    "SpeculativeRejection": "decode.speculative_rejection",
    "StepBeam": "decode.step_beam",
    "DVTS": "decode.dvts",
    "Sampling": "decode.sampling",
}
__all__ = [
    "DVTS",
    "SLA",
    "BeamSearch",
    "BestOfN",
    "Chunk",
    "Greedy",
    "LanguageModel",
    "Sampling",
    "SpeculativeRejection",
    "StepBeam",
    "load",
    "use_compilation_cache",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sla_jax' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"sla_jax.{_HOMES[name]}"), name)
