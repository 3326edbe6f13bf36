"""`perfonnx finetune`: a model, rewritten and trained."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from perfonnx.cli.choices import add_choices, choice_names, choices_from
from perfonnx.cli.command import Command, ExitStatus
from perfonnx.cli.data import add_data, required_samples
from perfonnx.cli.flags import (
    add_freeze,
    add_json,
    add_library,
    add_no_fallback,
    add_quiet,
    add_shapes,
    input_shapes,
)
from perfonnx.cli.named_files import ReadModel, Written
from perfonnx.cli.output import SearchBar, show, write_json
from perfonnx.errors import PerfonnxError

_EXAMPLES = """examples:
  perfonnx finetune model.onnx fast.onnx --plan plan.json --data train.zip --epochs 10
        the rewritten network learns from the original one; no labels needed
  perfonnx finetune model.onnx fast.onnx --rate 0.5 --data train/ --preset imagenet --augment crop+flip --batch 32
  perfonnx finetune model.onnx fast.onnx --speedup 1.5 --rounds 3 --data train/ --checkpoint training --resume
        in three rounds of higher rates; can be interrupted, and goes on from there when it is run again
  perfonnx finetune model.onnx fast.onnx --plan plan.json --data train/ --labels folders --label-weight 0.5
  perfonnx finetune model.onnx fast.onnx --method sublattice --data train/ --augment crop+flip --save-plan plan.json
        perfonnx rewrite model.onnx fast.onnx --plan plan.json makes the same model again, without data
  perfonnx finetune model.onnx fast.onnx --method radius-adaptive --open-share 0.4 --data train/ --device cuda

Repairs in a plan are left out: training does their work. Layers on sublattices and low-rank ones train what was fitted
for them, weights and factors, which are kept with --save-plan; the rest of the network stays as it is where the plan
has no others. Sparse layers whose mask is
propagated train with masks that are drawn again and again, all from one random map; other masks stay. --precision
bfloat16 is faster on machines that have instructions for it.
"""

_SETTINGS = {
    "epochs": (int, "N", "passes over the data (default 5)"),
    "batch": (int, "N", "samples per step (default 64)"),
    "lr": (float, "R", "highest learning rate (default 0.02 for sgd, 0.0003 for adamw)"),
    "optimizer": (str, "NAME", "sgd or adamw (default: adamw where layers train what was fitted, else sgd)"),
    "augment": (
        str,
        "NAME",
        "none (default), flip or crop+flip: mirror and move images at random; good for most photographs",
    ),
    "temperature": (float, "T", "of a classifier's probabilities when it learns from the original (default 2)"),
    "intermediate": (float, "W", "weight of the rewritten layers' own errors (default 1)"),
    "label_weight": (float, "W", "share of the labels in the loss, 0 to 1 (default 0: the original alone teaches)"),
    "batch_norm": (str, "NAME", "update (default) statistics of batch normalization, or keep them frozen"),
    "validate": (float, "P", "share of the samples that is held out, to measure on (default 0.05)"),
    "patience": (int, "N", "stop after N epochs that bring nothing (default 5)"),
}
"""Fields of `perfonnx.torch.Settings` with their type, placeholder and help."""


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=ReadModel, metavar="IN", help="the model; it is not changed")
    parser.add_argument("output", type=Written, metavar="OUT", help="where the new model goes")
    what = add_choices(parser, without=("open_share", "fill", "repair"))
    what.add_argument(
        "--open-share",
        type=float,
        metavar="P",
        help="share of the 3x3 rings that radius-adaptive layers learn to get by with (default 1: all, which saves "
        "nothing)",
    )
    what.add_argument(
        "--speedup",
        type=float,
        metavar="S",
        help="perforate until one image is S times faster here: rates are chosen layer by layer, by measured time and "
        "loss, anew in each round on the weights as they are then; instead of all other choices",
    )
    what.add_argument(
        "--search-time", type=float, metavar="SECONDS", help="time to measure for --speedup in each round (default 300)"
    )
    add_data(parser, seed=False)
    _add_learning(parser)
    how = parser.add_argument_group("how it runs")
    how.add_argument("--precision", metavar="NAME", help="float32 (default) or bfloat16")
    how.add_argument("--device", metavar="NAME", help="cpu (default) or cuda")
    how.add_argument("--threads", type=int, metavar="N", help="threads (default: all cores)")
    how.add_argument(
        "--checkpoint",
        type=Written,
        metavar="FILE",
        help="keep here where the training is, after each epoch and on Ctrl-C",
    )
    how.add_argument("--resume", action="store_true", help="go on from --checkpoint where it is there")
    model = parser.add_argument_group("the model")
    add_shapes(model)
    add_library(model)
    add_freeze(model)
    model.add_argument("--layout", metavar="NAME", help="rows (default) or nchw, as in perfonnx rewrite")
    add_no_fallback(model)
    result = parser.add_argument_group("results")
    result.add_argument("--report-json", type=Written, metavar="FILE", help="write everything that was measured")
    add_quiet(result)
    add_json(result)


def _run(options: argparse.Namespace) -> ExitStatus:
    from perfonnx.torch import Round, Settings, finetune_model, finetune_rounds
    from perfonnx.torch.render_finetuned import render_finetuned, render_rounds
    from perfonnx.torch.rounds import rounds_to_json

    if options.resume and not options.checkpoint:
        raise PerfonnxError("--resume needs --checkpoint, the file to go on from")
    given = {name: getattr(options, name) for name in (*_SETTINGS, "precision", "device", "seed")}
    chosen = choices_from(options, seed=False, exact=False)
    _check_speedup(options)
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    same: dict[str, Any] = {
        "model": options.model,
        "output": options.output,
        "samples": required_samples(options),
        "settings": settings,
        "rounds": options.rounds,
        "input_shapes": input_shapes(options),
        "freeze_weights": options.freeze_weights,
        "fallback": not options.no_fallback,
        "threads": options.threads,
        "checkpoint": options.checkpoint,
        "resume": options.resume,
    }
    rounds: list[Round] = []
    try:
        with SearchBar(options) as step:
            if options.speedup is not None:
                if options.search_time is not None:
                    same["search_time"] = options.search_time
                rounds = finetune_rounds(speedup=options.speedup, progress=step, **same)
                tuned = rounds[-1].finetuned
            else:
                same |= {"plan": options.plan, "options": chosen, "impact_maps": options.impact_maps}
                tuned = finetune_model(layout=options.layout, progress=step, **same)
    except KeyboardInterrupt:
        kept = f"; to go on from {options.checkpoint}, add --resume" if options.checkpoint else ""
        print(f"perfonnx: interrupted{kept}", file=sys.stderr)
        return ExitStatus.INTERRUPTED
    if options.save_plan:
        tuned.result.save_plan(options.save_plan)
    data = rounds_to_json(rounds) if rounds else tuned.to_json()
    if options.report_json:
        write_json(options.report_json, data)
    if not options.quiet:
        show(options, data, render_rounds(rounds) if rounds else render_finetuned(tuned))
    return ExitStatus.OK


def _add_learning(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    for name, (kind, placeholder, text) in _SETTINGS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=placeholder, help=text)
    group.add_argument(
        "--rounds",
        type=int,
        default=1,
        metavar="K",
        help="raise the rates, or the --speedup, in K steps and train all epochs after each (default 1)",
    )


def _check_speedup(options: argparse.Namespace) -> None:
    """What --speedup goes with."""
    if options.speedup is None:
        if options.search_time is not None:
            raise PerfonnxError("--search-time: has a meaning with --speedup only")
        return
    names = ("plan", *choice_names(), "impact_maps", "layout", "only", "skip")  # a seed goes with everything
    named = [name for name in names if getattr(options, name, None) not in (None, [])]
    if named:
        raise PerfonnxError(f"--speedup chooses everything; it does not go with --{named[0].replace('_', '-')}")


COMMAND = Command(
    "finetune",
    80,
    "rewrite a model and train it to do what it did before",
    _EXAMPLES,
    _add_flags,
    _run,
)
