"""The plan: which layer gets which method, rate, mask and interpolation. A JSON file, readable and editable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from perfonnx.errors import PerfonnxError
from perfonnx.masks import MASKS
from perfonnx.model.atomic import digest, write_atomically
from perfonnx.sampling import INTERPOLATIONS

FORMAT = 1
METHODS = ("perforate", "sparse", "radius-adaptive")
DENSE = "dense"
_FIELDS = ("perfonnx_plan", "seed", "layout", "layers", "notes", "input_shapes", "corrections", "masks", "digests")
LAYOUTS = ("rows", "nchw")
"""How rewritten layers hand on their results."""
GIVEN = "given"
"""Name of a mask that nothing can draw again, such as one from training; it is kept beside the plan."""
ZERO, BEFORE_NORMALIZATION = FILLS = ("zero", "before-normalization")
"""What masked positions of sparse layers hold: 0 in what the layer gives; or what the BatchNormalization that is folded
into the layer, and its activation, make of a convolution that gives 0 there, as training does (Grimaldi et al.)."""
NO_REPAIR = "none"
REPAIRS = (NO_REPAIR, "bias", "interpolation", "predictor", "full")
"""What perforated layers are repaired with, see `perfonnx.passes.repair`: a bias; a learned interpolation or a
predictor beside it; or all three."""
PREDICTING = ("predictor", "full")
"""Those with a predictor."""


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one layer.

    Attributes:
        method: One of `METHODS`, or "dense": leave it as it is.
        rate: Fraction of positions to skip, in [0, 1). Masks from a file and radius-adaptive layers have their own.
        mask: Name in `perfonnx.masks.MASKS`, the path of a .npy or .npz file, or `GIVEN`. Radius-adaptive layers have
            none.
        interpolation: Name in `perfonnx.sampling.INTERPOLATIONS`; perforation only.
        center_gain: 0 or 1, the two published forms of the radius-adaptive sum.
        repair: One of `REPAIRS`; perforation only.
        open_share: Share of the pixels where a radius-adaptive layer computes its ring, in [0, 1]; below 1 a gate is
            fitted on calibration data, see `perfonnx.passes.gate`. With a trained gate: what it opened in training.
        fill: One of `FILLS`; sparse layers only.
        trained_gate: Whether the gate of a radius-adaptive layer comes from training, with the layer's weights. It is
            kept in the plan's corrections.
    """

    method: str
    rate: float = 0.25
    mask: str = "grid"
    interpolation: str = "nearest"
    center_gain: float = 0.0
    repair: str = NO_REPAIR
    open_share: float = 1.0
    fill: str = ZERO
    trained_gate: bool = False

    def __post_init__(self) -> None:
        for name in ("rate", "center_gain", "open_share"):  # numpy's numbers become Python's, which JSON can hold
            value = getattr(self, name)
            if isinstance(value, Real) and not isinstance(value, (bool, int)):
                object.__setattr__(self, name, float(value))

    def check(self, where: str) -> None:
        """Raise `PerfonnxError` naming `where` if a field has no meaning."""
        if self.method not in (*METHODS, DENSE):
            raise PerfonnxError(f"{where}: unknown method {self.method!r}; choose from {', '.join((*METHODS, DENSE))}")
        if not isinstance(self.rate, (int, float)) or isinstance(self.rate, bool) or not 0 <= self.rate < 1:
            raise PerfonnxError(
                f"{where}: rate {self.rate!r} is not in [0, 1); it is the fraction of positions to skip"
            )
        if not isinstance(self.mask, str) or not (self.mask in (*MASKS, GIVEN) or is_mask_file(self.mask)):
            raise PerfonnxError(
                f"{where}: unknown mask {self.mask!r}; choose from {', '.join(MASKS)}, or give a .npy or .npz file"
            )
        if not isinstance(self.interpolation, str) or self.interpolation not in INTERPOLATIONS:
            raise PerfonnxError(
                f"{where}: unknown interpolation {self.interpolation!r}; choose from {', '.join(INTERPOLATIONS)}"
            )
        if not isinstance(self.repair, str) or self.repair not in REPAIRS:
            raise PerfonnxError(f"{where}: unknown repair {self.repair!r}; choose from {', '.join(REPAIRS)}")
        if self.repair != NO_REPAIR and self.method != "perforate":
            raise PerfonnxError(f"{where}: only perforated layers can be repaired, not {self.method} ones")
        if self.center_gain not in (0, 1):
            raise PerfonnxError(f"{where}: center_gain {self.center_gain!r} is not one of the published forms, 0 and 1")
        if not isinstance(self.open_share, (int, float)) or isinstance(self.open_share, bool):
            raise PerfonnxError(f"{where}: open_share {self.open_share!r} is not a number")
        if not 0 <= self.open_share <= 1:
            raise PerfonnxError(
                f"{where}: open_share {self.open_share!r} is not in [0, 1]; it is the share of pixels that keep their "
                "ring"
            )
        if self.open_share != 1 and self.method != "radius-adaptive":
            raise PerfonnxError(f"{where}: only radius-adaptive layers have an open_share, not {self.method} ones")
        if self.open_share != 1 and self.center_gain and not self.trained_gate:
            raise PerfonnxError(f"{where}: with an open_share the gain of the centre is fitted; leave out center_gain")
        if not isinstance(self.fill, str) or self.fill not in FILLS:
            raise PerfonnxError(f"{where}: unknown fill {self.fill!r}; choose from {', '.join(FILLS)}")
        if self.fill != ZERO and self.method != "sparse":
            raise PerfonnxError(f"{where}: only sparse layers have a fill, not {self.method} ones")
        if not isinstance(self.trained_gate, bool):
            raise PerfonnxError(f"{where}: trained_gate {self.trained_gate!r} is neither true nor false")
        if self.trained_gate and self.method != "radius-adaptive":
            raise PerfonnxError(f"{where}: only radius-adaptive layers have a trained_gate, not {self.method} ones")


def is_mask_file(mask: str) -> bool:
    """True where a mask is named by a file."""
    return Path(mask).suffix in (".npy", ".npz")


def is_own_mask(mask: str) -> bool:
    """True where a mask is a user's own, which has its own rate."""
    return mask == GIVEN or is_mask_file(mask)


@dataclass
class Plan:
    """Layer plans by layer name, the seed of all random choices, and the layout, one of `LAYOUTS`.

    `notes` explains the layers that are left alone; it is written for the reader and ignored when read back.
    `input_shapes` are the shapes that the plan was made for, where the model left them open.
    `corrections` is the file of what repair or training found, see `perfonnx.corrections`, and `masks` the .npz file of
    the masks that were given; in a saved plan both are relative to it. `digests` has those of the two files, by which a
    plan knows its own; without them any is taken.
    """

    layers: dict[str, LayerPlan] = field(default_factory=dict)
    seed: int = 0
    notes: dict[str, str] = field(default_factory=dict)
    input_shapes: dict[str, tuple[int | str | None, ...]] = field(default_factory=dict)
    layout: str = LAYOUTS[0]
    corrections: str | None = None
    masks: str | None = None
    digests: dict[str, str] = field(default_factory=dict)

    def file(self, kind: str) -> str:
        """The file of its `corrections` or `masks`, which must be there.

        Raises:
            PerfonnxError: It cannot be read, or is not the one that was written with this plan.
        """
        file = str(getattr(self, kind))
        try:
            if self.digests.get(kind) not in (None, digest(Path(file).read_bytes())):
                raise PerfonnxError(
                    f"{file}: is damaged, or was not written with this plan; to use it all the same, take its digest "
                    "out of the plan"
                )
        except (OSError, ValueError) as error:
            raise PerfonnxError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
        return file

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan.

        Raises:
            PerfonnxError: Not there, not JSON, or not a plan.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the name
            raise PerfonnxError(
                f"{path}: cannot be read as a plan: {getattr(error, 'strerror', None) or error}"
            ) from error
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
            raise PerfonnxError(f"{path}: not a plan, since it is not JSON ({error})") from error
        plan = cls.from_json(data, str(path))
        for kind in ("corrections", "masks"):
            file = getattr(plan, kind)
            if file is not None:
                setattr(plan, kind, str(Path(path).parent / file))
        return plan

    @classmethod
    def from_json(cls, data: Any, where: str = "plan") -> Plan:
        """Build from parsed JSON; `where` names the source in errors."""
        if not isinstance(data, Mapping) or not isinstance(data.get("layers"), Mapping):
            raise PerfonnxError(f'{where}: not a plan; it needs {{"perfonnx_plan": {FORMAT}, "layers": {{...}}}}')
        if data.get("perfonnx_plan") != FORMAT:
            raise PerfonnxError(
                f"{where}: plan format {data.get('perfonnx_plan')!r} is unknown; this version reads {FORMAT}"
            )
        unknown = sorted(set(data) - set(_FIELDS))
        if unknown:
            raise PerfonnxError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(_FIELDS)}")
        seed = data.get("seed", 0)
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise PerfonnxError(f"{where}: seed {seed!r} is not a whole number from 0 up")
        layout = data.get("layout", LAYOUTS[0])
        if layout not in LAYOUTS:
            raise PerfonnxError(f"{where}: unknown layout {layout!r}; choose from {', '.join(LAYOUTS)}")
        files: dict[str, Any] = {kind: data.get(kind) for kind in ("corrections", "masks")}
        for kind, file in files.items():
            if file is not None and not isinstance(file, str):
                raise PerfonnxError(f"{where}: {kind} is {file!r}; give the name of a file")
        digests = data.get("digests", {})
        if not isinstance(digests, Mapping) or not all(isinstance(value, str) for value in digests.values()):
            raise PerfonnxError(f"{where}: digests is {digests!r}; give an object, or leave it out")
        known = set(LayerPlan.__dataclass_fields__)
        layers = {}
        for name, fields in data["layers"].items():
            layer = f"{where}: layer {name!r}"
            if not isinstance(fields, Mapping) or not isinstance(fields.get("method"), str):
                raise PerfonnxError(f'{layer} needs an object with a "method"')
            unknown = sorted(set(fields) - known)
            if unknown:
                raise PerfonnxError(
                    f"{layer} has the unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}"
                )
            layers[name] = LayerPlan(**fields)
            layers[name].check(layer)
        shapes = _input_shapes(data.get("input_shapes", {}), where)
        return cls(layers, seed, layout=layout, input_shapes=shapes, digests=dict(digests), **files)

    def to_json(self) -> dict[str, Any]:
        """As plain data, with only the fields that a layer's method reads."""
        fields = {
            "perforate": ("method", "rate", "mask", "interpolation"),
            "sparse": ("method", "rate", "mask"),
            "radius-adaptive": ("method", "center_gain"),
            DENSE: ("method",),
        }
        layers = {
            name: {key: asdict(layer)[key] for key in fields[layer.method]} for name, layer in self.layers.items()
        }
        for name, layer in self.layers.items():
            if layer.repair != NO_REPAIR:
                layers[name]["repair"] = layer.repair
            if layer.open_share != 1:
                layers[name]["open_share"] = layer.open_share
            if layer.fill != ZERO:
                layers[name]["fill"] = layer.fill
            if layer.trained_gate:
                layers[name]["trained_gate"] = True
        result: dict[str, Any] = {"perfonnx_plan": FORMAT, "seed": self.seed, "layers": layers}
        if self.input_shapes:
            result["input_shapes"] = {name: list(shape) for name, shape in self.input_shapes.items()}
        if self.layout != LAYOUTS[0]:
            result["layout"] = self.layout
        if self.corrections is not None:
            result["corrections"] = self.corrections
        if self.masks is not None:
            result["masks"] = self.masks
        if self.digests:
            result["digests"] = self.digests
        if self.notes:
            result["notes"] = self.notes
        return result

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as indented JSON, atomically."""
        write_atomically(path, json.dumps(self.to_json(), indent=2) + "\n")


def _input_shapes(data: Any, where: str) -> dict[str, tuple[int | str | None, ...]]:
    if not isinstance(data, Mapping):
        raise PerfonnxError(f'{where}: input_shapes must be an object such as {{"image": [1, 3, 224, 224]}}')
    for name, shape in data.items():
        sizes = isinstance(shape, list) and all(
            d is None or isinstance(d, str) or (isinstance(d, int) and not isinstance(d, bool) and d >= 0)
            for d in shape
        )
        if not sizes:
            raise PerfonnxError(f"{where}: input_shapes, {name!r}: {shape!r} is no shape; give a list of sizes")
    return {name: tuple(shape) for name, shape in data.items()}
