"""What a model takes: the inputs that must be fed, the weights that may be, and both made fixed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Integral

from onnx import GraphProto, ModelProto, ValueInfoProto

from perfonnx.errors import PerfonnxError
from perfonnx.model.files import LoadedModel, ModelSource, load
from perfonnx.model.proto import is_fixed, keep_only, names_in, value_type


def fed_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """The inputs that a caller must feed: those that no initializer has a value for."""
    valued = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    return [info for info in graph.input if info.name not in valued]


def fed_shapes(graph: GraphProto) -> list[tuple[int | str | None, ...]]:
    """The declared shapes of the inputs that a caller must feed; empty for what is no tensor or has no shape."""
    known = (value_type(info) for info in fed_inputs(graph))
    return [tuple(k.shape) if k is not None and k.shape else () for k in known]


def fixed_batch(shapes: Iterable[Sequence[int | str | None]]) -> int | None:
    """How many samples a model with inputs of these shapes takes at once, 1 or more; None where it leaves that open.

    The first dimension of the first input that has any counts them.
    """
    first = next((shape[0] for shape in shapes if shape), 1)
    return max(1, first) if isinstance(first, int) else None


def overridable(proto: ModelProto) -> set[str]:
    """Initializers that a caller may replace because they are graph inputs too (from IR version 4 on)."""
    graph = proto.graph
    if proto.ir_version < 4:
        return set()
    sparse = {t.values.name for t in graph.sparse_initializer}
    return {i.name for i in graph.input} & ({t.name for t in graph.initializer} | sparse)


def load_fixed(
    source: ModelSource, shapes: Mapping[str, Sequence[int | str | None]] | None, *, freeze: bool
) -> LoadedModel:
    """Open a model with sizes put into the shapes of its inputs, and, to `freeze`, with its weights made constant.

    Raises:
        PerfonnxError: See `perfonnx.model.files.load` and `fix_input_shapes`.
    """
    loaded = load(source)
    if freeze:
        freeze_weights(loaded)
    fix_input_shapes(loaded, shapes or {})
    return loaded


def fix_input_shapes(model: LoadedModel, shapes: Mapping[str, Sequence[int | str | None]]) -> None:
    """Put sizes into the declared shapes of graph inputs; None or a symbol keeps a dimension symbolic.

    Raises:
        PerfonnxError: No such input, another rank, or a size that contradicts the model's.
    """
    inputs = {info.name: info for info in fed_inputs(model.proto.graph)}
    for name, sizes in shapes.items():
        if name not in inputs:
            raise PerfonnxError(
                f"--input-shape {name}: the model has no such input; its inputs are {', '.join(inputs)}"
            )
        info = inputs[name]
        known = value_type(info)
        if known is None:
            raise PerfonnxError(f"--input-shape {name}: this input is not a tensor")
        dims = info.type.tensor_type.shape.dim
        if known.shape is None:
            for _ in sizes:
                dims.add()
        if len(dims) != len(sizes):
            raise PerfonnxError(f"--input-shape {name}: has {len(sizes)} dimensions, the model's input has {len(dims)}")
        for dim, size in zip(dims, sizes, strict=True):
            if not isinstance(size, Integral):
                if size and not is_fixed(dim) and dim.HasField("dim_value"):
                    dim.dim_param = size  # onnxruntime takes a declared size of 0 at its word
                continue
            if not 0 <= size < 2**63:
                raise PerfonnxError(f"--input-shape {name}: {size} is no size; give whole numbers of 0 or more")
            if is_fixed(dim) and dim.dim_value != size:
                raise PerfonnxError(
                    f"--input-shape {name}: the model fixes this dimension at {dim.dim_value}, not {size}"
                )
            dim.dim_value = int(size)


def freeze_weights(model: LoadedModel, names: Collection[str] | None = None) -> None:
    """Make initializers that are also graph inputs constant, by taking them off the inputs (IR version 4 and later).

    Those that nothing reads go altogether: onnxruntime would warn of each of them whenever the model is loaded.

    Args:
        model: Is changed.
        names: Those to make constant; None: all.
    """
    graph = model.proto.graph
    if model.proto.ir_version >= 4:
        free = overridable(model.proto)
        frozen = free if names is None else free.intersection(names)
        unread = frozen - set(names_in(graph))
        keep_only(graph.input, [i for i, info in enumerate(graph.input) if info.name not in frozen])
        keep_only(graph.initializer, [i for i, t in enumerate(graph.initializer) if t.name not in unread])
