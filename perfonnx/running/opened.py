"""A model with a session on it: opened, fed and run."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

import numpy as np
import onnx
import onnxruntime as ort

from perfonnx import runtime
from perfonnx.data.inputs import Array, Feed, InputSpec, SessionLike, input_specs
from perfonnx.errors import PerfonnxError
from perfonnx.model import files
from perfonnx.model.files import LoadedModel, ModelSource, data_files, has_external_data, take_in_data
from perfonnx.model.proto import all_nodes, value_type
from perfonnx.ops import DOMAIN

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the samples (or runs) done and their total, 0 where that is not known."""


@dataclass
class OpenModel:
    """A model with its session.

    Attributes:
        name: For messages and tables.
        proto: The model without its external data.
        session: A session on it.
        source: What it was opened from.
        provider: Where it runs, one of `runtime.PROVIDERS`.
        left_out: Outputs that `run` has met and does not give, with the reason.
    """

    source: ModelSource
    name: str
    proto: onnx.ModelProto
    session: SessionLike
    provider: str = "cpu"
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> list[InputSpec]:
        """What it must be fed. A session says of inputs without shape that they have no dimensions.

        Raises:
            PerfonnxError: An input is no tensor of numbers or booleans.
        """
        known = {info.name: value_type(info) for info in self.proto.graph.input}
        open_rank = {name for name, kind in known.items() if kind is not None and kind.shape is None}
        return [replace(spec, ranked=spec.name not in open_rank) for spec in input_specs(self.session)]

    def run(self, feed: Feed) -> dict[str, Array]:
        """The outputs that are tensors of numbers or booleans, by name; `left_out` says what the others are.

        Raises:
            PerfonnxError: onnxruntime refuses.
        """
        names = [value.name for value in self.session.get_outputs()]
        values = runtime.run(self.session, names, feed, self.name)
        outputs = {}
        for name, value in zip(names, values, strict=True):
            what = not_numbers(value)
            if what is None:
                outputs[name] = value
            else:
                self.left_out[name] = what
        return outputs

    def milliseconds(self, feed: Feed) -> float:
        """Runs once and says how long that took; that the feed fits, `run` has seen before.

        On a device inputs and outputs lie in its memory: copies are not counted.
        """
        run = self._prepared(feed)
        start = time.perf_counter_ns()
        run()
        return (time.perf_counter_ns() - start) / 1e6

    def _prepared(self, feed: Feed) -> Callable[[], Any]:
        if self.provider == "cpu":
            return lambda: self.session.run(None, feed)
        session = cast(ort.InferenceSession, self.session)
        binding = session.io_binding()
        for name, array in feed.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, self.provider, 0))
        for output in session.get_outputs():
            binding.bind_output(output.name, self.provider, 0)
        return lambda: session.run_with_iobinding(binding)

    def adapt(self, feed: Feed) -> Feed:
        """The feed with floating-point arrays cast to this model's types.

        Raises:
            PerfonnxError: The model has other inputs than the feed, or they do not fit.
        """
        specs = self.inputs
        if {spec.name for spec in specs} != set(feed):
            ours, theirs = (", ".join(sorted(names)) for names in ({spec.name for spec in specs}, set(feed)))
            raise PerfonnxError(f"{self.name}: has the inputs {ours}, but is given {theirs}")
        adapted: Feed = {}
        for spec in specs:
            array = feed[spec.name]
            if array.dtype != spec.dtype and not (array.dtype.kind == spec.dtype.kind == "f"):
                raise PerfonnxError(f"{self.name}: input '{spec.name}' is {spec.dtype}, but is given {array.dtype}")
            if not spec.fits(array.shape):
                raise PerfonnxError(
                    f"{self.name}: input '{spec.name}' has shape {list(spec.shape)}, but is given {list(array.shape)}"
                )
            adapted[spec.name] = array.astype(spec.dtype, copy=False)
        return adapted


def open_model(
    source: ModelSource,
    *,
    name: str | None = None,
    threads: int | None = None,
    library: bool | None = None,
    options: ort.SessionOptions | None = None,
    exact: bool = False,
) -> OpenModel:
    """Opens a model and a session on it, on the provider that `runtime.with_provider` names.

    Args:
        source: See `perfonnx.model.files.load`; or what that gave, whose external data stay where they are.
        name: For messages; by default the file's name.
        threads: Intra-op threads, None for onnxruntime's default.
        library: Whether to register the custom-operator library; None registers it for models that use it, so that
            all others run in onnxruntime as it comes.
        options: Options to start from; None: `runtime.quiet_options`.
        exact: Float32 is computed as such on a GPU too, see `runtime.provider_list`.

    Raises:
        PerfonnxError: The model cannot be read or loaded.
    """
    loaded = source if isinstance(source, LoadedModel) else files.load(source)
    if library is None:
        library = uses_library(loaded.proto)
    if options is None:
        options = runtime.quiet_options()
    # A file onnxruntime reads itself, and looks for external data beside it.
    model = source if isinstance(source, (str, bytes, os.PathLike)) else _with_data(loaded, options)
    provider = runtime.chosen_provider()
    providers = runtime.provider_list(provider, exact=exact)
    session = runtime.session(model, threads=threads, library=library, options=options, providers=providers)
    return OpenModel(source, name or loaded.name, loaded.proto, session, provider)


def _with_data(loaded: LoadedModel, options: ort.SessionOptions) -> onnx.ModelProto:
    """The message, and in the options the place of its external data.

    Data that links lead to elsewhere are taken in: onnxruntime follows these only with the model's own path.
    """
    if loaded.directory is None or not has_external_data(loaded):
        return loaded.proto
    folder = loaded.directory.resolve()
    if all(file.is_relative_to(folder) for file in data_files(loaded)):
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        return loaded.proto
    whole = LoadedModel(copy.deepcopy(loaded.proto), loaded.directory, loaded.name)
    take_in_data(whole)
    return whole.proto


def uses_library(proto: onnx.ModelProto) -> bool:
    """Whether the model has nodes of the library's domain."""
    return bool(used_operators(proto))


def used_operators(proto: onnx.ModelProto) -> set[str]:
    """The operators of the library's domain in a graph and its sub-graphs."""
    return {node.op_type for node in all_nodes(proto.graph.node) if node.domain == DOMAIN}


def not_numbers(value: Any) -> str | None:
    """What an output is that is no tensor of numbers or booleans, in words; None where it is one."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "fiub":
            return None
        return "it holds strings" if value.dtype.kind in "OSU" else f"it holds values of type {value.dtype}"
    if value is None:
        return "it is optional and absent"
    return "it is a map" if isinstance(value, dict) else "it is a sequence"
