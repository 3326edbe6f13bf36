"""What methods with a mask have in common: a layer is computed at some positions, which a mask names."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx.errors import PerfonnxError
from perfonnx.masks import (
    ANY_LAYER,
    MASKS,
    Mask,
    MaskRequest,
    load_masks,
    make_mask,
    mask_from_file,
    propagated_scores,
)
from perfonnx.methods.base import GAINING, Context, SampledMethod, setting
from perfonnx.model.layers import Layer, conv_layers, following_pool
from perfonnx.model.workspace import Workspace
from perfonnx.sampling import Sampling

if TYPE_CHECKING:
    from typing_extensions import Self

GIVEN = "given"
"""Name of a mask that nothing can draw again, such as one from training; it is kept beside the plan."""

CAREFUL_RATE = 0.25
"""Where nobody says a rate."""

NOT_SLOWER = 0.97
"""Where a rate was given, a layer is rewritten unless that is estimated to make it slower than this."""


def is_mask_file(mask: str) -> bool:
    """True where a mask is named by a file."""
    return Path(mask).suffix in (".npy", ".npz")


def is_own_mask(mask: str) -> bool:
    """True where a mask is a user's own, which has its own rate."""
    return mask == GIVEN or is_mask_file(mask)


def sampling_operands(workspace: Workspace, sampling: Sampling) -> tuple[list[gs.Constant], dict[str, Any]]:
    """What a PerforatedConv has behind its bias: its tables, and the attribute that names them."""
    inputs = [workspace.add_table("mask", sampling.mask), workspace.add_table("source", sampling.source)]
    if sampling.weight is not None:
        inputs.append(workspace.add_table("weight", sampling.weight))
    return inputs, {"interpolation": sampling.interpolation}


@dataclass(frozen=True)
class MaskedMethod(SampledMethod):
    """A method whose layers are computed at the sites of a mask.

    Attributes:
        rate: Fraction of positions to skip, in [0, 1). Masks from a file have their own.
        mask: Name in `perfonnx.masks.MASKS`, the path of a .npy or .npz file, or `GIVEN`.
    """

    rate: float = setting(CAREFUL_RATE, f"fraction of positions to skip (default {CAREFUL_RATE})", "R", written=True)
    mask: str = setting(
        "grid",
        f"{', '.join(MASKS)}, or a .npy file (one mask) or .npz file (one mask per layer name); default: "
        "pooling-structure where a pool follows, else grid; propagated for sparse",
        "NAME|FILE",
        written=True,
    )

    def check(self, where: str) -> None:
        """See `Method.check`."""
        if not isinstance(self.rate, (int, float)) or isinstance(self.rate, bool) or not 0 <= self.rate < 1:
            raise PerfonnxError(
                f"{where}: rate {self.rate!r} is not in [0, 1); it is the fraction of positions to skip"
            )
        if not isinstance(self.mask, str) or not (self.mask in (*MASKS, GIVEN) or is_mask_file(self.mask)):
            raise PerfonnxError(
                f"{where}: unknown mask {self.mask!r}; choose from {', '.join(MASKS)}, or give a .npy or .npz file"
            )

    @classmethod
    def chosen(cls, settings: Mapping[str, Any], layer: Layer, context: Context) -> Self:
        """With the mask that suits the layer, where none is named."""
        if settings.get("mask") is not None:
            return cls(**settings)
        mask = "grid" if following_pool(context.workspace, layer) is None else "pooling-structure"
        return cls(**{**settings, "mask": mask})

    def worth(self, settings: Mapping[str, Any]) -> float | None:
        """A mask that is drawn may be left out; a user's own is meant."""
        if is_own_mask(self.mask):
            return None
        return NOT_SLOWER if "rate" in settings else GAINING

    @property
    def reads_impact(self) -> bool:
        """See `Method.reads_impact`."""
        return self.mask == "impact"

    @property
    def own_randomness(self) -> bool:
        """Whether what is random in the mask is the layer's own, not that of all maps of its size."""
        return False

    def check_sources(self, context: Context) -> None:
        """See `Method.check_sources`."""
        if self.reads_impact and context.impact_maps is None:
            raise PerfonnxError(
                f"{context.workspace.model.name}: the mask impact needs maps of impacts, computed from images: "
                "perfonnx impact MODEL maps.npz --data DIR, then --impact-maps maps.npz; in Python "
                "perfonnx.impact.impact_maps"
            )

    def obstacle(self, layer: Layer, context: Context) -> str | None:
        """Why this mask cannot be made for this layer, though another layer may have it."""
        return context.kept(Masks).obstacle(self, layer)

    def drawn(self, layer: Layer, context: Context) -> tuple[Self, Mask | None]:
        """The step with the real rate of a user's own mask, and the mask: bool [H, W]."""
        mask = context.kept(Masks).make(self, layer)
        step = replace(self, rate=float(1 - mask.mean())) if is_own_mask(self.mask) else self
        return step, mask

    def given_mask(self) -> Self | None:
        """See `Method.given_mask`."""
        return replace(self, mask=GIVEN)

    def scaled(self, part: float) -> Self:
        """See `Method.scaled`; masks from files stay."""
        return replace(self, rate=self.rate * part) if self.mask in MASKS else self

    @property
    def label(self) -> str:
        """The step in a few characters."""
        return f"{self.mask}{'' if is_mask_file(self.mask) else f' {self.rate:g}'}"

    @property
    def detail(self) -> str:
        """See `Method.detail`."""
        return self.mask

    @property
    def asked(self) -> str:
        """See `Method.asked`."""
        return f"rate {self.rate:g}"

    @property
    def saving(self) -> float:
        """See `Method.saving`."""
        return self.rate

    @property
    def stamp(self) -> str:
        """See `Method.stamp`."""
        return f"{self.NAME}, mask {self.mask}, rate {self.rate:g}"


class Masks:
    """Makes the layers' masks; files are read once, the propagated map is drawn once."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.files: dict[str, dict[str, Mask]] = {}
        self.used_files: set[str] = set()
        self.scores: NDArray[Any] | None = None

    def obstacle(self, step: MaskedMethod, layer: Layer) -> str | None:
        """See `MaskedMethod.obstacle`."""
        assert layer.output_shape is not None
        height, width = layer.output_shape
        if step.mask == "pooling-structure" and following_pool(self.context.workspace, layer) is None:
            return "no pooling layer follows; the pooling-structure mask needs one"
        if step.mask == "grid-square" and height != width:
            return f"its map is {height}x{width}; the grid-square mask needs a square one"
        if step.reads_impact and layer.name not in (self.context.impact_maps or {}):
            return "there is no map of impacts for it"
        if is_mask_file(step.mask):
            masks = self._file(step.mask)
            if layer.name not in masks and ANY_LAYER not in masks:
                return f"{step.mask} has no mask for it"
            if layer.name not in masks and masks[ANY_LAYER].shape != layer.output_shape:
                return f"the mask is {_size(masks[ANY_LAYER].shape)}, its map {_size(layer.output_shape)}"
        return None

    def make(self, step: MaskedMethod, layer: Layer) -> Mask:
        """The mask; its random generator depends on the map's size alone, not on which other layers are rewritten.

        Layers with maps of one size so share what is random in their masks. Residual adds between them then stay on
        rows, and nothing is lost: on ResNet-20 (CIFAR-10, all layers, no training, four seeds) shared grid masks keep
        as much accuracy as independent ones, and shared uniform masks 4 to 5 points more.
        """
        assert layer.output_shape is not None
        if is_mask_file(step.mask):
            self.used_files.add(step.mask)
            return mask_from_file(self._file(step.mask), layer.name, layer.output_shape)
        if step.mask == GIVEN:
            if layer.name not in self.context.masks:
                raise PerfonnxError(
                    f"layer {layer.name!r}: its mask was given and is not here; take the plan that was saved with its "
                    "masks, or in Python rewrite(masks=...)"
                )
            return mask_from_file(self.context.masks, layer.name, layer.output_shape)
        own = [zlib.crc32(layer.name.encode())] if step.own_randomness else []
        rng = np.random.default_rng([self.context.seed, *layer.output_shape, *own])
        scores = self._scores() if step.mask == "propagated" else None
        pool = following_pool(self.context.workspace, layer)
        impact = self.context.impact_maps[layer.name] if step.reads_impact and self.context.impact_maps else None
        request = MaskRequest(layer.output_shape, step.rate, rng, pool, scores, impact)
        try:
            return make_mask(step.mask, request)
        except PerfonnxError as error:
            raise PerfonnxError(f"layer {layer.name!r}: {error}") from error

    def close(self, left: Mapping[str, str]) -> None:
        """A mask file that fits no layer is a mistake."""
        for path in self.files:
            if path not in self.used_files:
                raise PerfonnxError(
                    f"{path}: fits no layer that was to be rewritten; perfonnx inspect shows their sizes"
                )

    def _file(self, path: str) -> dict[str, Mask]:
        if path not in self.files:
            self.files[path] = load_masks(path)
        return self.files[path]

    def _scores(self) -> NDArray[Any]:
        if self.scores is None:
            layers = [s for s in conv_layers(self.context.workspace) if not s.obstacle]
            sizes = [s.input_shape[2:] for s in layers if s.input_shape]
            known = [(h, w) for h, w in sizes if isinstance(h, int) and isinstance(w, int)]
            shape = max(known, key=lambda size: size[0] * size[1])
            self.scores = propagated_scores(shape, np.random.default_rng(self.context.seed))
        return self.scores


def _size(shape: Sequence[int]) -> str:
    return "x".join(str(n) for n in shape)
