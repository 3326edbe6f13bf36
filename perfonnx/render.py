"""Reports as rich tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perfonnx.inspection import Inspection
from perfonnx.names import shortened
from perfonnx.passes import Skip
from perfonnx.rewriting import Report


def count(number: int) -> str:
    """A count with its unit, in three digits: 15.3 G."""
    value = float(number)
    for unit in ("", " k", " M", " G", " T"):
        if value < 999.5 or unit == " T":  # from there on three digits round up to a thousand
            return str(number) if not unit else f"{value:.3g}{unit}" if value < 999.5 else f"{value:.0f}{unit}"
        value /= 1000
    raise AssertionError


def byte_size(number: int) -> str:
    """A size in MB."""
    return f"{number / 1e6:.2f} MB"


def _size(shape: Sequence[int] | None) -> str:
    return "?" if not shape else "x".join(str(n) for n in shape)


def render_inspection(inspection: Inspection) -> RenderableType:
    """The table of convolutions, and what it comes to."""
    table = Table(title=Text(f"{inspection.model}, opset {inspection.opset}"), title_justify="left")
    for name, justify in (
        ("layer", "left"),
        ("weight", "left"),
        ("stride", "left"),
        ("output", "left"),
        ("multiplies", "right"),
        ("share", "right"),
        ("pool", "left"),
        ("eligible", "left"),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for conv in inspection.convs:
        group = f" /{conv.group}" if conv.group > 1 else ""
        table.add_row(
            Text(shortened(conv.name)),
            _size(conv.weight) + group,
            _size(conv.strides),
            _size(conv.output),
            "?" if conv.multiplies is None else count(conv.multiplies),
            f"{conv.share:.1%}",
            "yes" if conv.pool else "",
            Text("yes", "green") if conv.reason is None else Text(conv.reason, "dim"),
        )
    eligible = sum(c.reason is None for c in inspection.convs)
    lines = [
        f"{len(inspection.convs)} convolutions, {eligible} eligible; {count(inspection.multiplies)} multiplies, "
        f"{inspection.eligible_share:.1%} of them in eligible layers"
    ]
    lines += _not_counted(inspection.not_counted)
    if inspection.little_to_gain:
        lines.append("there is little to gain in this model")
    return Group(table, *lines, *_missing(inspection.missing), *_notes(inspection.notes))


def render_report(report: Report, *, verbose: bool = False) -> RenderableType:
    """What a rewrite did: the layers, the totals before and after, and the skipped layers with reasons."""
    parts: list[RenderableType] = []
    if report.layers:
        parts.append(_layers(report))
    parts.append(_totals(report))
    parts += _not_counted(report.not_counted)
    parts += [*_skips(report, verbose), *(_left_on_maps(report) if verbose else ()), *_notes(report.notes)]
    if report.little_to_gain:
        parts.append(Text(report.little_to_gain, "yellow"))
    parts += _missing(report.missing)
    return Group(*parts)


def _not_counted(layers: Sequence[str]) -> list[str]:
    return [f"not counted: {', '.join(layers)}"] if layers else []


def _missing(flags: Mapping[str, int]) -> list[Text]:
    """What would tell more."""
    return [
        Text(f"{left_as_they_are(number)} for want of {flag}: what can be gained in them is not known", "yellow")
        for flag, number in flags.items()
    ]


def _notes(notes: Sequence[str]) -> list[Text]:
    return [Text(note, "yellow") for note in notes]


def _layers(report: Report) -> Table:
    table = Table(
        title=Text(f"{report.model}: {len(report.layers)} layer{'s' * (len(report.layers) != 1)} rewritten"),
        title_justify="left",
    )
    for name, justify in (
        ("layer", "left"),
        ("method", "left"),
        ("mask", "left"),
        ("output", "left"),
        ("rate asked", "right"),
        ("real", "right"),
        ("multiplies", "right"),
        ("after", "right"),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for layer in report.layers:
        asked = ", ".join(f"{step.saving:.3f}" for step in layer.plan.steps if step.asked)
        table.add_row(
            Text(shortened(layer.name)),
            ", ".join(step.NAME for step in layer.plan.steps),
            Text(", ".join(step.detail for step in layer.plan.steps if step.detail)),
            _size(layer.output_shape),
            asked,
            f"{layer.rate:.3f}" if asked else "",
            count(layer.multiplies[0]),
            count(layer.multiplies[1]),
        )
    return table


def _totals(report: Report) -> Table:
    table = Table(title="whole model, per image", title_justify="left")
    for name in ("", "before", "after", "before / after"):
        table.add_column(name, justify="left" if not name else "right")
    counted = "multiplies, as far as counted" if report.not_counted else "multiplies"
    most = "at most " if report.not_counted else ""  # what is not counted stays as it is
    for name, (before, after), show in (
        (counted, report.multiplies, count),
        ("multiplies in convolutions", report.conv_multiplies, count),
        ("activations' size", report.activations, byte_size),
    ):
        better = Text(show(after), "bold green" if after < before else "")
        ratio = f"{most if name == counted else ''}{before / after:.2f}x" if after else ""
        table.add_row(name, show(before), better, ratio)
    return table


def _skips(report: Report, verbose: bool) -> list[RenderableType]:
    if not report.skips:
        return []
    if verbose or len(report.skips) <= 12:
        return [_reasons(left_as_they_are(len(report.skips)), report.skips)]
    reasons = Counter(_kind(skip.reason) for skip in report.skips)
    table = Table(title=f"{left_as_they_are(len(report.skips))} (-v lists them)", title_justify="left")
    table.add_column("layers", justify="right")
    table.add_column("reason", overflow="fold")
    for reason, number in reasons.most_common():
        table.add_row(str(number), Text(reason))
    return [table]


def _left_on_maps(report: Report) -> list[RenderableType]:
    return [_reasons("rows reach them, but they stay on maps", report.left_on_maps)] if report.left_on_maps else []


def _reasons(title: str, skips: Sequence[Skip]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("reason", overflow="fold")
    for skip in skips:
        table.add_row(Text(shortened(skip.layer)), Text(skip.reason))
    return table


def left_as_they_are(number: int) -> str:
    """How many convolutions are not rewritten, in words."""
    return "1 convolution left as it is" if number == 1 else f"{number} convolutions left as they are"


def _kind(reason: str) -> str:
    """Reasons that differ in a number alone are one kind."""
    if reason.startswith("carries only"):
        return "carries little of the multiplies"
    return reason.split(", est. ")[0]
