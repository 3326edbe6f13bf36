"""Running rewritten models: where the operator library is, and onnxruntime sessions that use it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

import perfonnx
from perfonnx.errors import PerfonnxError, one_line

_LIBRARY = "libperfonnx.so"
_OLDEST_ONNXRUNTIME = "1.19"
# protobuf cannot hold a message of 2 GiB; models from here on go through a file with their weights beside it.
_LARGEST_MESSAGE = 2**31 - 1

Model = str | os.PathLike[str] | bytes | onnx.ModelProto
StrPath = str | os.PathLike[str]
Provider = str | tuple[str, dict[str, str]]
"""One of onnxruntime's execution providers, by its name, with its options where there are any."""

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""onnxruntime's execution providers, by the names they have here."""

_provider: ContextVar[str] = ContextVar("perfonnx_provider", default="cpu")
_others: ContextVar[tuple[str, ...]] = ContextVar("perfonnx_libraries", default=())


def get_library_path() -> str:
    """Absolute path of the operator library, to register in any program that uses onnxruntime.

    The library needs nothing but the C library and an onnxruntime that loads it: it may be copied anywhere.

    Raises:
        PerfonnxError: The package was not built.
    """
    for path in _candidates():
        if path.is_file():
            return str(path.resolve())
    raise PerfonnxError(
        f"{_LIBRARY} is not in the installed package ({', '.join(perfonnx.__path__)}); "
        "build it with `pip install .` in perfonnx's source directory"
    )


def _candidates() -> list[Path]:
    """Where the library can be: an editable install has two places, the sources and what was built from them."""
    return [Path(directory) / _LIBRARY for directory in perfonnx.__path__]


def register(session_options: ort.SessionOptions) -> None:
    """Make the operators of the domain ``ai.perfonnx`` known to the sessions created with these options.

    Call it once for a SessionOptions: onnxruntime refuses a second registration when the session is created.

    Raises:
        PerfonnxError: The library is missing, or this onnxruntime cannot load it.
    """
    path = get_library_path()
    try:
        session_options.register_custom_ops_library(path)
    except Exception as error:  # onnxruntime raises types of its own that it does not export
        raise PerfonnxError(
            f"onnxruntime {ort.__version__} cannot load {path}: {one_line(error, longest=None)}; "
            f"use onnxruntime {_OLDEST_ONNXRUNTIME} or later on the machine perfonnx was built on or one like it"
        ) from error


@contextmanager
def with_libraries(paths: Iterable[StrPath]) -> Iterator[None]:
    """Context in which models may also use the operators of other custom libraries.

    Every session that perfonnx makes in it registers them, those included that only look at a model to learn shapes.

    Args:
        paths: Shared libraries, as `register_custom_ops_library` takes them; one that is named twice counts once.

    Raises:
        PerfonnxError: A file is not there.
    """
    token = _others.set(_distinct([*_others.get(), *paths]))
    try:
        yield
    finally:
        _others.reset(token)


def other_libraries() -> tuple[str, ...]:
    """Absolute paths of the libraries that `with_libraries` names here."""
    return _others.get()


def _distinct(paths: Iterable[StrPath]) -> tuple[str, ...]:
    resolved = []
    for path in paths:
        if not Path(path).is_file():
            raise PerfonnxError(f"library {os.fspath(path)}: no such file; give a shared library of custom operators")
        resolved.append(str(Path(path).resolve()))
    return tuple(dict.fromkeys(resolved))


@contextmanager
def with_provider(name: str) -> Iterator[None]:
    """Context in which models that are compared and timed run on one of `PROVIDERS`.

    Raises:
        PerfonnxError: onnxruntime or the operator library has it not.
    """
    if name not in PROVIDERS:
        raise PerfonnxError(f"provider {name}: choose from {', '.join(PROVIDERS)}")
    if PROVIDERS[name] not in ort.get_available_providers():
        raise PerfonnxError(
            f"provider {name}: onnxruntime {ort.__version__} has it not; install the package onnxruntime-gpu in place "
            "of onnxruntime"
        )
    if name != "cpu" and not _serves(name):
        raise PerfonnxError(
            f"provider {name}: the operator library was built without it; build it with "
            f"`pip install . -C cmake.define.PERFONNX_{name.upper()}=ON` in perfonnx's source directory"
        )
    token = _provider.set(name)
    try:
        yield
    finally:
        _provider.reset(token)


def chosen_provider() -> str:
    """What `with_provider` names here."""
    return _provider.get()


def provider_list(name: str, *, exact: bool = False) -> list[Provider]:
    """A provider as sessions want it: for what it lacks, onnxruntime's own on the CPU behind it.

    Args:
        name: One of `PROVIDERS`.
        exact: Float32 is computed as such, where a GPU would round factors to TF32's 11 bits unless told otherwise.
    """
    if name == "cpu":
        return [PROVIDERS[name]]
    return [(PROVIDERS[name], {"use_tf32": "0"}) if exact else PROVIDERS[name], PROVIDERS["cpu"]]


def _serves(name: str) -> bool:
    """Whether the operator library has kernels for the provider, which it then registers under onnxruntime's name."""
    return PROVIDERS[name].encode() in Path(get_library_path()).read_bytes()


def register_others(session_options: ort.SessionOptions, libraries: Iterable[StrPath] = ()) -> None:
    """Make the operators of these libraries, and of those of `with_libraries`, known to sessions with these options.

    Raises:
        PerfonnxError: A file is not there, or onnxruntime cannot load it.
    """
    own = {str(path.resolve()) for path in _candidates()}  # where that is needed, `session` registers it itself
    for path in _distinct([*_others.get(), *libraries]):
        if path in own:
            continue
        try:
            session_options.register_custom_ops_library(path)
        except Exception as error:  # see register
            raise PerfonnxError(
                f"onnxruntime {ort.__version__} cannot load {path}: {one_line(error, longest=None)}"
            ) from error


def quiet_options(*, optimized: bool = True) -> ort.SessionOptions:
    """Options of sessions that print nothing: what goes wrong is raised, and onnxruntime would print it as well.

    Args:
        optimized: False: the graph runs as it stands, without onnxruntime's optimizations.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def timed_options() -> ort.SessionOptions:
    """Options of sessions that are timed in turn: quiet ones, whose idle threads leave the cores to the others."""
    options = quiet_options()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def session(
    model: Model,
    *,
    threads: int | None = None,
    library: bool = True,
    libraries: Iterable[StrPath] = (),
    options: ort.SessionOptions | None = None,
    providers: Sequence[Provider] = ("CPUExecutionProvider",),
) -> ort.InferenceSession:
    """An onnxruntime session for a model, rewritten or not.

    Args:
        model: Path, serialized model, or model in memory (of any size).
        threads: Threads within an operator; None leaves what ``options``, or else onnxruntime, says.
        library: Whether to register the operator library. Without it a rewritten model runs by its function bodies.
        libraries: Other libraries of custom operators that the model uses, beside those of `with_libraries`.
        options: Options to start from. They are changed: threads are set and libraries are registered in them. Without
            any, onnxruntime prints nothing of its own.
        providers: Execution providers, most wanted first. onnxruntime would go on without one that does not work here.

    Raises:
        PerfonnxError: A library or the model cannot be loaded, or the first provider does not work here.
    """
    if options is None:
        options = quiet_options()
    if threads is not None:
        if threads < 1:
            raise PerfonnxError(f"threads={threads}: give 1 or more, or None for onnxruntime's own choice")
        options.intra_op_num_threads = threads
    if library:
        register(options)
    register_others(options, libraries)
    if isinstance(model, onnx.ModelProto):
        if model.ByteSize() <= _LARGEST_MESSAGE:
            return _create(model.SerializeToString(), "the model", options, providers)
        with tempfile.TemporaryDirectory(prefix="perfonnx-") as directory:
            path = Path(directory) / "model.onnx"
            copy = onnx.ModelProto()
            copy.CopyFrom(model)  # saving with external data empties the tensors
            onnx.save_model(copy, path, save_as_external_data=True)
            return _create(str(path), "the model", options, providers)
    if isinstance(model, bytes):
        return _create(model, "the model", options, providers)
    path = Path(model)
    if not path.is_file():
        raise PerfonnxError(f"{path}: no such file; give the path of an ONNX model")
    return _create(str(path), str(path), options, providers)


def run(session: Any, outputs: Sequence[str], feed: Mapping[str, Any], name: str) -> list[Any]:
    """What a session gives for a feed, in the order of `outputs`.

    Raises:
        PerfonnxError: onnxruntime refuses; the message begins with `name`.
    """
    try:
        return list(session.run(list(outputs), dict(feed)))
    except Exception as error:  # see register
        raise PerfonnxError(f"{name}: onnxruntime cannot run it: {one_line(error)}") from error


def _create(
    model: str | bytes, name: str, options: ort.SessionOptions, providers: Sequence[Provider]
) -> ort.InferenceSession:
    try:
        made = ort.InferenceSession(model, options, providers=list(providers))
    except Exception as error:  # see register
        message = one_line(error, longest=None)
        if "is not a registered function/op" in message:
            message += "; where another library of custom operators has it, name that with --library"
        raise PerfonnxError(f"onnxruntime {ort.__version__} cannot load {name}: {message}") from error
    first = providers[0] if isinstance(providers[0], str) else providers[0][0]
    if first not in made.get_providers():
        raise PerfonnxError(
            f"onnxruntime {ort.__version__} cannot use its {first} here; see that there is a GPU and that the "
            "libraries of CUDA and cuDNN that this onnxruntime was built for are found"
        )
    return made
