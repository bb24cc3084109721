"""ArmoRM as a checkpoint of ours: a sequence classifier of O outputs, and the gate beside it in `armo.safetensors`.

Public names (RLHFlow/ArmoRM-Llama3-8B-v0.1): the backbone's are Llama's, `regression_layer.weight` is the score head,
`gating.layers.{i}.weight|bias` the MLP, `gating.logit_scale` [1] its scale, `reward_transform_matrix` [O, O]. Its
config.json is Llama's with num_objectives, gating_temperature, gating_hidden_dim and gating_n_hidden; the release's
own code takes 19, 10, 1024 and 3 where a field is absent, and so do we for the first two (the others are the weights'
shapes). With us config.json says …ForSequenceClassification, so the backbone is stored, checked and loaded as any
reward model is; that it is an ArmoRM is what the file beside it says.
"""

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from sla_jax.checkpoint import safetensors_file as st
from sla_jax.checkpoint import store
from sla_jax.checkpoint.mapping import listed
from sla_jax.checkpoint.sources import SafetensorsSource, Source, open_weights
from sla_jax.errors import UserError
from sla_jax.model.armo import Gating
from sla_jax.model.config import SEQUENCE, ModelConfig, from_hf, read_number, read_size

ARCHITECTURE = "LlamaForRewardModelWithGating"
FILE, KEY = "armo.safetensors", "sla_jax_armo"
REGRESSION, SCALE, TRANSFORM = "regression_layer.weight", "gating.logit_scale", "reward_transform_matrix"
LAYER = re.compile(r"gating\.layers\.(\d{1,3})\.(weight|bias)")
OBJECTIVES, TEMPERATURE = 19, 10.0  # of the release's code, for a config.json that does not say
# the release's objectives in the order of its outputs; the file says only how many there are
NAMES = (
    "helpsteer-helpfulness helpsteer-correctness helpsteer-coherence helpsteer-complexity helpsteer-verbosity "
    "ultrafeedback-overall_score ultrafeedback-instruction_following ultrafeedback-truthfulness ultrafeedback-honesty "
    "ultrafeedback-helpfulness beavertails-is_safe prometheus-score argilla-overall_quality argilla-judge_lm "
    "code-complexity code-style code-explanation code-instruction-following code-readability"
).split()


class Armo(NamedTuple):
    """The gate of a checkpoint. `names` has one entry an objective."""

    gating: Gating
    temperature: float
    names: tuple[str, ...]


class Parts(NamedTuple):
    """What a public ArmoRM is stored as: a classifier's config.json, its tensors, and the files beside them."""

    raw_config: dict[str, Any]
    source: Source
    extras: dict[str, bytes]


class Backbone:
    """The release's tensors as those of a sequence classifier: no gate, and the regression under its other name."""

    def __init__(self, source: Source):
        self.files, self._source = source.files, source
        mine = [name for name in source.shapes() if not _of_gate(name)]
        self._public = {"score.weight" if name == REGRESSION else name: name for name in mine}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See Source."""
        found = self._source.shapes()
        return {name: found[public] for name, public in self._public.items()}

    def dtype(self, name: str) -> np.dtype[Any]:
        """See Source."""
        return self._source.dtype(self._public[name])

    def read(self, name: str) -> np.ndarray:
        """See Source."""
        return self._source.read(self._public[name])


def is_release(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a public ArmoRM."""
    return raw.get("architectures") == [ARCHITECTURE]


def opened(directory: Path, raw: Mapping[str, Any]) -> Parts:
    """A public ArmoRM as a classifier and its gate. Raises UserError if the gate is not whole."""
    plain, source = as_classifier(raw), open_weights(directory)
    gate = _gate(source, from_hf(plain), str(directory))
    return Parts(plain, Backbone(source), store.read_extras(directory) | {FILE: _as_file(gate, raw)})


def as_classifier(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The release's config.json as that of a sequence classifier with one output an objective."""
    outputs = read_size({"num_labels": raw.get("num_objectives", OBJECTIVES)}, "num_labels")
    dropped = ("id2label", "label2id", "num_labels", "auto_map")
    kept = {name: value for name, value in raw.items() if name not in dropped}
    labels = {str(i): f"LABEL_{i}" for i in range(outputs)}
    named = {"id2label": labels, "label2id": {name: int(i) for i, name in labels.items()}}
    return kept | {"architectures": ["Llama" + SEQUENCE]} | named


def is_armo(directory: Path) -> bool:
    """Whether a checkpoint of ours has a gate."""
    return (directory / FILE).is_file()


def load_armo(directory: Path) -> Armo:
    """The gate of a checkpoint. Raises UserError if it has none, or one that does not fit."""
    if not is_armo(directory):
        raise UserError(
            f"{directory} has no {FILE}, so it is no ArmoRM. Import one with `python convert.py import SRC DST`, or "
            "judge with the kind reward_model."
        )
    source = SafetensorsSource([directory / FILE])
    config = store.info(directory).config
    gate = _gate(source, config, str(directory / FILE))
    try:
        said = json.loads(source.metadata[KEY])
        names = tuple(str(name) for name in said["names"])
        temperature = read_number(said, "temperature", str(directory / FILE))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise UserError(f"{directory / FILE} does not say {KEY} in its metadata. Import the model again.") from None
    if len(names) != gate[TRANSFORM].shape[0]:
        raise UserError(f"{directory / FILE} has {len(names)} names for {gate[TRANSFORM].shape[0]} objectives.")
    layers = len([name for name in gate if name.endswith(".weight")])
    gating = Gating(
        [jnp.asarray(gate[f"gating.layers.{i}.weight"].T) for i in range(layers)],
        [jnp.asarray(gate[f"gating.layers.{i}.bias"]) for i in range(layers)],
        jnp.asarray(gate[SCALE]),
        jnp.asarray(gate[TRANSFORM]),
    )
    return Armo(gating, temperature, names)


def _of_gate(name: str) -> bool:
    return name.startswith("gating.") or name == TRANSFORM


def _gate(source: Source, config: ModelConfig, where: str) -> dict[str, np.ndarray]:
    """The gate's tensors by public name. Raises UserError unless they are all there and fit."""
    found = {name: shape for name, shape in source.shapes().items() if _of_gate(name)}
    layers = sorted({int(match[1]) for name in found if (match := LAYER.fullmatch(name))})
    wanted = {SCALE, TRANSFORM} | {f"gating.layers.{i}.{part}" for i in layers for part in ("weight", "bias")}
    if not layers or layers != list(range(len(layers))):
        raise UserError(f"{where} has the layers {layers} of a gate; expected 0, 1, … without a hole.")
    if missing := sorted(wanted - found.keys()):
        raise UserError(f"{where} lacks {listed(missing)}, which an ArmoRM has. Is the download complete?")
    if unknown := sorted(found.keys() - wanted):
        raise UserError(f"{where} holds {listed(unknown)}, which an ArmoRM's gate does not have.")
    weights = {i: found[f"gating.layers.{i}.weight"] for i in layers}
    if config.score is None or any(len(shape) != 2 for shape in weights.values()):
        raise UserError(f"{where} is no gate of this model: expected a sequence classifier, and matrices.")
    for name, shape in _shapes(config.width, config.score.outputs, weights).items():
        if found[name] != shape:
            raise UserError(f"{where}: the tensor {name!r} has shape {found[name]}; expected {shape}.")
    return {name: source.read(name) for name in sorted(wanted)}


def _shapes(width: int, outputs: int, layers: Mapping[int, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """From the model's width to its objectives, each layer as wide as the next one reads."""
    last = len(layers) - 1
    widths = [width, *[layers[i][0] for i in range(last)], outputs]
    shapes: dict[str, tuple[int, ...]] = {SCALE: (1,), TRANSFORM: (outputs, outputs)}
    for i in layers:
        shapes |= {f"gating.layers.{i}.weight": (widths[i + 1], widths[i]), f"gating.layers.{i}.bias": (widths[i + 1],)}
    return shapes


def _as_file(gate: Mapping[str, np.ndarray], raw: Mapping[str, Any]) -> bytes:
    """The gate as a safetensors file."""
    outputs = gate[TRANSFORM].shape[0]
    names = NAMES if len(NAMES) == outputs else [f"objective {i}" for i in range(outputs)]
    temperature = read_number({"gating_temperature": TEMPERATURE, **raw}, "gating_temperature")
    said = {"temperature": temperature, "names": list(names)}
    specs = [st.Spec(name, array.shape, array.dtype) for name, array in gate.items()]
    with tempfile.TemporaryDirectory() as scratch:
        st.write(Path(scratch) / FILE, specs, iter(gate.values()), {KEY: json.dumps(said)})
        return (Path(scratch) / FILE).read_bytes()
