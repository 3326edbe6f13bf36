"""`python -m models NAME OUT`: writes one of the built-in networks as an ONNX file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

import models
from perfonnx.errors import PerfonnxError
from perfonnx.model.atomic import write_atomically

EXAMPLES = """examples:
  python -m models vgg16 vgg16.onnx
  python -m models alexnet alexnet.onnx --batch N
  python -m models resnet50 resnet50.onnx --seed 3 --batch 8 --fold-bn
  python -m models vgg16-racnn racnn.onnx --open-share 0.4
  python -m models --list

The weights are random (seeded): for timing and for trying out a rewriting, not for accuracy.
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, where argparse would print the usage as well."""

    def error(self, message: str) -> NoReturn:
        raise PerfonnxError(f"{message} (see python -m models --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        The exit status: 0, or 2 when the arguments are wrong or the file cannot be written.
    """
    try:
        return _run(arguments)
    except PerfonnxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(arguments: Sequence[str] | None) -> int:
    parser = _Parser(
        prog="python -m models",
        description="Write one of the built-in networks as an ONNX file.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", help=f"the network: {', '.join(models.NAMES)}")
    parser.add_argument("out", nargs="?", help="the file to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default 0)")
    parser.add_argument("--batch", default="1", help="batch size, or a name for a symbolic batch (default 1)")
    parser.add_argument("--opset", type=int, default=17, help="operator set version (default 17)")
    parser.add_argument(
        "--fold-bn", action="store_true", help="resnet50, resnet50-racnn: fold BatchNormalization into Conv"
    )
    parser.add_argument(
        "--open-share", type=float, metavar="P", help="...-racnn: share of pixels whose gate is open (default 0.5)"
    )
    parser.add_argument("--list", action="store_true", help="list the networks and leave")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(models.NAMES))
        return 0
    if options.name is None or options.out is None:
        parser.error("name a network and a file to write")
    model = models.build(
        options.name,
        seed=options.seed,
        batch=_batch(options.batch),
        opset=options.opset,
        fold_bn=options.fold_bn,
        open_share=options.open_share,
    )
    write_atomically(options.out, model.SerializeToString(deterministic=True))
    return 0


def _batch(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


if __name__ == "__main__":
    sys.exit(main())
