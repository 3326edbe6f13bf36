"""What a method is: how one layer of a network is replaced, with its settings as a step of a plan.

A method is one file in this package and its test. Everything else, from the command line to the search, asks it; no
other module compares a method's name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx.corrections import Correction, Corrections, TrainedGate
from perfonnx.errors import PerfonnxError
from perfonnx.fitting import Goal
from perfonnx.masks import ImpactMaps, Mask
from perfonnx.model.layers import Layer
from perfonnx.model.workspace import Workspace
from perfonnx.ops.common import Activation, ConvAttributes, dense_multiplies

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import Self

    from perfonnx.torch.modules import SampledConv2d

DENSE = "dense"
"""What a plan says of a layer that is left as it is."""

GAINING = 1.05
"""Where nobody asked, a layer is rewritten only if that is estimated to make it so many times faster."""

METHODS: dict[str, type[Method]] = {}
"""All methods by the name that plans and `--method` give them; a class that has a name is in it."""

Feeds = Iterable[Mapping[str, NDArray[Any]]]
T = TypeVar("T", bound="Kept")


class Needs(Enum):
    """What a method has to see before it can replace a layer."""

    NOTHING = "nothing"
    TARGETS = "targets"
    """What the layer gave in the original network, and what reaches it in the network rewritten up to it."""


def setting(default: Any, doc: str = "", placeholder: str = "", *, written: bool = False, said: str = "") -> Any:
    """A field of a method that plans may set.

    Args:
        default: Its value where a plan does not say it.
        doc: For the command line, where the setting is a flag of its name; empty: it is none.
        placeholder: What stands for its value there; with FILE in it, the value may name a file.
        written: Whether plans say it even where it is the default.
        said: What layers with this setting do, where others must not have it; empty: others do not heed it.
    """
    return field(default=default, metadata={"doc": doc, "placeholder": placeholder, "written": written, "said": said})


class Affine(NamedTuple):
    """y = scale * x + shift, per channel: float64 [M] each."""

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]

    def then(self, step: Affine) -> Affine:
        """This one first, `step` after it."""
        with np.errstate(all="ignore"):  # whoever uses the result looks whether it is finite
            return Affine(self.scale * step.scale, self.shift * step.scale + step.shift)

    @classmethod
    def identity(cls, channels: int) -> Affine:
        """What changes nothing."""
        return cls(np.ones(channels), np.zeros(channels))


class Targets(Protocol):
    """What layers give in the network rewritten so far, and what they should give; asked for front to back."""

    @property
    def images(self) -> int:
        """How many there are."""

    def goal(self, name: str) -> Goal:
        """What a layer's output is for."""

    def values(
        self, name: str, *, settled: bool
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any] | None]]:
        """Input and output of a layer in the network rewritten so far, the target, and what is added to the output.

        Batch by batch, [N, C, H, W] each. With `settled` it is the last time that this layer is asked about.
        """


class Kept(Protocol):
    """What methods share while a network is rewritten."""

    def __init__(self, context: Context) -> None: ...

    def close(self, left: Mapping[str, str]) -> None:
        """Raise `PerfonnxError` where it was of no use although it should have been.

        `left` says of layers that are left alone why they are.
        """


class Space(Protocol):
    """What a search is told to choose from; each method reads what concerns it."""

    @property
    def savings(self) -> Sequence[float]:
        """Shares of a layer's work that are worth leaving out."""

    @property
    def flips(self) -> bool:
        """Whether mirror images of the data are as good as the data, for what is fitted to them."""

    def of(self, setting: str) -> Sequence[Any]:
        """The values of a setting that are to be tried; empty where nothing is said of it."""


@dataclass
class Context:
    """The network that is rewritten, and what methods may draw on.

    Attributes:
        workspace: The network.
        seed: Seed of all random choices.
        impact_maps: What masks called `impact` are made from, by layer name; None where there are none.
        masks: Given masks by layer name.
        gates: Trained gates by layer name.
        feeds: Calibration data, which is iterated again and again; None where there is none.
        corrections: What was found before, by layer name.
        ridge: Strength of regularization, see `perfonnx.fitting`.
    """

    workspace: Workspace
    seed: int = 0
    impact_maps: ImpactMaps | None = None
    masks: Mapping[str, Mask] = field(default_factory=dict)
    gates: Mapping[str, TrainedGate] = field(default_factory=dict)
    feeds: Feeds | None = None
    corrections: Corrections = field(default_factory=dict)
    ridge: float = 0.0
    _kept: dict[type, Kept] = field(default_factory=dict, repr=False)

    def kept(self, kind: type[T]) -> T:
        """The one object of a kind, made from this context, that methods share while a network is rewritten."""
        if kind not in self._kept:
            self._kept[kind] = kind(self)
        found = self._kept[kind]
        assert isinstance(found, kind)
        return found

    def close(self, left: Mapping[str, str]) -> None:
        """Let what was kept say what is wrong with it; called when everything is decided.

        `left` says of layers that are left alone why they are.
        """
        for each in self._kept.values():
            each.close(left)


@dataclass(frozen=True)
class Spot:
    """A layer whose step is fitted, or corrected as before.

    Attributes:
        context: The network, and what was found before.
        name: The layer's name in the plan.
        node: The node that stands for the layer now.
        layer: The layer as it was chosen.
        mask: Its mask, where it has one.
        folded: What was folded into its weight and bias since.
        targets: What to fit it to; None where it is changed as before.
    """

    context: Context
    name: str
    node: gs.Node
    layer: Layer
    mask: Mask | None = None
    folded: Affine | None = None
    targets: Targets | None = None

    @property
    def workspace(self) -> Workspace:
        """The network."""
        return self.context.workspace

    @property
    def attributes(self) -> ConvAttributes:
        """The layer's geometry; of a convolution."""
        assert self.layer.attributes is not None
        return self.layer.attributes

    @cached_property
    def weight(self) -> NDArray[Any]:
        """The weight of the layer that is to be changed: [M, C/group, kh, kw]."""
        return self._constant(1)

    @cached_property
    def bias(self) -> NDArray[Any]:
        """The bias of the layer that is to be changed: [M]."""
        if len(self.node.inputs) < 3 or not self.node.inputs[2].name:
            return np.zeros(self.weight.shape[0], self.weight.dtype)
        return self._constant(2)

    def _constant(self, position: int) -> NDArray[Any]:
        values = self.workspace.constant(self.node.inputs[position])
        assert values is not None
        return values


@dataclass(frozen=True)
class Fitted:
    """What became of a layer that was fitted.

    Attributes:
        correction: What was found, which makes the layer again without data; None where nothing was.
        note: A few words for the report.
        nodes: New nodes: those in its place, or beside it. None in its place: it stays, and the note says why.
    """

    correction: Correction | None
    note: str
    nodes: Sequence[gs.Node] = ()


@dataclass(frozen=True)
class Method(ABC):
    """How one layer is replaced. A frozen dataclass, whose fields are its settings: a step of a plan."""

    NAME: ClassVar[str]
    ADJECTIVE: ClassVar[str]
    """What its layers are called in messages."""
    SUMMARY: ClassVar[str]
    """One line for lists of methods."""
    PLACE: ClassVar[int] = 10
    """In lists, smaller ones come first; of one place those that come first by name."""
    REPLACES: ClassVar[frozenset[str]] = frozenset({"Conv"})
    """The operators whose layers it takes."""
    MENDING: ClassVar[frozenset[str]] = frozenset()
    """Those of other layers that make up for what it does, however small they are; `chosen` gives their steps."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Enter it in `METHODS`, if it has a name."""
        super().__init_subclass__(**kwargs)
        if "NAME" in cls.__dict__:
            METHODS[cls.NAME] = cls

    def __post_init__(self) -> None:
        """Make numpy's numbers Python's, which JSON can hold."""
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Real) and not isinstance(value, (bool, int)):
                object.__setattr__(self, each.name, float(value))

    # --- settings ----------------------------------------------------------------------------------------------------

    def check(self, where: str) -> None:  # noqa: B027
        """Raise `PerfonnxError` naming `where` if a setting has no meaning."""

    def to_json(self) -> Any:
        """As plain data."""
        values = asdict(self)
        told = (f.name for f in fields(self) if f.metadata.get("written") or values[f.name] != f.default)
        return {"method": self.NAME, **{name: values[name] for name in told}}

    @property
    def steps(self) -> tuple[Method, ...]:
        """What happens to the layer, one after the other: each step works on what the one before made of it."""
        return (self,)

    @classmethod
    def settings(cls) -> list[str]:
        """Their names."""
        return [each.name for each in fields(cls)]

    @classmethod  # noqa: B027
    def check_asked(cls, settings: Mapping[str, Any], where: str) -> None:
        """Raise `PerfonnxError` naming `where` if settings that were asked for say nothing, or not together."""

    @classmethod
    def chosen(cls, settings: Mapping[str, Any], layer: Layer, context: Context) -> Method:
        """The step for a layer where no plan says it, from the settings that were asked for."""
        return cls(**settings)

    # --- deciding ----------------------------------------------------------------------------------------------------

    @property
    def needs(self) -> Needs:
        """What it has to see."""
        return Needs.NOTHING

    @property
    def reads_impact(self) -> bool:
        """Whether it is made from maps of impacts."""
        return False

    @property
    def mirrors(self) -> bool:
        """Whether what is fitted sees mirror images of the calibration data too."""
        return False

    def worth(self, settings: Mapping[str, Any]) -> float | None:
        """How many times faster than the dense layer it has to be, by estimate, where nobody asked for this layer.

        `settings` are those that were asked for. None: it is done whatever it costs.
        """
        return None

    def check_sources(self, context: Context) -> None:  # noqa: B027
        """Raise `PerfonnxError` where what it decides by is not there."""

    def check_data(self, name: str, context: Context) -> None:  # noqa: B027
        """Raise `PerfonnxError` where what it is fitted by is not there; `name` is the layer's."""

    @property
    def heeds_reservation(self) -> bool:
        """Whether layers of little work per value, such as those of 1x1 kernels, are left alone where nobody asked."""
        return True

    def obstacle(self, layer: Layer, context: Context) -> str | None:
        """Why it cannot replace a layer, as a person says it; None where it can."""
        return None

    # --- accounts ----------------------------------------------------------------------------------------------------

    @property
    def label(self) -> str:
        """The step in a few characters."""
        told = (f"{name} {value}" for name, value in self.to_json().items() if name != "method")
        return " ".join([self.NAME, *told])

    @property
    def detail(self) -> str:
        """What a table says of it beside its name."""
        return self.label.removeprefix(self.NAME).strip()

    @property
    def asked(self) -> str:
        """How much of the work it is asked to leave out, in words; empty where that is not said."""
        return ""

    @property
    def saving(self) -> float:
        """Which share of the layer's work it is asked to leave out, roughly, in [0, 1)."""
        return 0.0

    # --- search ------------------------------------------------------------------------------------------------------

    @classmethod
    def candidates(cls, space: Space) -> Sequence[Method]:
        """The settings worth trying where a search chooses; none where the method wants training, or a user's word."""
        return ()

    def promises(self, layer: Layer) -> bool:
        """Whether a search should try it with a layer by itself, which it can replace."""
        return layer.is_conv and not (layer.reservation and self.heeds_reservation)

    @property
    def kind(self) -> Method:
        """The same for settings that differ in how much they save alone."""
        return self

    @property
    def family(self) -> str:
        """What layers have in common that had better be alike all over a network, such as the mask."""
        return self.NAME

    @property
    def timed(self) -> Method:
        """Settings that take exactly as long, and the least to prepare."""
        return self

    @property
    def shareable(self) -> bool:
        """Whether layers whose outputs meet stay on common rows if all of them have it."""
        return False

    @property
    def regional(self) -> bool:
        """Whether a search chooses it for runs of layers of one resolution together, rather than layer by layer."""
        return False

    @property
    def behind(self) -> Sequence[Method]:
        """Where it is regional: what layers behind a region get, by their kind; others are as without it."""
        return ()

    @property
    def lossless(self) -> bool:
        """Whether the layer gives what it gave, up to rounding."""
        return False

    @property
    def goes_further(self) -> bool:
        """Whether a search can go on from layers that have it."""
        return False

    @property
    def stamp(self) -> str:
        """The step in the doc string of the nodes that it made."""
        return self.label

    # --- training ----------------------------------------------------------------------------------------------------

    def given_mask(self) -> Self | None:
        """The step with a mask that was given; None where its layers have none."""
        return None

    def given_gate(self, gate: TrainedGate) -> Self | None:
        """The step with a gate that was trained; None where its layers have none."""
        return None

    @property
    def is_trained(self) -> bool:
        """Whether it is changed by what training found."""
        return False

    def trainable(
        self, module: nn.Conv2d, mask: Mask | None, correction: Correction | None = None
    ) -> SampledConv2d | None:
        """The counterpart of a module that is trained in its place; None where there is none.

        Args:
            module: What stands for the layer now.
            mask: The layer's mask, where it has one.
            correction: What was found for it, where `trains_correction`.
        """
        return None

    @property
    def trains_correction(self) -> bool:
        """Whether training goes on from what was fitted and changes that alone, not the layer's own weights."""
        return False

    def training_obstacle(self, *, normalized: bool, shared: bool) -> str | None:
        """Why a layer cannot be trained so; None where it can.

        Args:
            normalized: A BatchNormalization follows it.
            shared: Another layer has its weight.
        """
        return None

    @property
    def trained(self) -> Method:
        """The step without what is fitted, which training finds by itself."""
        return self

    @property
    def open_budget(self) -> float | None:
        """Share of what is decided at run time that training may keep; None where nothing is."""
        return None

    def scaled(self, part: float) -> Method:
        """The step with this part of its saving, where that is a choice."""
        return self


@dataclass(frozen=True)
class Chain(Method):
    """Several steps, or none: then the layer stays as it is."""

    parts: tuple[Method, ...] = ()

    @property
    def steps(self) -> tuple[Method, ...]:
        """See `Method.steps`; what the last part wants done behind it comes last."""
        return (*self.parts[:-1], *(self.parts[-1].steps if self.parts else ()))

    def check(self, where: str) -> None:
        """See `Method.check`."""
        for number, step in enumerate(self.parts, 1):
            step.check(f"{where}, step {number}")
            if number < len(self.parts) and not isinstance(step, StandardMethod):
                raise PerfonnxError(f"{where}, step {number}: nothing can follow it; {step.ADJECTIVE} layers come last")

    def to_json(self) -> Any:
        """See `Method.to_json`."""
        return [step.to_json() for step in self.parts] if self.parts else {"method": DENSE}

    @property
    def needs(self) -> Needs:
        """See `Method.needs`."""
        return Needs.TARGETS if any(step.needs is Needs.TARGETS for step in self.parts) else Needs.NOTHING

    @property
    def label(self) -> str:
        """See `Method.label`."""
        return ", ".join(step.label for step in self.parts) or DENSE

    @property
    def saving(self) -> float:
        """See `Method.saving`."""
        return 1 - math.prod(1 - step.saving for step in self.parts)

    @property
    def kind(self) -> Method:
        """See `Method.kind`."""
        return Chain(tuple(step.kind for step in self.parts))

    @property
    def family(self) -> str:
        """See `Method.family`: that of what comes first."""
        return self.parts[0].family if self.parts else DENSE

    @property
    def timed(self) -> Method:
        """See `Method.timed`."""
        return Chain(tuple(step.timed for step in self.parts))

    @property
    def trained(self) -> Method:
        """See `Method.trained`."""
        return Chain(tuple(step.trained for step in self.parts))

    @property
    def trains_correction(self) -> bool:
        """See `Method.trains_correction`."""
        return any(step.trains_correction for step in self.steps)

    def training_obstacle(self, *, normalized: bool, shared: bool) -> str | None:
        """See `Method.training_obstacle`: what comes first is trained, and the rest must not matter to it."""
        first, *others = self.steps
        for step in others:
            if not step.lossless:
                return f"{first.NAME} is trained, but not with {step.NAME} behind it; leave that out"
        return first.training_obstacle(normalized=normalized, shared=shared)

    def trainable(
        self, module: nn.Conv2d, mask: Mask | None, correction: Correction | None = None
    ) -> SampledConv2d | None:
        """See `Method.trainable`."""
        return self.steps[0].trainable(module, mask, correction)

    def promises(self, layer: Layer) -> bool:
        """See `Method.promises`: whether what comes first does, and all are for layers of the kind."""
        of_the_kind = all(layer.node.op in step.REPLACES for step in self.parts)
        return of_the_kind and all(step.promises(layer) for step in self.parts[:1])


class StandardMethod(Method):
    """A method whose result is standard ONNX: other layers stand in a layer's place."""

    @property
    def keeps_size(self) -> bool:
        """Whether the layer's map has the size that it had."""
        return True

    @abstractmethod
    def replaced(self, spot: Spot) -> Fitted:
        """The nodes in a layer's place, and what was found.

        The first may read `spot.node.inputs[0]`; the last one's output stands for the layer's. They are not in the
        graph yet, their constants are (`Workspace.add_constant`).
        """


def standard_conv(
    spot: Spot,
    part: str,
    x: gs.Tensor,
    weight: NDArray[Any],
    attributes: ConvAttributes,
    bias: NDArray[Any] | None = None,
) -> gs.Node:
    """A `Conv` for a layer's place, named after the layer and its part, with constants and an output of its own.

    Args:
        spot: The layer.
        part: What tells this convolution from the layer's others.
        x: Its input.
        weight: [M, C/group, kh, kw]; it and the bias take the type of the layer's weight.
        attributes: Its geometry.
        bias: [M].
    """
    workspace, name, dtype = spot.workspace, f"{spot.name}.{part}", spot.weight.dtype
    values = [weight, *([] if bias is None else [bias])]
    kinds = ("weight", "bias")
    constants = [workspace.add_constant(f"{name}.{k}", v.astype(dtype)) for k, v in zip(kinds, values, strict=False)]
    output = workspace.free_name(f"{spot.node.outputs[0].name}.{part}")
    return gs.Node("Conv", name, attributes.attributes(), [x, *constants], [gs.Variable(output)])


class KeepingMethod(Method):
    """A method that leaves a layer the operator that it is, and changes its constants by what is fitted."""

    @abstractmethod
    def corrected(self, spot: Spot) -> Fitted:
        """Change the constants of the layer's node, by fitting where there are targets."""

    @property
    def trained(self) -> Method:
        """See `Method.trained`: the layer itself is trained, from its own weights."""
        return Chain()


class SampledMethod(Method):
    """A method whose result is one operator of our own domain, which reads and gives the layer's maps."""

    OPERATOR: ClassVar[str]

    def drawn(self, layer: Layer, context: Context) -> tuple[Self, Mask | None]:
        """The step as it is for a layer, and the layer's mask; None where the operator has none."""
        return self, None

    def source(self, mask: Mask) -> NDArray[np.int32] | None:
        """The site that each position shows, int32 [H*W], -1: a constant; None where positions show no site alone."""
        return None

    @abstractmethod
    def operands(self, workspace: Workspace, decision: Decision) -> tuple[list[gs.Constant], dict[str, Any], str]:
        """Inputs behind the bias, attributes beside the common ones, and a few words for the report."""

    def has_rows(self, layer: Layer, *, folds: bool) -> bool:
        """Whether the operator has a form on rows; `folds`: something is folded into the layer."""
        return True

    def absorbed(self, workspace: Workspace, node: gs.Node, activation: Activation) -> None:
        """Follow suit where the layer's node takes up an activation."""

    @property
    def reads_sites(self) -> bool:
        """Whether the layer, where its input shows sites at others' positions, reads these alone, on their own grid."""
        return False

    @property
    def is_dense(self) -> bool:
        """Whether a `Conv` gives the same wherever no lattice is read, and may stand for it where that is faster."""
        return False

    @property
    def is_corrected(self) -> bool:
        """Whether the node's constants change after it was made, by what was fitted or trained."""
        return self.is_trained or self.needs is Needs.TARGETS

    def corrected(self, spot: Spot) -> Fitted:
        """Change the constants of the layer's node, by fitting where there are targets."""
        raise NotImplementedError

    def skipped(self, mask: Mask | None, correction: Correction | None) -> float:
        """Which share of its work it really leaves out."""
        return 0.0 if mask is None else float(1 - mask.mean())

    def multiplies(self, layer: Layer, mask: Mask | None, correction: Correction | None) -> int:
        """Multiplies per image."""
        assert layer.output_shape is not None
        positions = layer.output_shape[0] * layer.output_shape[1]
        return dense_multiplies(layer.w_shape, positions if mask is None else int(mask.sum()))


@dataclass(frozen=True)
class Decision:
    """A layer that a sampled operator stands for: what it is, what it becomes, and its mask, where that has one.

    A `joined` layer stays dense; it is computed on rows because it lies between sampled layers. `worth` is how many
    times faster than the dense layer it has to be, by estimate, not to be given up; None: it was asked for by name.
    `folded` is what `Fold` put into weight and bias.
    """

    layer: Layer
    step: SampledMethod
    mask: Mask | None
    joined: bool = False
    worth: float | None = None
    folded: Affine | None = None

    @property
    def share(self) -> float:
        """The share of positions that are computed."""
        return 1.0 if self.mask is None else float(self.mask.mean())

    @cached_property
    def source(self) -> NDArray[np.int32] | None:
        """The site that each position shows, see `SampledMethod.source`; None where each is its own, or none known."""
        return None if self.mask is None or self.mask.all() else self.step.source(self.mask)
