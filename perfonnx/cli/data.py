"""The one dialect of data flags: where samples are, how images become numbers, and how many are used."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from perfonnx.cli.flags import input_shapes
from perfonnx.cli.named_files import Read
from perfonnx.data.formats import CHANNELS, IMAGE_LAYOUTS, PRESETS, ImageFormat, changed, image_format
from perfonnx.errors import PerfonnxError

if TYPE_CHECKING:
    from perfonnx.data.inputs import InputSpec
    from perfonnx.data.samples import Samples


def add_data(parser: argparse.ArgumentParser, *, seed: bool = True, note: str | None = None) -> None:
    """The flags of data, one group for every command that feeds a model.

    `samples_from` reads them. Earlier spellings are still understood: `-n` for `--samples`, and
    `--bgr` for `--channels bgr`.

    Args:
        parser: Where to.
        seed: Add `--seed` too; not where the command has its own, which then counts.
        note: What else there is to say of data in this command.
    """
    group = parser.add_argument_group("data", note)
    group.add_argument(
        "--data",
        type=Read,
        metavar="PATH",
        help="a folder of images or .npy files, or one .zip file of images, .npz or .npy file",
    )
    group.add_argument(
        "--labels",
        type=Read,
        metavar="PATH|folders|prefix|suffix|ARRAY",
        help="classes: a .tsv or .csv file (file name, class), the order of the folders, the number in front of a "
        "file's name or behind its last underscore, or an array of the .npz file",
    )
    group.add_argument(
        "--preset",
        type=Read,
        metavar="NAME|FILE",
        help=f"how images become numbers: {', '.join(PRESETS)}, or a JSON file",
    )
    group.add_argument("--size", metavar="N|HxW", help="resize images: their shorter side, or height and width")
    group.add_argument("--crop", metavar="HxW", help="centre crop (default: the model's size)")
    group.add_argument("--scale", type=float, help="factor for pixel values 0..255 (default 1/255)")
    group.add_argument("--mean", metavar="M[,M,M]", help="subtracted after scaling (default 0)")
    group.add_argument("--std", metavar="S[,S,S]", help="divides after that (default 1)")
    group.add_argument("--channels", choices=CHANNELS, help="order of colours, or none (default rgb)")
    group.add_argument(
        "--image-layout", choices=IMAGE_LAYOUTS, help="order of dimensions (default: as the model's shape is)"
    )
    group.add_argument("--samples", type=int, metavar="N", help="use N samples at most, drawn by the seed")
    group.add_argument("-n", dest="samples", type=int, help=argparse.SUPPRESS)
    group.add_argument("--bgr", dest="channels", action="store_const", const="bgr", help=argparse.SUPPRESS)
    if seed:
        group.add_argument("--seed", type=int, default=0, metavar="N", help="seed of random choices (default 0)")


ALL_SAMPLES = "All samples are used, in their order, unless --samples draws some."
"""A note for commands that read the data through."""


_ABOUT_DATA = ("labels", "preset", "size", "crop", "mean", "std", "scale", "channels", "image_layout")


def refuse_without_data(options: argparse.Namespace, *more: str) -> None:
    """Refuse flags that say something of data where there is none.

    Args:
        options: Parsed flags of `add_data`, without `--data`.
        more: Names of other flags that have no meaning then.

    Raises:
        PerfonnxError: One is there.
    """
    for name in (*_ABOUT_DATA, *more):
        if getattr(options, name) is not None and getattr(options, name) is not False:
            raise PerfonnxError(f"--{name.replace('_', '-')} is about data; give --data")


def samples_from(
    options: argparse.Namespace, inputs: Sequence[InputSpec] | None = None, *, batch: int | None = None
) -> Samples | None:
    """The samples that a command line asks for, None without `--data`.

    Args:
        options: Parsed flags of `add_data`; `input_shape` and `seed` too, where the command has them.
        inputs: The model's inputs; None: those of `options.model`.
        batch: As for `Samples.load`.

    Raises:
        PerfonnxError: A flag has no meaning, or see `Samples.load`.
    """
    if options.data is None:
        refuse_without_data(options, "samples")
        return None
    from perfonnx.data.inputs import model_inputs
    from perfonnx.data.samples import Samples

    samples = Samples.load(
        options.data,
        model_inputs(options.model) if inputs is None else inputs,
        image_format=_format_from(options),
        labels=options.labels,
        shapes=input_shapes(options),
        batch=batch,
    )
    if options.samples is None:
        return samples
    if options.samples < 1:
        raise PerfonnxError(f"--samples {options.samples}: give 1 or more")
    return samples.shuffled(getattr(options, "seed", None) or 0).take(options.samples)


def required_samples(options: argparse.Namespace, *, batch: int | None = None) -> Samples:
    """The samples that a command line asks for, which has to ask for some.

    Args:
        options: As for `samples_from`.
        batch: As for `Samples.load`.

    Raises:
        PerfonnxError: There is no `--data`, or see `samples_from`.
    """
    samples = samples_from(options, batch=batch)
    if samples is None:
        who = getattr(options, "command", "it")  # tools have no commands
        raise PerfonnxError(f"{who} measures on your data: add --data with a folder of images or a file")
    return samples


def _format_from(options: argparse.Namespace) -> ImageFormat:
    given: dict[str, Any] = {}
    for name in ("mean", "std"):
        if getattr(options, name) is not None:
            given[name] = _numbers(f"--{name}", getattr(options, name), ",", float)
    if options.size is not None:
        given["size"] = _numbers("--size", options.size, "x", int)
    if options.crop is not None:
        given["window"] = _numbers("--crop", options.crop, "x", int)
    if options.scale is not None:
        given["scale"] = options.scale
    if options.image_layout is not None:
        given["layout"] = options.image_layout
    if options.channels is not None:
        given |= {"bgr": options.channels == "bgr", "gray": options.channels == "gray"}
    return changed(image_format(options.preset), given, "images")


def _numbers(flag: str, text: str, separator: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        values = [kind(part) for part in text.lower().split(separator)]
    except ValueError as error:
        example = "224x224" if separator == "x" else "0.5,0.5,0.5"
        raise PerfonnxError(f"{flag} {text}: give a number, or several as {example}") from error
    if separator == "x" and len(values) > 2:
        raise PerfonnxError(f"{flag} {text}: give one number, or height and width as 224x224")
    return values
