"""What a tuning found, as rich tables."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perfonnx.comparing.metrics import Quality
from perfonnx.names import shortened
from perfonnx.search.result import Training, Trial, Tuned

SHOWN = 12
"""Trials shown, at most."""


def render_tuned(tuned: Tuned) -> RenderableType:
    """The layers, the best of what was measured, and what came out."""
    parts: list[RenderableType] = []
    if tuned.best is not None:
        parts.append(_layers(tuned))
    if tuned.trials:
        parts.append(_trials(tuned))
    if tuned.training is not None:
        parts.append(_training(tuned, tuned.training))
    parts.append(Text(tuned.message, "bold"))
    parts += [Text(f"note: {warning}", "yellow") for warning in tuned.warnings]
    return Group(*parts)


def _layers(tuned: Tuned) -> Table:
    table = Table(title=Text(f"{tuned.result.report.model}: what is skipped"), title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("choice")
    for name in ("skipped", "multiplies"):
        table.add_column(name, justify="right")
    for layer in tuned.result.report.layers:
        before, after = layer.multiplies
        table.add_row(
            Text(shortened(layer.name)), layer.plan.label, f"{layer.rate:.1%}", f"{after / max(before, 1):.0%}"
        )
    return table


def _trials(tuned: Tuned) -> Table:
    """The trials that no other one beats, and the one that was taken."""
    shown = tuned.pareto()
    if tuned.best is not None and all(trial is not tuned.best for trial in shown):
        shown.append(tuned.best)
    if len(shown) > SHOWN:
        step = len(shown) / SHOWN
        kept = {id(shown[int(i * step)]) for i in range(SHOWN)} | {id(tuned.best)}
        shown = [trial for trial in shown if id(trial) in kept]
    shown.sort(key=lambda trial: trial.speed.ratio)
    table = Table(
        title=Text(f"{len(tuned.trials)} networks measured; the best trades of speed for {tuned.metric.name}"),
        title_justify="left",
    )
    for name in ("speed-up", "95 %", "layers", "loss", "loss on unseen images"):
        table.add_column(name, justify="right")
    table.add_column("")
    for trial in shown:
        table.add_row(*_cells(tuned, trial), "taken" if trial is tuned.best else "")
    return table


def _training(tuned: Tuned, training: Training) -> Table:
    """The losses before and after, on images that were held back from everything."""
    title = f"trained on {training.images} samples in {len(training.held_out)} epochs, {training.seconds:.0f} s"
    table = Table(title=Text(title), title_justify="left")
    for name in ("", "loss on unseen images", "speed-up", "95 %"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("before", _loss(tuned, training.before), "", "")
    speed = training.speed
    table.add_row("after", _loss(tuned, training.after), f"{speed.ratio:.2f}x", f"{speed.low:.2f}-{speed.high:.2f}")
    return table


def _cells(tuned: Tuned, trial: Trial) -> list[str]:
    speed = trial.speed
    return [
        f"{speed.ratio:.2f}x",
        f"{speed.low:.2f}-{speed.high:.2f}",
        str(len(trial.plan.layers)),
        _loss(tuned, trial.choosing),
        _loss(tuned, trial.held_back),
    ]


def _loss(tuned: Tuned, quality: Quality | None) -> str:
    if quality is None:
        return ""
    error = f"{100 * quality.drop_error:.2f}" if tuned.metric.is_share else f"{quality.drop_error:.2g}"
    return f"{tuned.metric.show(quality.drop)} +-{error}"
