"""The flags that say where data is and how images become numbers; they need nothing but the standard library."""

import argparse

PRESETS = ("unit", "pixels", "signed", "imagenet", "imagenet-bgr-caffe", "cifar")
"""Names of image formats, see `perfonnx.data.samples.PRESETS`."""

CHANNELS = ("rgb", "bgr", "gray")
"""Orders of colours."""

LAYOUTS = ("nchw", "nhwc")
"""Orders of an image input's dimensions."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp")
"""By which the images in a folder or an archive are known."""


def add_data_arguments(parser: argparse.ArgumentParser, *, seed: bool = True, note: str | None = None) -> None:
    """The flags of data, one group for every command that feeds a model.

    `perfonnx.data.samples.samples_from` reads them. Earlier spellings are still understood: `-n` for `--samples`, and
    `--bgr` for `--channels bgr`.

    Args:
        parser: Where to.
        seed: Add `--seed` too; not where the command has its own, which then counts.
        note: What else there is to say of data in this command.
    """
    group = parser.add_argument_group("data", note)
    group.add_argument(
        "--data",
        metavar="PATH",
        help="a folder of images or .npy files, or one .zip file of images, .npz or .npy file",
    )
    group.add_argument(
        "--labels",
        metavar="PATH|folders|prefix|suffix|ARRAY",
        help="classes: a .tsv or .csv file (file name, class), the order of the folders, the number in front of a "
        "file's name or behind its last underscore, or an array of the .npz file",
    )
    group.add_argument(
        "--preset", metavar="NAME|FILE", help=f"how images become numbers: {', '.join(PRESETS)}, or a JSON file"
    )
    group.add_argument("--size", metavar="N|HxW", help="resize images: their shorter side, or height and width")
    group.add_argument("--crop", metavar="HxW", help="centre crop (default: the model's size)")
    group.add_argument("--scale", type=float, help="factor for pixel values 0..255 (default 1/255)")
    group.add_argument("--mean", metavar="M[,M,M]", help="subtracted after scaling (default 0)")
    group.add_argument("--std", metavar="S[,S,S]", help="divides after that (default 1)")
    group.add_argument("--channels", choices=CHANNELS, help="order of colours, or none (default rgb)")
    group.add_argument("--image-layout", choices=LAYOUTS, help="order of dimensions (default: as the model's shape is)")
    group.add_argument("--samples", type=int, metavar="N", help="use N samples at most, drawn by the seed")
    group.add_argument("-n", dest="samples", type=int, help=argparse.SUPPRESS)
    group.add_argument("--bgr", dest="channels", action="store_const", const="bgr", help=argparse.SUPPRESS)
    if seed:
        group.add_argument("--seed", type=int, default=0, metavar="N", help="seed of random choices (default 0)")
