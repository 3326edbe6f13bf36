"""What a comparison of two models found, which of its bounds hold, and how that is shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from perfonnx.comparing.metrics import Metric, Quality
from perfonnx.comparing.tallies import OutputError, Top1
from perfonnx.names import shortened

NOISE = 3
"""Kernels may differ from function bodies by so many times what the first model differs from itself without
onnxruntime's optimizations, if that is more: by the largest difference and by the mean one."""


@dataclass(frozen=True)
class Noise:
    """How far onnxruntime is from itself on the batches where kernels and function bodies were too far apart.

    Attributes:
        original: The first model with onnxruntime's optimizations against the same without.
        kernel: The second model's kernels against its function bodies.
    """

    original: OutputError
    kernel: OutputError

    @property
    def explains(self) -> bool:
        """Whether kernels and function bodies are no further apart than what optimizing makes of the first model."""
        return all(
            getattr(self.kernel, which) <= NOISE * getattr(self.original, which) for which in ("max_rel", "mean_rel")
        )


@dataclass(frozen=True)
class CheckReport:
    """What `compare` found.

    Attributes:
        a: Name of the first model, the reference.
        b: Name of the second model.
        samples: Samples compared.
        outputs: One entry per output of the model.
        top1: One entry per output that looks like a classifier's; see `compare`.
        kernel: The second model with the library against the same without it, per output; empty if skipped.
        kernel_skipped: Why that was not measured, or None.
        kernel_bound: Largest relative error that `kernel` may have, unless `noise` is behind it.
        tolerance: Largest relative error that `outputs` may have, or None.
        max_drop: Largest loss, in the metric's terms, or None.
        metric: What the loss was measured by, or None.
        quality: What was lost, as `perfonnx tune` measures it, or None.
        not_judged: Why that was not measured although it was wanted, or None.
        skipped: Outputs that were not compared, with the reason.
        noise: Outputs whose kernels were further from their function bodies than the bound on some batches, with what
            was found on these.
    """

    a: str
    b: str
    samples: int
    outputs: tuple[OutputError, ...]
    top1: tuple[Top1, ...]
    kernel: tuple[OutputError, ...]
    kernel_skipped: str | None
    kernel_bound: float
    tolerance: float | None
    max_drop: float | None
    metric: Metric | None = None
    quality: Quality | None = None
    not_judged: str | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    noise: Mapping[str, Noise] = field(default_factory=dict)

    @property
    def failures(self) -> tuple[str, ...]:
        """One line per bound that does not hold."""
        lines = []
        for error in self.outputs:
            if error.not_finite:
                lines.append(f"output '{error.name}': {error.not_finite} values are NaN or infinite in one model only")
            if self.tolerance is not None and error.max_rel > self.tolerance:
                lines.append(
                    f"output '{error.name}': relative error {error.max_rel:.3g} is above the tolerance "
                    f"{self.tolerance:.3g}"
                )
        if self.metric is not None and self.quality is not None and self.max_drop is not None:
            if self.metric.name == "agreement":  # of all outputs, not only of the one that the metric looks at
                lines += [
                    f"output '{top1.output}': top-1 differs on {top1.samples - top1.agree} of {top1.samples} samples "
                    f"({top1.disagreement:.2%}), above {self.max_drop:.2%}"
                    for top1 in self.top1
                    if top1.disagreement > self.max_drop
                ]
            elif self.quality.drop > self.max_drop:
                lost = self.metric.lost(self.quality.drop)
                lines.append(f"{lost} on {_samples(self.samples)}; wanted {self.metric.within(self.max_drop)}")
        for error in self.kernel:
            noise = self.noise.get(error.name)
            above = error.max_rel > self.kernel_bound and not (noise is not None and noise.explains)
            if error.not_finite or above:
                infinite = "; they need agree for finite values only" if error.not_finite else ""
                lines.append(
                    f"output '{error.name}': kernel and function body differ by {error.max_rel:.3g} relative"
                    f" ({error.not_finite} values not finite), above {self.kernel_bound:.3g}{infinite}"
                )
        return tuple(lines)

    @property
    def passed(self) -> bool:
        """Whether every bound holds."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; numbers that are not finite become None."""
        return {
            "a": self.a,
            "b": self.b,
            "samples": self.samples,
            "passed": self.passed,
            "failures": list(self.failures),
            "tolerance": self.tolerance,
            "max_drop": self.max_drop,
            "metric": None if self.metric is None else self.metric.to_json(),
            "quality": None if self.quality is None else self.quality.to_json(),
            "not_judged": self.not_judged,
            "outputs": [_plain(vars(error)) for error in self.outputs],
            "top1": [{**_plain(vars(top1)), "disagreement": top1.disagreement} for top1 in self.top1],
            "kernel": {
                "skipped": self.kernel_skipped,
                "bound": self.kernel_bound,
                "outputs": [_plain(vars(error)) for error in self.kernel],
                "noise": {
                    name: {"original": _plain(vars(noise.original)), "kernel": _plain(vars(noise.kernel))}
                    for name, noise in self.noise.items()
                },
            },
            "skipped": dict(self.skipped),
        }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}


# --- showing ----------------------------------------------------------------------------------------------------------


def render_check(report: CheckReport) -> RenderableType:
    """The report as rich tables, followed by one line per failure."""
    title = f"{report.b} against {report.a}, {_samples(report.samples)}"
    parts: list[RenderableType] = [_error_table(title, report.outputs)]
    parts += [Text(f"output '{name}': not compared, {why}", style="yellow") for name, why in report.skipped.items()]
    if report.top1:
        parts.append(_top1_table(report))
    if report.metric is not None and report.quality is not None:
        quality, metric = report.quality, report.metric
        sure = f" +-{metric.show_error(quality.drop_error)}" if math.isfinite(quality.drop_error) else ""
        parts.append(Text(f"{metric.lost(quality.drop)}{sure} on {_samples(quality.images)}"))
    if report.not_judged is not None:
        parts.append(Text(f"the loss was not measured: {report.not_judged}", style="yellow"))
    if report.kernel_skipped is None:
        parts.append(_error_table(f"kernels against function bodies (bound {report.kernel_bound:.0e})", report.kernel))
        parts += [Text(_noise_line(name, noise), style="dim") for name, noise in report.noise.items()]
    else:
        parts.append(Text(f"kernels against function bodies: not compared, {report.kernel_skipped}", style="dim"))
    if report.failures:
        parts.extend(Text(f"FAILED {line}", style="bold red") for line in report.failures)
    else:
        bounds = report.tolerance is not None or report.max_drop is not None
        parts.append(Text("passed" if bounds else "passed (no bound on the difference was given)", style="green"))
    return Group(*parts)


def _noise_line(name: str, noise: Noise) -> str:
    what = "no more than" if noise.explains else "unlike"
    return (
        f"output '{name}': on these inputs that is {what} what onnxruntime's own optimizations change in the first "
        f"model, {noise.original.max_rel:.3g} relative, {noise.original.mean_rel:.3g} in the mean"
    )


def _error_table(title: str, errors: Sequence[OutputError]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("output")
    for column in ("max abs", "max rel", "mean abs", "cosine", "SNR dB", "PSNR dB"):
        table.add_column(column, justify="right")
    marked = any(error.not_finite for error in errors)
    if marked:
        table.add_column("not finite", justify="right")
    for error in errors:
        row: list[RenderableType] = [
            Text(shortened(error.name)),  # as text: a name may contain rich's markup characters
            f"{error.max_abs:.3g}",
            f"{error.max_rel:.3g}",
            f"{error.mean_abs:.3g}",
            f"{error.cosine:.6f}",
            f"{error.snr_db:.1f}",
            f"{error.psnr_db:.1f}",
        ]
        table.add_row(*row, *([str(error.not_finite)] if marked else []))
    return table


def _top1_table(report: CheckReport) -> Table:
    table = Table(title="top-1 class", title_justify="left")
    table.add_column("output")
    table.add_column("agree", justify="right")
    labelled = any(top1.correct_a is not None for top1 in report.top1)
    if labelled:
        for column in ("A right", "B right", "only A", "only B"):
            table.add_column(column, justify="right")
    for top1 in report.top1:
        cells = [f"{top1.agree}/{top1.samples} ({1 - top1.disagreement:.1%})"]
        if labelled and top1.correct_a is not None and top1.correct_b is not None:
            cells += [f"{count / max(top1.samples, 1):.1%}" for count in (top1.correct_a, top1.correct_b)]
            cells += [str(top1.only_a), str(top1.only_b)]
        table.add_row(Text(shortened(top1.output)), *cells)
    return table


def _samples(count: int) -> str:
    return "1 sample" if count == 1 else f"{count} samples"
