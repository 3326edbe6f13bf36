"""What a fine-tuning did, as rich tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perfonnx.render import count, left_as_they_are
from perfonnx.torch.finetuning import Finetuned
from perfonnx.torch.rounds import Round

APART = "the trained weights are in the model alone: a plan of it holds what was chosen, for any weights"


def render_finetuned(finetuned: Finetuned) -> RenderableType:
    """The epochs, what the layers' rewriting cost before and after training, and the multiplies that are left."""
    report, metric = finetuned.result.report, finetuned.metric
    before, after = report.multiplies
    ratio = f"{before / after:.2f}x fewer" if after else "all are gone"
    layers = f"{len(report.layers)} layer{'s' * (len(report.layers) != 1)} rewritten"
    lines = [
        f"{layers}; multiplies {count(before)} -> {count(after)}, {ratio}",
        f"{finetuned.after.images} samples held out, untrained: {metric.lost(finetuned.before.drop)}",
        f"{finetuned.after.images} samples held out, trained: {metric.lost(finetuned.after.drop)}",
    ]
    if report.skips:
        lines.append(f"{left_as_they_are(len(report.skips))}; --report-json and --save-plan write why")
    if metric.name in ("top1", "loss"):
        values = (finetuned.before.reference, finetuned.before.value, finetuned.after.value)
        shown = [f"{value:.1%}" if metric.is_share else f"{value:.4f}" for value in values]
        lines.append(f"{metric.name}: original {shown[0]}, untrained {shown[1]}, trained {shown[2]}")
    parts: list[RenderableType] = [_epochs(finetuned), *(Text(line, "bold") for line in lines)]
    if not finetuned.aside:
        parts.append(Text(f"note: {APART}", "yellow"))
    return Group(*parts)


def render_rounds(rounds: Sequence[Round]) -> RenderableType:
    """Each round: how fast its plan is, and what its training brought."""
    parts: list[RenderableType] = []
    for number, one in enumerate(rounds, 1):
        speed = f"{one.speed.ratio:.2f}x faster, measured ({one.speed.low:.2f}-{one.speed.high:.2f})"
        short = "" if one.reached else "; that is not reached for certain"
        parts.append(Text(f"round {number}: {one.speedup:.2f}x wanted, {speed}{short}", "bold"))
        parts += [Text(f"note: {warning}", "yellow") for warning in one.warnings]
        parts.append(render_finetuned(one.finetuned))
    return Group(*parts)


def _epochs(finetuned: Finetuned) -> Table:
    table = Table(title=Text(f"{finetuned.result.report.model}: training"), title_justify="left")
    several = len(finetuned.rounds) > 1
    for name in (*(("round",) if several else ()), "epoch", "loss", "held out", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("")
    for number, history in enumerate(finetuned.rounds, 1):
        first = [str(number)] if several else []
        table.add_row(*first, "0", "", f"{history.before:.4g}", "", "kept" if history.best == 0 else "")
        for i, epoch in enumerate(history.epochs, 1):
            kept = "kept" if history.best == i else ""
            table.add_row(*first, str(i), f"{epoch.loss:.4g}", f"{epoch.held_out:.4g}", f"{epoch.seconds:.1f}", kept)
    return table
