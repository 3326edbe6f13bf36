"""What all low-rank methods share: settings, how large the rank is, what it is fitted to, and the new layers."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from perfonnx.corrections import Correction, digest
from perfonnx.errors import PerfonnxError
from perfonnx.fitting import Goal
from perfonnx.masks import Mask
from perfonnx.methods.base import (
    Chain,
    Context,
    Fitted,
    Method,
    Needs,
    Space,
    Spot,
    StandardMethod,
    setting,
    standard_conv,
)
from perfonnx.methods.exact import Exact
from perfonnx.methods.lowrank.form import Form, Order, Part, Piece
from perfonnx.methods.lowrank.metric import (
    ARBITRARY,
    COVARIANCE,
    FROBENIUS,
    MAHALANOBIS,
    METRICS,
    Covariance,
    Frobenius,
    Mahalanobis,
    Metric,
)
from perfonnx.methods.lowrank.rows import Rows, sampled
from perfonnx.model.layers import CONV, Layer
from perfonnx.ops.common import LISTED_PANEL

if TYPE_CHECKING:
    from torch import nn

    from perfonnx.torch.modules import SampledConv2d

Float = NDArray[np.float64]

SAVE = 0.5
"""Share of a layer's multiplies that is saved where nothing else is asked for."""

TURNS = 2
"""Fits behind the activation, at most: each to what is as good as what is wanted, and nearest to what is given."""

NEAR = 0.75
"""A rank is rounded down to a multiple of a register's width that is at least this part of it."""


@dataclass(frozen=True)
class Approximation:
    """A weight that is to be approximated.

    Attributes:
        original: float64 [M, C, kh, kw], of one group, as it came.
        metric: In what sense.
        rows: What the layer sees and should give; None without data.
        ridge: Strength of regularization.
    """

    original: Float
    metric: Metric
    rows: Rows | None = None
    ridge: float = 0.0

    @cached_property
    def weight(self) -> Float:
        """The weight; with data, refitted to what reaches the layer now."""
        if self.rows is None:
            return self.original
        return self.rows.refitted(self.original.reshape(len(self.original), -1), self.ridge).reshape(
            self.original.shape
        )


@dataclass(frozen=True)
class Factors:
    """What a method found for one group.

    Attributes:
        arrays: One for each piece of the form: weights, and orders of channels.
        weight: float64 [M, C, kh, kw], what they multiply out to.
        bias: float64 [M], where the method finds it by itself.
        note: A few words on them.
    """

    arrays: Sequence[NDArray[Any]]
    weight: Float
    bias: Float | None = None
    note: str = ""


@dataclass(frozen=True)
class LowRank(StandardMethod):
    """A layer becomes a chain of smaller ones.

    With data, layers are fitted front to back: to what the original network gave, from what reaches them now. First
    the weight is refitted to that by ridge regression, then it is approximated in the metric.

    Attributes:
        rank: How large the factors are, see each method; 0: as `error` or `save` says.
        error: The smallest rank is taken whose squared error, over the variance of what the layer should give (without
            data: over the weight's squares), is no larger; 0: as `save` says.
        save: Share of the layer's multiplies to be saved; the largest rank is taken that saves as much.
        metric: One of `perfonnx.methods.lowrank.metric.METRICS`; empty: covariance where there is data.
    """

    ADJECTIVE = "low-rank"
    TRIED: ClassVar[bool] = False
    """Whether a search tries it: the others are there to be compared with."""
    rank: int = setting(0, "rank of the factors, for low-rank methods", "K", said="have a rank")
    error: float = setting(0.0, "relative squared error that a low-rank layer may have, such as 0.02", "E")
    save: float = setting(SAVE, "share of a low-rank layer's multiplies to save (default 0.5)", "S")
    metric: str = setting(
        "",
        "what low-rank filters are close in: covariance (default with --data), frobenius (without) or mahalanobis",
        "NAME",
    )

    # --- what a method says -------------------------------------------------------------------------------------------

    @abstractmethod
    def pieces(self, form: Form, rank: int) -> list[Piece]:
        """What stands for one group of a layer, at a rank from 1 to `full`."""

    @abstractmethod
    def full(self, form: Form) -> int:
        """The largest rank, at which one group loses nothing where the method says no else."""

    def ranks(self, form: Form) -> Sequence[int]:
        """The ranks that there are, in order."""
        return range(1, self.full(form) + 1)

    @abstractmethod
    def factors(self, problem: Approximation, form: Form, rank: int) -> Factors:
        """The arrays of the pieces."""

    def unfit(self, form: Form) -> str | None:
        """Why it has no form for a layer; None where it has."""
        return None

    # --- settings -----------------------------------------------------------------------------------------------------

    def check(self, where: str) -> None:
        """See `Method.check`."""
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 0:
            raise PerfonnxError(f"{where}: rank {self.rank!r} is not a whole number from 1 up")
        for name in ("error", "save"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise PerfonnxError(f"{where}: {name} {value!r} is not a number from 0 up and below 1")
        if self.rank and self.error:
            raise PerfonnxError(f"{where}: a rank and an error: give one of them")
        if self.metric and self.metric not in (*METRICS, ARBITRARY):
            raise PerfonnxError(f"{where}: unknown metric {self.metric!r}; choose from {', '.join(METRICS)}")

    @classmethod
    def check_asked(cls, settings: Mapping[str, Any], where: str) -> None:
        """See `Method.check_asked`."""
        given = [name for name in ("rank", "error", "save") if name in settings]
        if len(given) > 1:
            raise PerfonnxError(f"{where}: {given[0]} and {given[1]} both say how large factors are; give one of them")
        for name in given:
            if not settings[name]:
                raise PerfonnxError(f"{where}: {name} 0 says nothing; give more, or leave it out")

    @property
    def needs(self) -> Needs:
        """Responses, where there is data; without, weights are approximated by themselves."""
        return Needs.NOTHING if self.metric in (FROBENIUS, ARBITRARY) else Needs.TARGETS

    def check_data(self, name: str, context: Context) -> None:
        """See `Method.check_data`."""
        if self.metric in (COVARIANCE, MAHALANOBIS) and context.feeds is None and name not in context.corrections:
            raise PerfonnxError(f"layer {name!r}: the metric {self.metric} is of data, and there is none; give --data")

    @property
    def heeds_reservation(self) -> bool:
        """1x1 kernels are worth it."""
        return False

    @property
    def asked(self) -> str:
        """See `Method.asked`."""
        return "" if self.rank or self.error else f"saving {self.save:g}"

    @property
    def saving(self) -> float:
        """See `Method.saving`; not known where a rank or an error is asked for."""
        return 0.0 if self.rank or self.error else self.save

    # --- search -------------------------------------------------------------------------------------------------------

    @classmethod
    def candidates(cls, space: Space) -> Sequence[Method]:
        """See `Method.candidates`: where the library may be used, new convolutions go on as exact layers."""
        found = [cls(save=saving) for saving in space.savings if 0 < saving < 1] if cls.TRIED else []
        if Exact.NAME not in space.of("method"):
            return found
        further = [method.goes_on for method in found]
        return further if {CONV} == cls.REPLACES else [*further, *found]

    @property
    def goes_on(self) -> Method:
        """The same with new convolutions that the library computes."""
        return Chain((self, Exact()))

    def promises(self, layer: Layer) -> bool:
        """See `Method.promises`: only where fewer multiplies are left than the exact layer takes, by tiles or not."""
        from perfonnx.passes.estimates import tiles_of  # which needs what methods are made of

        form = Form.of(layer)
        if form.inputs == 1 and form.groups > 1:  # depthwise: bound by memory
            return False
        dense = form.multiplies([form.whole])
        exact = min([dense, *(tiles.multiplies(layer) for tiles in tiles_of(layer))])
        return form_multiplies(self, form, self.rank or self.largest(form, (1 - self.save) * dense)) < exact

    @property
    def kind(self) -> Method:
        """See `Method.kind`."""
        return replace(self, rank=0, error=0.0, save=SAVE)

    @property
    def timed(self) -> Method:
        """The values of weights take no time."""
        return self if self.error else replace(self, metric=ARBITRARY)

    # --- training -----------------------------------------------------------------------------------------------------

    @property
    def trains_correction(self) -> bool:
        """See `Method.trains_correction`: the factors."""
        return True

    def training_obstacle(self, *, normalized: bool, shared: bool) -> str | None:
        """See `Method.training_obstacle`: factors are found for weights with what is folded into them."""
        return "a BatchNormalization behind it belongs to its factors; fold it first" if normalized else None

    def trainable(
        self, module: nn.Conv2d, mask: Mask | None, correction: Correction | None = None
    ) -> SampledConv2d | None:
        """The module itself where it goes on from these factors already: it keeps them."""
        from perfonnx.torch.factors import FactoredConv2d, FactoredProduct
        from perfonnx.torch.modules import Product, plain

        assert correction is not None
        if isinstance(module, FactoredConv2d) and module.correction is correction:
            return module
        if isinstance(module, Product):
            return FactoredProduct(module, self, correction)
        return FactoredConv2d(plain(module), self, correction)

    # --- ranks --------------------------------------------------------------------------------------------------------

    def obstacle(self, layer: Layer, context: Context) -> str | None:
        """See `Method.obstacle`: a rank that saves nothing is refused with the numbers."""
        if layer.input_shape is None or not all(isinstance(d, int) for d in layer.input_shape[1:]):
            return "the size of its input is not known"
        form = Form.of(layer)
        if reason := self.unfit(form) or _odd_bias(layer, context):
            return reason
        ranks = self.ranks(form)
        if self.rank > self.full(form):
            return f"rank {self.rank} is more than its {self.full(form)}"
        if self.rank and self.rank not in ranks:
            return f"rank {self.rank} is none of {', '.join(map(str, ranks))}"
        before = form.multiplies([form.whole])
        rank = self.rank or ranks[0]
        after = form.multiplies(self.pieces(form, rank))
        if after >= before:
            return f"rank {rank} saves nothing: {after} multiplies instead of {before}"
        if not self.error and not self.rank and after > (1 - self.save) * before:
            return f"rank {rank} saves only {1 - after / before:.1%} of its multiplies"
        return None

    def largest(self, form: Form, most: float) -> int:
        """The largest rank that takes no more than so many multiplies, or the first."""
        ranks = self.ranks(form)
        count = bisect_right(ranks, most, key=lambda rank: form.multiplies(self.pieces(form, rank)))
        return ranks[max(count - 1, 0)]

    @property
    def unit(self) -> int:
        """Ranks are rounded to a multiple of this where one is near."""
        return register_width()

    def rounded_down(self, form: Form, rank: int) -> int:
        """The multiple of the unit below a rank, where that is one, and not far from it."""
        rounded = rank // self.unit * self.unit
        return rounded if rounded >= NEAR * rank and rounded in self.ranks(form) else rank

    # --- replacing ----------------------------------------------------------------------------------------------------

    def replaced(self, spot: Spot) -> Fitted:
        """See `StandardMethod.replaced`."""
        try:
            return _Replacing(self, spot).done()
        except PerfonnxError as error:
            raise PerfonnxError(f"layer {spot.name!r}: {error}") from error


@dataclass(frozen=True)
class _Found:
    """What was found for a layer: the rank, the error, the arrays of all pieces, the bias, and words for the report."""

    rank: int
    error: float
    arrays: list[NDArray[Any]]
    bias: Float
    words: list[str]


class _Replacing:
    """One layer's replacement."""

    def __init__(self, method: LowRank, spot: Spot) -> None:
        self.method = method
        self.spot = spot
        self.form = Form.of(spot.layer)
        turned = not spot.layer.is_conv and not spot.node.attrs.get("transB", 0)
        self.weight = spot.weight.T[:, :, None, None] if turned else spot.weight
        self.weight = self.weight.reshape(*self.weight.shape[:2], *self.form.kernel)

    def done(self) -> Fitted:
        """As before, where that is known; else by fitting."""
        spot, before = self.spot, self.form.multiplies([self.form.whole])
        known = spot.context.corrections.get(spot.name)
        if spot.targets is None and known is not None and self._was_left(known):
            return self._left(known)
        if spot.targets is None and known is not None:
            correction, found = known, known_factors(self.method, self.form, spot.weight, known)
            note, words = "as before: ", []
        else:
            new = self._found()
            if isinstance(new, float):
                return self._left(Correction.of(spot.weight, {}, new, new))
            arrays = {f"factor{i}": array.astype(np.float32) for i, array in enumerate(new.arrays)}
            arrays |= {"bias": new.bias.astype(np.float32), "rank": np.array([new.rank], np.float32)}
            correction, note = Correction.of(spot.weight, arrays, 0.0, new.error), ""
            found = [arrays[f"factor{i}"] for i in range(len(new.arrays))]
            words = new.words
        rank = int(correction.arrays["rank"][0])
        after = form_multiplies(self.method, self.form, rank)
        note += f"rank {rank} of {self.method.full(self.form)}, {before / after:.2f}x fewer multiplies, "
        note += ", ".join([f"error {correction.after:.2%}" if correction.after else "trained", *words])
        return Fitted(correction, note, self._nodes(found, correction.arrays["bias"], rank))

    def _was_left(self, known: Correction) -> bool:
        """Whether no rank was good enough before, of those that are asked for now too."""
        return not known.arrays and known.weights == digest(self.spot.weight) and 0 < self.method.error < known.after

    def _left(self, correction: Correction) -> Fitted:
        """The layer stays, as `correction` keeps."""
        why = f"rank {self._saving[-1]}, the largest that saves something, has an error of {correction.after:.2%}"
        return Fitted(correction, why)

    @property
    def _saving(self) -> list[int]:
        """The ranks that save something."""
        before = self.form.multiplies([self.form.whole])
        return [rank for rank in self.method.ranks(self.form) if form_multiplies(self.method, self.form, rank) < before]

    def _found(self) -> _Found | float:
        """What was found for the rank that is asked for, or the error of the largest where that is too much."""
        method, form = self.method, self.form
        rows = sampled(self.spot) if self.spot.targets is not None else None
        problems = [self._problem(number, rows) for number in range(form.groups)]
        before = form.multiplies([form.whole])
        if method.rank:
            return self._fit(problems, method.rank)
        if not method.error:
            exact = method.largest(form, (1 - method.save) * before)
            rank = method.rounded_down(form, exact)
            return self._rounded(self._fit(problems, rank), exact)
        ranks = self._saving
        found = {ranks[-1]: self._fit(problems, ranks[-1])}
        if (least := found[ranks[-1]].error) > method.error:
            return least
        low, high = 0, len(ranks) - 1
        while low < high:
            middle = (low + high) // 2
            found[ranks[middle]] = self._fit(problems, ranks[middle])
            low, high = (low, middle) if found[ranks[middle]].error <= method.error else (middle + 1, high)
        exact, unit = ranks[low], method.unit
        wide = -(-exact // unit) * unit
        rank = wide if exact >= NEAR * wide and wide in ranks else exact
        return self._rounded(found.get(rank) or self._fit(problems, rank), exact)

    def _rounded(self, found: _Found, exact: int) -> _Found:
        """What was found, saying so where its rank is another than the one that was asked for."""
        if found.rank == exact:
            return found
        words = f"rank {exact} rounded to registers of {self.method.unit} values"
        return replace(found, words=[*found.words, words])

    def _problem(self, number: int, rows: Rows | None) -> Approximation:
        """That of one group."""
        form = self.form
        weight = self.weight[number * form.outputs : (number + 1) * form.outputs].astype(np.float64)
        if rows is None:
            return Approximation(weight, Frobenius())
        return self._fitting(number, weight, rows.group(number, form.groups))

    def _fitting(self, number: int, weight: Float, rows: Rows) -> Approximation:
        """That of one group to these rows."""
        form, ridge = self.form, self.spot.context.ridge
        metric: Metric = Covariance.of(rows, ridge)
        if self.method.metric == MAHALANOBIS:
            metric = Mahalanobis(self._alpha[number * form.outputs : (number + 1) * form.outputs])
        return Approximation(weight, metric, rows, ridge)

    @cached_property
    def _alpha(self) -> Float:
        from perfonnx.methods.lowrank.loss_gradients import LossGradients  # which needs what methods are made of

        return self.spot.context.kept(LossGradients).alpha(self.spot)

    def _bias(self) -> Float:
        node = self.spot.node
        if len(node.inputs) < 3 or not node.inputs[2].name:
            return np.zeros(len(self.weight))
        return np.broadcast_to(self.spot.bias.astype(np.float64).reshape(-1), len(self.weight))

    def _fit(self, problems: Sequence[Approximation], rank: int) -> _Found:
        """All groups together."""
        form = self.form
        if self.method.metric == ARBITRARY:
            return _Found(rank, 1.0, self._arbitrary(rank), self._bias(), [])
        found, errors, biases = [], [], []
        for number, problem in enumerate(problems):
            rows, factors = problem.rows, self.method.factors(problem, form, rank)
            if rows is None:
                error = problem.metric.squared(problem.weight - factors.weight)
                errors.append(error / max(problem.metric.squared(problem.weight), 1e-300))
                biases.append(self._bias()[number * form.outputs : (number + 1) * form.outputs])
            else:
                factors, bias, error = self._behind_activation(number, problem, factors, rank)
                biases.append(bias)
                errors.append(error)
            found.append(factors)
        arrays = []
        for i, piece in enumerate(self.method.pieces(form, rank)):
            step = piece.channels if isinstance(piece, Order) else 0
            arrays.append(np.concatenate([each.arrays[i] + number * step for number, each in enumerate(found)]))
        words = list(dict.fromkeys(each.note for each in found if each.note))
        return _Found(rank, float(np.mean(errors)), arrays, np.concatenate(biases), words)

    def _arbitrary(self, rank: int) -> list[NDArray[Any]]:
        """Arrays of the pieces' forms."""
        rng, groups = np.random.default_rng(0), self.form.groups
        arrays: list[NDArray[Any]] = []
        for piece in self.method.pieces(self.form, rank):
            if isinstance(piece, Order):
                arrays.append(np.concatenate([np.arange(piece.taken) + g * piece.channels for g in range(groups)]))
                continue
            weight = rng.standard_normal((piece.shape[0] * groups, *piece.shape[1:]), np.float32)
            flat = weight.reshape(len(weight), -1)
            for first in range(0, len(flat) if piece.columns else 0, LISTED_PANEL):
                flat[first : first + LISTED_PANEL, rng.permutation(flat.shape[1])[piece.columns :]] = 0
            arrays.append(weight / np.sqrt(flat.shape[1]))
        return arrays

    def _behind_activation(
        self, number: int, problem: Approximation, factors: Factors, rank: int
    ) -> tuple[Factors, Float, float]:
        """The factors, or those of fits behind the activation where these lose less; their bias and error."""
        rows = problem.rows
        assert rows is not None
        bias, given = self._response(rows, factors)
        best = factors, bias, rows.error(given)
        for _ in range(0 if rows.goal == Goal() or factors.bias is not None else TURNS):
            again = self._fitting(number, problem.original, rows.met(given))
            assert again.rows is not None
            factors = self.method.factors(again, self.form, rank)
            bias, given = self._response(again.rows, factors)
            if rows.error(given) >= best[2]:
                break
            best = factors, bias, rows.error(given)
        return best

    def _response(self, rows: Rows, factors: Factors) -> tuple[Float, Float]:
        """The bias of factors, and what they give."""
        flat = factors.weight.reshape(self.form.outputs, -1)
        bias = rows.bias(flat) if factors.bias is None else factors.bias
        return bias, rows.given(flat, bias)

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _nodes(self, arrays: Sequence[NDArray[Any]], bias: NDArray[Any], rank: int) -> list[gs.Node]:
        spot, x = self.spot, self.spot.node.inputs[0]
        dtype = spot.weight.dtype
        with np.errstate(over="ignore"):
            if not all(np.isfinite(array.astype(dtype)).all() for array in (*arrays, bias)):
                raise PerfonnxError("its factors are too large for the type of its weights")
        pieces = self.method.pieces(self.form, rank)
        last = max(i for i, piece in enumerate(pieces) if isinstance(piece, Part))
        for array in arrays[last + 1 :]:  # orders, which the bias goes through as well
            before = np.zeros_like(bias)
            before[array.astype(np.int64)] = bias
            bias = before
        nodes: list[gs.Node] = []
        for i, (piece, array) in enumerate(zip(pieces, arrays, strict=True)):
            given = bias if i == last and bias.any() else None
            if isinstance(piece, Order):
                nodes.append(self._gather(piece, x, array.astype(np.int64)))
            elif spot.layer.is_conv:
                group = piece.attributes.group * self.form.groups
                nodes.append(standard_conv(spot, piece.name, x, array, replace(piece.attributes, group=group), given))
            else:
                nodes += self._product(piece.name, x, array[:, :, 0, 0].T.astype(dtype), given)
            x = nodes[-1].outputs[0]
        return nodes

    def _gather(self, piece: Order, x: gs.Tensor, order: NDArray[np.int64]) -> gs.Node:
        workspace, name = self.spot.workspace, f"{self.spot.name}.{piece.name}"
        output = workspace.free_name(f"{self.spot.node.outputs[0].name}.{piece.name}")
        axis = 1 if self.spot.layer.is_conv else -1
        inputs = [x, workspace.add_constant(f"{name}.order", order)]
        return gs.Node("Gather", name, {"axis": axis}, inputs, [gs.Variable(output)])

    def _product(self, part: str, x: gs.Tensor, weight: NDArray[Any], bias: NDArray[Any] | None) -> list[gs.Node]:
        """A product with [K, M], and its bias, which `MatMul` has not."""
        spot = self.spot
        workspace, name = spot.workspace, f"{spot.name}.{part}"
        inputs = [x, workspace.add_constant(f"{name}.weight", weight)]
        output = gs.Variable(workspace.free_name(f"{spot.node.outputs[0].name}.{part}"))
        if bias is None:
            return [gs.Node("MatMul", name, {}, inputs, [output])]
        added = workspace.add_constant(f"{name}.bias", bias.astype(weight.dtype))
        if spot.node.op == "Gemm":
            return [gs.Node("Gemm", name, {}, [*inputs, added], [output])]
        total = gs.Variable(workspace.free_name(f"{output.name}.biased"))
        return [
            gs.Node("MatMul", name, {}, inputs, [output]),
            gs.Node("Add", f"{name}.biased", {}, [output, added], [total]),
        ]


def known_factors(
    method: LowRank, form: Form, weight: NDArray[Any], correction: Correction
) -> list[NDArray[np.floating]]:
    """The arrays of the pieces, of all groups together, that were found or trained before.

    Args:
        method: What made them.
        form: The layer's.
        weight: The layer's.
        correction: What was found.

    Raises:
        PerfonnxError: They are not the layer's.
    """
    again = "approximate again with --data"
    arrays = correction.arrays
    rank = arrays.get("rank")
    if rank is None or rank.shape != (1,) or rank[0] not in method.ranks(form):
        raise PerfonnxError(f"its factors have no rank of this method; {again}")
    if correction.weights != digest(weight):
        raise PerfonnxError(f"its factors were found for other weights; {again}")
    pieces, groups = method.pieces(form, int(rank[0])), form.groups
    found = [arrays.get(f"factor{i}", np.zeros(0)) for i in range(len(pieces))]
    for piece, array in zip(pieces, found, strict=True):
        if isinstance(piece, Part):
            wrong = array.shape != (piece.shape[0] * groups, *piece.shape[1:])
        else:
            wrong = array.shape != (piece.taken * groups,) or not _is_order(array, piece.channels * groups)
        if wrong:
            raise PerfonnxError(f"its factors are of another form; {again}")
    if arrays.get("bias", np.zeros(0)).shape != (form.outputs * groups,):
        raise PerfonnxError(f"its factors have no bias of its size; {again}")
    return found


def form_multiplies(method: LowRank, form: Form, rank: int) -> int:
    """Of a layer at a rank."""
    return form.multiplies(method.pieces(form, rank))


def _odd_bias(layer: Layer, context: Context) -> str | None:
    """Why a product's bias cannot be taken over; None where it can."""
    if layer.is_conv or len(layer.node.inputs) < 3 or not layer.node.inputs[2].name:
        return None
    bias = context.workspace.constant_proto(layer.node.inputs[2])
    if bias is not None and tuple(bias.dims) in ((), (1,), (1, 1), (layer.w_shape[0],), (1, layer.w_shape[0])):
        return None
    return "its bias is not one for each output"


def _is_order(array: NDArray[Any], channels: int) -> bool:
    return bool((array == np.floor(array)).all() and (array >= 0).all() and (array < channels).all())


def register_width() -> int:
    """Floats in a register of the instruction set that the engine chooses here, 8 at least."""
    from perfonnx import _engine

    return 16 if "avx512" in _engine.default_isa() else 8
