"""Masks from a file: one for all layers (.npy), or one per layer by name (.npz)."""

import io as streams
import os
import zipfile
from collections.abc import Mapping

import numpy as np

from perfonnx.errors import PerfonnxError, one_line
from perfonnx.masks.request import Mask, Shape
from perfonnx.model.atomic import write_atomically

ANY_LAYER = ""
"""Key of a mask that is meant for every layer it fits."""


def load_masks(path: str | os.PathLike[str]) -> dict[str, Mask]:
    """Reads masks of rank 2 made of booleans or of numbers 0 and 1.

    Args:
        path: a .npy file, one array for every layer it fits; or a .npz file, one array per layer, under its name.
            The content decides which it is, not the suffix. Pickled objects are refused.

    Returns:
        bool [H, W] by layer name, `ANY_LAYER` for the array of a .npy file.

    Raises:
        PerfonnxError: the file is missing, broken or something else, or an array is no mask.
    """
    where = f"mask file {os.fspath(path)}"
    arrays = load_arrays(path, where)
    return {name: as_mask(array, where + (f", {name!r}" if name else "")) for name, array in arrays.items()}


def load_arrays(path: str | os.PathLike[str], where: str) -> dict[str, object]:
    """Reads what a .npy or .npz file holds, `ANY_LAYER` being the name of the array of a .npy file.

    Raises:
        PerfonnxError: The file is missing, broken or empty; the message begins with `where`.
    """
    try:
        with open(path, "rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            arrays = {ANY_LAYER: loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except OSError as error:
        raise PerfonnxError(f"{where}: {error.strerror or one_line(error, longest=None)}") from error
    except Exception as error:  # what numpy, zipfile and zlib raise on damaged input is no closed set
        raise PerfonnxError(
            f"{where}: not a readable .npy or .npz file without pickled objects ({one_line(error, longest=None)})"
        ) from error
    if not arrays:
        raise PerfonnxError(f"{where}: holds no array; store one per layer, under the layer's name")
    return arrays


def save_arrays(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a .npz file, atomically, one array under each name, whatever the name; see `load_arrays`.

    Raises:
        PerfonnxError: The place cannot be written.
    """
    buffer = streams.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:  # numpy's own writer has names that it reserves
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
    write_atomically(path, buffer.getvalue())


def mask_from_file(masks: Mapping[str, Mask], layer_name: str, shape: Shape) -> Mask:
    """The mask of a layer: the one under its name, else the one for every layer.

    Args:
        masks: as `load_masks` returns them.
        layer_name: name of the layer.
        shape: height and width of its output map.

    Returns:
        bool [H, W] with at least one site.

    Raises:
        PerfonnxError: there is no mask for the layer, it does not fit, or it has no site.
    """
    mask = masks.get(layer_name, masks.get(ANY_LAYER))
    if mask is None:
        raise PerfonnxError(f"layer {layer_name!r}: the mask file has no array of this name; add it or skip the layer")
    if mask.shape != tuple(shape):
        wanted, found = ("x".join(map(str, size)) for size in (shape, mask.shape))
        raise PerfonnxError(f"layer {layer_name!r}: its mask is {found}; its output map is {wanted}")
    if not mask.any():
        raise PerfonnxError(f"layer {layer_name!r}: its mask has no site; mark at least one position")
    return mask


def as_mask(array: object, where: str) -> Mask:
    """An array of booleans, or of numbers 0 and 1, as a mask [H, W].

    Raises:
        PerfonnxError: It is something else; the message begins with `where`.
    """
    if not isinstance(array, np.ndarray):
        raise PerfonnxError(f"{where}: is no array; store numpy arrays only")
    if array.ndim != 2 or array.size == 0:
        raise PerfonnxError(f"{where}: has shape {list(array.shape)}; a mask is [H, W]")
    if array.dtype.kind not in "biuf":
        raise PerfonnxError(f"{where}: holds {array.dtype}; a mask holds booleans, or numbers 0 and 1")
    if not ((array == 0) | (array == 1)).all():
        raise PerfonnxError(f"{where}: holds values other than 0 and 1; make it a mask of booleans")
    return array.astype(np.bool_)
