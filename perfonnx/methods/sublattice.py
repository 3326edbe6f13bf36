"""Sublattices: runs of layers whose maps live on one sublattice, with weights refitted by least squares.

A layer inside such a region reads the positions that exist and no others, so nothing is interpolated between layers:
its taps are those of its kernel in the lattice's own basis, and their weights are fitted, front to back and without
labels, so that its sites come closest to what the original network gives there. What reads a region from outside does
the same, by classes of positions for which the same taps exist: it learns to interpolate.

The layer is a `PerforatedConv` whose kernel is large enough for its taps and zero elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx.corrections import Correction
from perfonnx.errors import PerfonnxError
from perfonnx.fitting import fit_obstacle, nearest_sites
from perfonnx.masks import Mask, PoolWindow
from perfonnx.methods.base import (
    GAINING,
    Context,
    Decision,
    Fitted,
    Method,
    Needs,
    SampledMethod,
    Space,
    Spot,
    setting,
)
from perfonnx.methods.masked import sampling_operands
from perfonnx.methods.product import RefitProduct
from perfonnx.methods.refit import Ints, SiteClass, check, classes_of, own_taps, refitted
from perfonnx.model.layers import Layer, constant_input, conv_layers, following_pool
from perfonnx.model.proto import is_standard
from perfonnx.model.workspace import Workspace
from perfonnx.ops.common import ConvAttributes, dense_multiplies
from perfonnx.ops.perforated_conv import PERFORATED_CONV
from perfonnx.sampling import DEPLETED, HONEYCOMB, QUINCUNX, SQUARE, Cosets, Sampling, interpolate

if TYPE_CHECKING:
    from torch import nn

    from perfonnx.torch.modules import SampledConv2d

EVERYWHERE = "dense"
LATTICES = {
    "quincunx": Cosets.of(QUINCUNX, (0, 0)),
    "square": Cosets.of(SQUARE, (0, 0)),
    "honeycomb": HONEYCOMB,
    "depleted": DEPLETED,
}
"""By name."""
TURNED, OWN = TAPS = ("turned", "own")
"""Taps of the kernel turned, or stretched, into the lattice's basis; or those of the kernel itself that exist."""


def lattice_mask(lattice: str, shape: Sequence[int], offset: tuple[int, int] = (0, 0)) -> NDArray[np.bool_]:
    """Bool [H, W], true at the positions of a lattice that is moved by `offset`."""
    height, width = shape
    if lattice == EVERYWHERE:
        return np.ones((height, width), bool)
    return LATTICES[lattice].mask((height, width), offset)


@dataclass(frozen=True)
class Sublattice(SampledMethod):
    """Computed on a sublattice, with weights fitted to the original responses.

    Attributes:
        lattice: One of `LATTICES`, or "dense" where every position is computed, by refitted weights.
        taps: One of `TAPS`.
        flips: Whether weights are fitted to mirror images of the data too: right where left and right are alike.
        at: Sizes of maps, as `56x56,28x28`; layers with maps of other sizes are dense. Empty: all layers.
    """

    NAME = "sublattice"
    ADJECTIVE = "sublattice"
    SUMMARY = "runs of layers on one sublattice, which read what exists there; weights refitted on --data, no training"
    OPERATOR = PERFORATED_CONV.name
    MENDING = RefitProduct.REPLACES

    lattice: str = setting(
        "quincunx",
        "which positions are computed: quincunx (default of sublattice, a half), square (default of strided, a "
        "quarter); honeycomb (two thirds), depleted (four fifths), dense (sublattice); rows or columns (strided)",
        "NAME",
    )
    taps: str = setting(TURNED, "sublattice: turned (default), the kernel in the lattice's basis, or own", "KIND")
    at: str = setting("", "sublattice: sizes of the maps that are put on the lattice, as 56x56,28x28", "SIZES")

    flips: bool = setting(
        False,
        "sublattice: fit to the mirror images of --data too, from left to right, where these are as good; for few of "
        "them",
    )

    # --- settings ----------------------------------------------------------------------------------------------------

    def check(self, where: str) -> None:
        """See `Method.check`."""
        if self.lattice not in (*LATTICES, EVERYWHERE):
            raise PerfonnxError(
                f"{where}: unknown lattice {self.lattice!r}; choose from {', '.join(LATTICES)}, {EVERYWHERE}"
            )
        if self.taps not in TAPS:
            raise PerfonnxError(f"{where}: unknown taps {self.taps!r}; choose from {', '.join(TAPS)}")
        if not isinstance(self.flips, bool):
            raise PerfonnxError(f"{where}: flips is {self.flips!r}; give true or false")
        if not isinstance(self.at, str):
            raise PerfonnxError(f"{where}: at is {self.at!r}; give sizes of maps, as 56x56,28x28")
        _sizes(self.at, where)

    @classmethod
    def check_asked(cls, settings: Mapping[str, Any], where: str) -> None:
        """See `Method.check_asked`."""
        if "at" in settings and not _sizes(settings["at"], where):
            raise PerfonnxError(f"{where}: at is {settings['at']!r}; give sizes of maps, as 56x56,28x28")
        if "at" in settings and settings.get("lattice") == EVERYWHERE:
            raise PerfonnxError(
                f"{where}: at says which maps are put on a lattice, and {EVERYWHERE} is none; use --only"
            )

    @classmethod
    def chosen(cls, settings: Mapping[str, Any], layer: Layer, context: Context) -> Method:
        """See `Method.chosen`: on the lattice where the size of the map says so; products are refitted behind all."""
        if not layer.is_conv:
            return RefitProduct()
        step = cls(**settings)
        sizes = _sizes(step.at, "--at")
        context.kept(_Sizes).look(sizes, layer)
        on_lattice = not sizes or layer.output_shape in sizes
        return replace(step, at="", lattice=step.lattice if on_lattice else EVERYWHERE)

    @property
    def needs(self) -> Needs:
        """See `Method.needs`."""
        return Needs.TARGETS

    @property
    def mirrors(self) -> bool:
        """See `Method.mirrors`."""
        return self.flips

    def worth(self, settings: Mapping[str, Any]) -> float | None:
        """Dense layers only where kernels of ours are faster."""
        return GAINING if self.lattice == EVERYWHERE else None

    def check_data(self, name: str, context: Context) -> None:
        """See `Method.check_data`."""
        if context.feeds is None and name not in context.corrections:
            raise PerfonnxError(
                f"layer {name!r} is to be refitted, but there is no calibration data; give --data, or a plan saved "
                "after a fit"
            )

    def obstacle(self, layer: Layer, context: Context) -> str | None:
        """See `Method.obstacle`."""
        if layer.output_shape is None:
            return "the size of its output is not known"
        return fit_obstacle(math.prod(layer.w_shape[1:]))

    # --- accounts ----------------------------------------------------------------------------------------------------

    @property
    def saving(self) -> float:
        """See `Method.saving`."""
        return 0.0 if self.lattice == EVERYWHERE else 1 - LATTICES[self.lattice].share

    @property
    def asked(self) -> str:
        """See `Method.asked`."""
        return f"rate {self.saving:g}"

    @property
    def label(self) -> str:
        """See `Method.label`."""
        name = "refitted" if self.lattice == EVERYWHERE else self.lattice
        return name if self.taps == TURNED else f"{name} {self.taps} taps"

    @property
    def detail(self) -> str:
        """See `Method.detail`."""
        return self.label

    @property
    def stamp(self) -> str:
        """See `Method.stamp`."""
        return f"{self.NAME}, {self.label}"

    def multiplies(self, layer: Layer, mask: Mask | None, correction: Correction | None) -> int:
        """See `SampledMethod.multiplies`; of the taps that each class has."""
        if correction is None or not correction.arrays:
            return super().multiplies(layer, mask, correction)
        m, c = layer.w_shape[:2]
        return sum(dense_multiplies((m, c, len(each.taps), 1), int(each.mask.sum())) for each in classes_of(correction))

    # --- search ------------------------------------------------------------------------------------------------------

    @classmethod
    def candidates(cls, space: Space) -> Sequence[Method]:
        """See `Method.candidates`: not unions of cosets, which lose as much as the quincunx and cost more."""
        found = [cls(lattice, flips=space.flips) for lattice, cosets in LATTICES.items() if len(cosets.parts) == 1]
        return [method for method in found if method.saving in space.savings]

    @property
    def regional(self) -> bool:
        """See `Method.regional`."""
        return self.lattice != EVERYWHERE

    @property
    def behind(self) -> Sequence[Method]:
        """See `Method.behind`: refitted, so that they make up for what went wrong in front of them."""
        return replace(self, lattice=EVERYWHERE, at=""), RefitProduct()

    @property
    def shareable(self) -> bool:
        """See `Method.shareable`."""
        return True

    # --- training ----------------------------------------------------------------------------------------------------

    @property
    def trains_correction(self) -> bool:
        """See `Method.trains_correction`."""
        return True

    def training_obstacle(self, *, normalized: bool, shared: bool) -> str | None:
        """See `Method.training_obstacle`: weights are fitted with what is folded into them."""
        return "a BatchNormalization behind it belongs to its weights; fold it first" if normalized else None

    def trainable(
        self, module: nn.Conv2d, mask: Mask | None, correction: Correction | None = None
    ) -> SampledConv2d | None:
        """The module itself where it goes on from this fit already: it keeps its weights."""
        from perfonnx.torch.modules import explicit_pads, fitted_weight, plain
        from perfonnx.torch.sublattice import SublatticeConv2d

        assert mask is not None
        assert correction is not None
        if isinstance(module, SublatticeConv2d) and module.correction is correction:
            return module
        kernel, dilation = cast("tuple[int, int]", module.kernel_size), cast("tuple[int, int]", module.dilation)
        geometry = ConvAttributes(kernel, pads=explicit_pads(module), dilations=dilation)
        check(correction, fitted_weight(module, correction), mask, own_taps(geometry))
        return SublatticeConv2d(plain(module), mask, correction)

    # --- replacing ---------------------------------------------------------------------------------------------------

    def drawn(self, layer: Layer, context: Context) -> tuple[Sublattice, Mask | None]:
        """See `SampledMethod.drawn`."""
        assert layer.output_shape is not None
        return self, lattice_mask(self.lattice, layer.output_shape)

    def source(self, mask: Mask) -> NDArray[np.int32] | None:
        """See `SampledMethod.source`."""
        return interpolate(mask).source[:, 0]

    @property
    def reads_sites(self) -> bool:
        """See `SampledMethod.reads_sites`."""
        return self.lattice != EVERYWHERE

    def operands(self, workspace: Workspace, decision: Decision) -> tuple[list[gs.Constant], dict[str, Any], str]:
        """`mask`, and the table of the nearest sites."""
        assert decision.mask is not None
        sampling = interpolate(decision.mask)
        if (pool := following_pool(workspace, decision.layer)) is not None:
            sampling = within_windows(sampling, pool)
        return *sampling_operands(workspace, sampling), self.label

    @property
    def is_dense(self) -> bool:
        """See `SampledMethod.is_dense`."""
        return self.lattice == EVERYWHERE

    def corrected(self, spot: Spot) -> Fitted:
        """See `SampledMethod.corrected`."""
        return refitted(spot, lambda: self._classes(spot), _filled(spot))

    def _classes(self, spot: Spot) -> list[SiteClass]:
        assert spot.mask is not None
        known = known_positions(spot.workspace, spot.node.inputs[0])
        return site_classes(spot.mask, spot.attributes, known, self.taps)


def _filled(spot: Spot) -> Sampling | None:
    """How skipped positions are filled where that is not from the first of the nearest sites; for training."""
    assert spot.mask is not None
    source = constant_input(spot.workspace, spot.node, "source")
    assert source is not None
    same = np.array_equal(source, interpolate(spot.mask).source)
    return None if same else Sampling(spot.mask, source, None, "nearest")


def _sizes(text: str, where: str) -> set[tuple[int, int]]:
    """Sizes of maps from `56x56,28x28`."""
    found = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        numbers = part.lower().split("x")
        if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
            raise PerfonnxError(f"{where}: {part!r} is no size of a map; give height and width, as 56x56")
        found.add((int(numbers[0]), int(numbers[1])))
    return found


def within_windows(sampling: Sampling, pool: PoolWindow) -> Sampling:
    """Nearest sites, those before others that lie in all windows of a pool in which the position lies.

    A pool's windows then read the sites in them, and hardly any others.
    """
    nearest = nearest_sites(sampling.mask, 4)
    here, there = (np.stack(np.divmod(q, sampling.shape[1])) for q in (np.arange(sampling.mask.size), nearest))
    same = np.square(there - here[:, :, None]).sum(axis=0)
    inside = same == same[:, :1]
    for axis, size in enumerate(pool.output_shape(sampling.shape)):
        starts = np.arange(size) * pool.strides[axis] - pool.pads[axis]
        positions = np.arange(sampling.shape[axis])[:, None] - starts
        member = (positions >= 0) & (positions < pool.kernel[axis])  # [positions, windows]
        inside &= ~(member[here[axis]][:, None] & ~member[there[axis]]).any(axis=2)
    best = np.where(inside.any(axis=1), inside.argmax(axis=1), 0)
    source = np.take_along_axis(nearest, best[:, None], axis=1)
    return Sampling(sampling.mask, source.astype(np.int32), None, sampling.interpolation)


def site_classes(mask: Mask, attributes: ConvAttributes, known: Mask, taps: str) -> list[SiteClass]:
    """The classes of a layer's sites.

    Args:
        mask: bool [OH, OW], the sites.
        attributes: The layer's geometry.
        known: bool [H, W], the positions of the input that are not made from others.
        taps: One of `TAPS`.

    Returns:
        One where all taps exist at all sites, or where no lattice of ours is known; else one for each way in which the
        sites lie to the lattice that is known.
    """
    a = attributes
    own = own_taps(a)
    found = _lattice_in(known)
    if found is None:
        return [SiteClass(mask, own)]
    lattice, offset = found
    sites = np.argwhere(mask)
    read = sites * np.array(a.strides) - np.array(offset)
    residues = LATTICES[lattice].lattice.residues(read)
    classes = []
    for residue in np.unique(residues, axis=0):
        here = (residues == residue).all(axis=1)
        example = read[here][0]
        part = np.zeros_like(mask)
        part[tuple(sites[here].T)] = True
        classes.append(SiteClass(part, _existing(lattice, example, own, a, taps)))
    same = all(np.array_equal(each.taps, classes[0].taps) for each in classes)
    return [SiteClass(mask, classes[0].taps)] if same else classes


def _lattice_in(known: Mask) -> tuple[str, tuple[int, int]] | None:
    """A lattice all of whose positions are known, and its offset; None where all are, or of no lattice."""
    if known.all():
        return None
    for lattice, cosets in LATTICES.items():
        for offset in np.ndindex(cosets.lattice.index, cosets.lattice.index):
            if known[lattice_mask(lattice, known.shape, offset)].all():
                return lattice, offset
    return None


def _existing(lattice: str, example: Ints, own: Ints, a: ConvAttributes, taps: str) -> Ints:
    """The taps of a class, one of whose sites reads around `example`, counted from a site of the lattice."""
    cosets = LATTICES[lattice]
    exists = cosets.contains(example + own)
    keeps_own = taps == OWN or len(cosets.parts) > 1  # a union of cosets has no basis in which a kernel could lie
    square = a.kernel_shape[0] == a.kernel_shape[1] and a.dilations[0] == a.dilations[1]
    if exists.all() or not square or (keeps_own and exists.any()):
        return own[exists] if square else own
    # Points of the lattice that lie within the kernel's reach of its centre, counted in steps of the lattice.
    reach = (a.kernel_shape[0] - 1) * a.dilations[0] / 2
    centre = own.mean(axis=0)
    far = int(np.ceil(reach)) * 2 + 1
    around = np.argwhere(np.ones((2 * far + 1, 2 * far + 1))) - far + np.round(centre).astype(int)
    within = np.abs(cosets.lattice.fractions(around - centre)).max(axis=1) <= max(reach, 0.5)
    return np.asarray(around[within & cosets.contains(example + around)])


def known_positions(workspace: Workspace, tensor: gs.Tensor) -> Mask:
    """The positions of a map, bool [H, W], whose values are their own: not copies of those of sites beside them.

    A guess, for what is certain does not matter: a layer is fitted to whatever its taps give.
    """
    return _known(workspace, tensor, {})[0]


def _known(workspace: Workspace, tensor: gs.Tensor, seen: dict[str, tuple[Mask, bool]]) -> tuple[Mask, bool]:
    """The positions, and whether all others are zero."""
    if tensor.name in seen:
        return seen[tensor.name]
    size = _size_of(workspace, tensor)
    mask, zero = np.ones(size, bool), False
    node = tensor.inputs[0] if tensor.inputs else None
    if node is not None and node.op == PERFORATED_CONV.name:
        sites, source = constant_input(workspace, node, "mask"), constant_input(workspace, node, "source")
        assert sites is not None
        assert source is not None
        mask, zero = sites, not (source >= 0).all()
    elif node is not None and is_standard(node) and node.op in KEEPS_POSITIONS:
        parts = [_known(workspace, t, seen) for t in node.inputs if _size_of(workspace, t) == size]
        masks = [part for part, _ in parts]
        if node.op == "Add" and all(rest for _, rest in parts) and not np.logical_and.reduce(masks).any():
            mask, zero = np.logical_or.reduce(masks), True  # classes of one layer
        elif masks:
            mask = np.logical_and.reduce(masks)
    seen[tensor.name] = mask, zero
    return mask, zero


KEEPS_POSITIONS = frozenset(
    "Add Sum Mul Concat Relu LeakyRelu PRelu Clip Sigmoid HardSigmoid HardSwish Tanh Elu Identity Dropout".split()  # noqa: SIM905
)
"""Operators that make each position of a map from the same position of others."""


def _size_of(workspace: Workspace, tensor: gs.Tensor) -> tuple[Any, ...]:
    known = workspace.types.get(tensor.name)
    return () if known is None or known.shape is None else tuple(known.shape[2:])


class _Sizes:
    """The sizes of maps that were asked for, and those that layers have."""

    def __init__(self, context: Context) -> None:
        self.workspace = context.workspace
        self.wanted: set[tuple[int, int]] = set()
        self.there: set[tuple[int, int] | None] = set()

    def look(self, wanted: set[tuple[int, int]], layer: Layer) -> None:
        """One layer was looked at."""
        self.wanted |= wanted
        self.there.add(layer.output_shape)

    def close(self, left: Mapping[str, str]) -> None:
        """A size that no layer has, or none that is looked at, is a mistake."""
        for height, width in sorted(self.wanted - self.there):
            at = f"--at {height}x{width}"
            for layer in conv_layers(self.workspace):
                if layer.output_shape == (height, width) and layer.name in left:
                    raise PerfonnxError(
                        f"{at}: all layers with such a map are left alone, {layer.name!r} for one: {left[layer.name]}"
                    )
            raise PerfonnxError(f"{at}: no layer has such a map; perfonnx inspect shows their sizes")
