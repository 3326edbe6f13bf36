"""What calibration data or training gave for each layer: arrays that change its constants, and their file."""

from __future__ import annotations

import hashlib
import io as std_io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfonnx.errors import PerfonnxError, one_line
from perfonnx.model.atomic import write_atomically
from perfonnx.sampling import Sampling

FORMAT = 1
_OWN = ".own."
_ARRAYS = ("bias", "mask", "predictor", "source", "weight", "gate", "ring_bias")


@dataclass(frozen=True, eq=False)
class Gate:
    """The gate of a radius-adaptive layer: alpha = clip(x . weight + bias, 0, 1).

    Attributes:
        weight: float32 [C].
        bias: Its bias.
        ring_bias: float32 [M], what alpha adds beside the ring.
        gain: How much alpha adds to the centre's factor of 1. Unless the gate was trained, the centre tap is divided
            by 1 + gain.
        share: Share of the pixels of calibration or training data whose alpha is not 0.
    """

    weight: NDArray[np.float32]
    bias: float
    ring_bias: NDArray[np.float32]
    gain: float
    share: float


@dataclass(frozen=True, eq=False)
class TrainedGate:
    """The gate of a radius-adaptive layer as training found it, together with the layer's weights.

    With the plan's `center_gain`, the weight's centre tap W', its other taps R and its bias B, the layer was trained as
    (1 + center_gain * alpha) W' x + B + alpha (R x + ring_bias), alpha = clip(x . weight + bias, 0, 1).

    Attributes:
        weight: float [C].
        bias: Its bias.
        ring_bias: float [M], in terms of what the convolution gives, before any BatchNormalization; None: 0.
        open_share: Share of the pixels seen in training whose alpha is not 0; for the report.
    """

    weight: NDArray[np.floating]
    bias: float
    ring_bias: NDArray[np.floating] | None = None
    open_share: float = 1.0


@dataclass(frozen=True, eq=False)
class Correction:
    """What is corrected in one perforated layer, whose result is V at its sites; or in a radius-adaptive one.

    Attributes:
        bias: float32 [M], added to the layer's bias.
        mask: bool [H, W], the mask for which it was found; [0, 0] with a gate.
        interpolation: The interpolation for which it was found; empty with a gate.
        weights: Digest of the layer's weights, see `digest`.
        predictor: float32 [M, C/group] or None. The result becomes A x + Interp(V - A x) + bias.
            With a gate, it is added to the centre tap.
        learned: The interpolation that takes the place of the layer's own, or None.
        before: Mean squared error on the calibration data, over the variance of the target; after the layers in front
            of it were repaired, before it was.
        after: The same after.
        gate: Of a radius-adaptive layer; None for perforated ones.
        arrays: What another method found, by names of its own.
    """

    bias: NDArray[np.float32]
    mask: NDArray[np.bool_]
    interpolation: str
    weights: str
    predictor: NDArray[np.float32] | None = None
    learned: Sampling | None = None
    before: float = 0.0
    after: float = 0.0
    gate: Gate | None = None
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        weight: NDArray[Any],
        arrays: Mapping[str, NDArray[Any]],
        before: float,
        after: float,
        learned: Sampling | None = None,
    ) -> Correction:
        """What a method of no special kind found for a layer of this weight."""
        mask = np.zeros((0, 0), bool) if learned is None else learned.mask
        nothing = np.zeros(0, np.float32), mask, ""
        return cls(*nothing, digest(weight), learned=learned, before=before, after=after, arrays=arrays)

    @property
    def nbytes(self) -> int:
        """Size of its arrays."""
        found = [self.bias, self.mask, self.predictor, *self.arrays.values()]
        if self.learned is not None:
            found += [self.learned.source, self.learned.weight]
        return sum(array.nbytes for array in found if array is not None)


Corrections = dict[str, Correction]
"""By layer name."""


def digest(weight: NDArray[Any]) -> str:
    """What tells one layer's weights from another's."""
    return hashlib.sha256(repr(weight.shape).encode() + np.ascontiguousarray(weight).tobytes()).hexdigest()[:16]


def save(corrections: Mapping[str, Correction], path: str | os.PathLike[str]) -> None:
    """Write as .npz, atomically.

    Raises:
        PerfonnxError: The place cannot be written.
    """
    arrays: dict[str, NDArray[Any]] = {}
    layers: list[dict[str, Any]] = []
    for number, (name, c) in enumerate(corrections.items()):
        layers.append(
            {
                "name": name,
                "interpolation": c.interpolation,
                "weights": c.weights,
                "before": c.before,
                "after": c.after,
            }
        )
        values: dict[str, NDArray[Any] | None] = {"bias": c.bias, "mask": c.mask, "predictor": c.predictor}
        if c.gate is not None:
            layers[-1] |= {"gate": {"bias": c.gate.bias, "gain": c.gate.gain, "share": c.gate.share}}
            values |= {"gate": c.gate.weight, "ring_bias": c.gate.ring_bias}
        if c.learned is not None:
            values |= {"source": c.learned.source, "weight": c.learned.weight}
        arrays |= {f"{number}.{kind}": array for kind, array in values.items() if array is not None}
        arrays |= {f"{number}{_OWN}{name}": array for name, array in c.arrays.items()}
    about = json.dumps({"perfonnx_corrections": FORMAT, "layers": layers})
    stream = std_io.BytesIO()
    np.savez_compressed(stream, about=np.array(about), **arrays)  # type: ignore[arg-type]
    write_atomically(path, stream.getvalue())


def load(path: str | os.PathLike[str]) -> Corrections:
    """Read what `save` wrote.

    Raises:
        PerfonnxError: Not there, damaged, or something else.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            about = json.loads(str(archive["about"]))
            if about["perfonnx_corrections"] != FORMAT:
                raise PerfonnxError(
                    f"{path}: corrections of format {about['perfonnx_corrections']!r}; this version reads {FORMAT}"
                )
            result = {}
            for number, fields in enumerate(about["layers"]):
                arrays = {kind: archive[key] for kind in _ARRAYS if (key := f"{number}.{kind}") in archive.files}
                start = f"{number}{_OWN}"
                own = {key.removeprefix(start): archive[key] for key in archive.files if key.startswith(start)}
                result[str(fields["name"])] = _correction(fields, arrays, own)
            return result
    except OSError as error:
        raise PerfonnxError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from error
    except PerfonnxError as error:
        raise PerfonnxError(f"{path}: {error}" if not str(error).startswith(str(path)) else str(error)) from error
    except Exception as error:  # what numpy, zipfile, zlib and json raise on damaged input is no closed set
        raise PerfonnxError(
            f"{path}: not a file of corrections, or damaged ({one_line(error)}); repair again with --data"
        ) from error


def _correction(
    fields: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], own: Mapping[str, NDArray[Any]]
) -> Correction:
    mask = arrays["mask"].astype(bool)
    learned = None
    if "source" in arrays:
        learned = Sampling(mask, arrays["source"], arrays.get("weight"), "learned")
    ranks = {"bias": 1, "predictor": 2, "gate": 1, "ring_bias": 1}
    found = [(arrays[kind], rank) for kind, rank in ranks.items() if kind in arrays]
    found += [(array, array.ndim) for array in own.values()]
    if any(a.dtype.kind != "f" or a.ndim != rank or not np.isfinite(a).all() for a, rank in found):
        raise PerfonnxError(f"layer {fields['name']!r}: its correction is not finite or of the wrong rank")
    gate = None
    if "gate" in fields:
        bias, gain, share = (float(fields["gate"][kind]) for kind in ("bias", "gain", "share"))
        if not np.isfinite([bias, gain]).all() or gain <= -1 or not 0 <= share <= 1:
            raise PerfonnxError(f"layer {fields['name']!r}: its gate has a bias, gain or share without meaning")
        gate = Gate(arrays["gate"].astype(np.float32), bias, arrays["ring_bias"].astype(np.float32), gain, share)
    return Correction(
        arrays["bias"].astype(np.float32),
        mask,
        str(fields["interpolation"]),
        str(fields["weights"]),
        arrays["predictor"].astype(np.float32) if "predictor" in arrays else None,
        learned,
        float(fields["before"]),
        float(fields["after"]),
        gate,
        own,
    )
