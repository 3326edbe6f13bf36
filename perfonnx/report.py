"""What a tuning found as one HTML file: no script, no network, nothing beside it.

Names of models, layers, outputs and files are foreign text: every piece of text goes through `html.escape`, and the
page forbids the browser to load or run anything that is not in it.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from string import Template

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perfonnx.comparing.metrics import Metric, Quality
from perfonnx.masks import Mask
from perfonnx.render import count
from perfonnx.rewriting import LayerReport
from perfonnx.search.error_maps import ErrorMap
from perfonnx.search.pictures import as_pixels
from perfonnx.search.result import TIME, Trial, Tuned
from perfonnx.search.timing import machine

MASK_SIDE = 112
"""Pixels that the longer side of a mask is enlarged to, at most; a larger mask is drawn pixel by pixel."""

MASK_WINDOW = 224
"""A side of a mask longer than this is cut to its middle: scaled down, its pattern would be lost or invented."""

ROUNDING = 1e-4
"""Relative error below which there is nothing to see but roundings."""

PICTURE_SIDE = 420
"""Pixels that the longer side of an output is scaled down to."""

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --back: #fff; --text: #1d2430; --dim: #667080; --line: #d9dee6; --card: #f5f7fa; --before: #9aa5b5;
  --after: #1668c7; --loss: #c2571a; --taken: #d0286b; --warn: #fff4d6; }
@media (prefers-color-scheme: dark) {
  :root { --back: #14181f; --text: #e4e8ee; --dim: #98a2b1; --line: #333b47; --card: #1d232c; --before: #768294;
    --after: #58a6ff; --loss: #f0915a; --taken: #ff6fa3; --warn: #3d3413; }
}
body { margin: 2rem auto; max-width: 70rem; padding: 0 1rem; background: var(--back); color: var(--text);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p { margin: .4rem 0; overflow-wrap: anywhere; }
.dim, figcaption { color: var(--dim); }
.warn { background: var(--warn); padding: .5rem .8rem; border-radius: 6px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: .8rem; margin: 1rem 0; }
.card { background: var(--card); padding: .7rem 1rem; border-radius: 8px; }
.card b { display: block; font-size: 1.2rem; }
details { margin: .8rem 0; } summary { cursor: pointer; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .6rem; text-align: left; vertical-align: middle; }
th { color: var(--dim); font-weight: 600; white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.name { overflow-wrap: anywhere; min-width: 9rem; }
tr.taken td { font-weight: 600; }
.bars { width: 7rem; min-width: 4rem; }
.bar { height: .5rem; margin: 2px 0; border-radius: 2px; min-width: 1px; }
.before { background: var(--before); } .after { background: var(--after); } .loss { background: var(--loss); }
.key { display: inline-block; width: .8rem; height: .5rem; border-radius: 2px; margin: 0 .3rem 0 .8rem; }
figure { margin: 0; } figcaption { font-size: .82rem; overflow-wrap: anywhere; }
.masks { display: grid; grid-template-columns: repeat(auto-fill, minmax(${column}px, 1fr)); gap: 1rem; }
.masks img { image-rendering: pixelated; border: 1px solid var(--line); display: block; }
.two { display: flex; flex-wrap: wrap; gap: .4rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .8rem; margin: .8rem 0; }
.pair img { max-width: 100%; }
svg { width: 100%; height: auto; max-width: 60rem; }
svg text { fill: var(--dim); font: 12px system-ui, sans-serif; }
svg .axis { stroke: var(--dim); } svg .grid { stroke: var(--line); }
svg .bound { stroke: var(--loss); stroke-dasharray: 5 4; } svg text.boundtext { fill: var(--loss); }
svg .tried { fill: none; stroke: var(--before); stroke-width: 1.5; } svg .front { fill: var(--after); }
svg .taken { fill: var(--taken); stroke: var(--back); stroke-width: 1.5; } svg .origin { fill: var(--text); }
svg .error { stroke: var(--taken); stroke-width: 1.5; }
</style>
</head>
<body>
$body
</body>
</html>
""")


def html_report(tuned: Tuned) -> str:
    """Everything that a tuning found, as a page that needs nothing else."""
    name = tuned.result.report.model
    parts = [_headline(tuned), _curve(tuned), _trials(tuned), _layers(tuned), _masks(tuned), _pictures(tuned)]
    parts[1:1] = [_training(tuned)]
    parts += [_left(tuned), _machine(tuned)]
    title = escape(f"{name}: perfonnx tune")
    return _PAGE.substitute(title=title, column=2 * MASK_SIDE + 16, body="\n".join(part for part in parts if part))


# --- what came out ---------------------------------------------------------------------------------------------------


def _headline(tuned: Tuned) -> str:
    cards = []
    best = tuned.best
    if best is not None:
        speed = best.speed
        cards.append(_card("speed", f"{speed.ratio:.2f}x", f"95 %: {speed.low:.2f}x to {speed.high:.2f}x"))
        threads = "all cores" if tuned.threads is None else _plural(tuned.threads, "thread")
        times = f"{_time(speed.original)} → {_time(speed.milliseconds)}"
        cards.append(_card("time", times, f"{threads}, {_plural(speed.rounds, 'paired run')}"))
        quality = best.held_back or best.choosing
        where = "on images that took no part in the choice" if best.held_back else "on the images to choose by"
        error = f"standard error {tuned.metric.show_error(quality.drop_error)}, {_plural(quality.images, 'image')}"
        if tuned.metric.name in ("psnr", "distance"):  # the loss is the metric itself
            cards.append(_card(tuned.metric.name, tuned.metric.show(quality.drop), f"{error}, {where}"))
        else:
            cards.append(_card(tuned.metric.name, _before_after(tuned.metric, quality), where))
            cards.append(_card("loss", tuned.metric.show(quality.drop), error))
        before, after = tuned.result.report.multiplies
        less = f"{before / max(after, 1):.2f}x fewer"
        cards.append(_card("multiplies per image", f"{count(before)} → {count(after)}", less))
    warnings = [_text(f"note: {warning}", "warn") for warning in tuned.warnings]
    head = f"<h1>{escape(tuned.result.report.model)}</h1>"
    return "\n".join([head, _text(tuned.message), _text(_wanted(tuned), "dim"), _div("cards", cards), *warnings])


def _training(tuned: Tuned) -> str:
    """What training brought, where the network was trained."""
    training = tuned.training
    if training is None:
        return ""
    losses = " → ".join(tuned.metric.show(quality.drop) for quality in (training.before, training.after))
    error = tuned.metric.show_error(training.after.drop_error)
    images = _plural(training.after.images, "image")
    speed = training.speed
    cards = [
        _card("loss before and after", losses, f"standard error {error}, {images} that took no part in anything"),
        _card("speed after", f"{speed.ratio:.2f}x", f"95 %: {speed.low:.2f}x to {speed.high:.2f}x"),
        _card("learned from", _plural(training.images, "sample"), _plural(len(training.held_out), "epoch")),
        _card("time of training", _time(1000 * training.seconds), "without labels"),
    ]
    return "\n".join(["<h2>Training</h2>", _div("cards", cards)])


def _wanted(tuned: Tuned) -> str:
    wanted = []
    if tuned.target.minimised != TIME:
        wanted.append(f"a model that {tuned.target.worth}")
    if tuned.target.speedup is not None:
        wanted.append(f"{tuned.target.speedup:g}x faster")
    if tuned.target.max_drop is not None:
        wanted.append(f"{tuned.metric.name} {tuned.metric.within(tuned.target.max_drop)}")
    return f"Wanted: {', '.join(wanted)}. The target is {'reached' if tuned.reached else 'not reached'}."


def _machine(tuned: Tuned) -> str:
    threads = "all cores" if tuned.threads is None else str(tuned.threads)
    images = ", ".join(f"{number} {part}" for part, number in tuned.images.items() if number)
    rows = [
        ("machine", "; ".join(machine().split("; ")[:-1])),
        ("threads", threads),
        ("images", images),
        ("metric", f"{tuned.metric.name} of {', '.join(tuned.metric.outputs)}"),
        ("time spent measuring", f"{tuned.seconds:.0f} s"),
        ("seed", str(tuned.plan.seed)),
        ("layout", tuned.plan.layout),
    ]
    return "<h2>How it was measured</h2>\n" + _table(("", ""), [[_cell(a), _cell(b, "name")] for a, b in rows])


# --- layers ----------------------------------------------------------------------------------------------------------


def _layers(tuned: Tuned) -> str:
    """One line per rewritten layer."""
    layers = tuned.result.report.layers
    if not layers or tuned.best is None:
        return ""
    original = tuned.best.speed.original
    times = [tuned.layer_times.get(layer.name) for layer in layers]
    rows = {(layer, row.choice): row.quality for row in tuned.rows for layer in tuned.units[row.layer]}
    rows |= {(row.layer, row.choice): row.quality for row in tuned.rows}  # alone, rather than in a group
    losses = [rows.get((layer.name, layer.plan)) for layer in layers]
    slowest = max((t for pair in times if pair for t in pair), default=0.0)
    worst = max((q.guide for q in losses if q), default=0.0)
    lines = []
    for layer, pair, loss in zip(layers, times, losses, strict=True):
        before, after = layer.multiplies
        time = "" if pair is None else _times(pair, original)
        bars = "" if pair is None else _bar("before", pair[0], slowest) + _bar("after", pair[1], slowest)
        lines.append(
            [
                _cell(layer.name, "name"),
                _cell(layer.plan.label, "name"),
                _cell(f"{layer.rate:.1%}", "n"),
                _cell(f"{count(before)} → {count(after)}", "n"),
                _cell(time, "n"),
                f'<td class="bars">{bars}</td>',
                _cell("" if loss is None else f"{loss.guide:.2g}", "n"),
                f'<td class="bars">{"" if loss is None else _bar("loss", loss.guide, worst)}</td>',
            ]
        )
    guide = tuned.metric.to_json()["guide"]
    header = ("layer", "method", "skipped", "multiplies", "time", "", "error alone", "")
    screening = tuned.images.get("screening", 0)
    alone = f", on {_plural(screening, 'image')}" if screening else ""
    note = (
        "Times come from a profile of the network that was taken, each layer's with all that follows it up to the next "
        f"one. The error is the {guide} of the network's output with that layer alone sampled{alone}, "
        "or with the group that it shares a mask with."
    )
    keys = (
        '<p class="dim"><span class="key before"></span>time before<span class="key after"></span>time after'
        '<span class="key loss"></span>error</p>'
    )
    return f"<h2>Layers</h2>\n{_text(note, 'dim')}\n{keys}\n{_table(header, lines)}"


def _left(tuned: Tuned) -> str:
    """The layers that stay as they are, each with the reason and its times, which may change all the same."""
    done = {layer.name for layer in tuned.result.report.layers}
    reasons = {name: _why_dense(tuned, name) for layers in tuned.units.values() for name in layers}
    reasons |= {skip.layer: skip.reason for skip in tuned.result.report.skips if skip.layer not in reasons}
    reasons |= tuned.obstacles
    rows = [
        [_cell(name, "name"), _cell(why, "name"), _cell(_left_time(tuned, name), "n")]
        for name, why in reasons.items()
        if name not in done
    ]
    if not rows:
        return ""
    return f"<h2>Layers left alone ({len(rows)})</h2>\n" + _table(("layer", "reason", "time"), rows)


def _left_time(tuned: Tuned, name: str) -> str:
    pair = tuned.layer_times.get(name)
    return "" if pair is None or tuned.best is None else _times(pair, tuned.best.speed.original)


def _times(pair: tuple[float, float], original: float) -> str:
    """Parts of the original's time, before and after, in milliseconds."""
    return " → ".join(_time(part * original) for part in pair)


def _why_dense(tuned: Tuned, name: str) -> str:
    """Why the search left a layer dense that could be sampled."""
    units = [unit for unit, layers in tuned.units.items() if name in layers]
    gains = [
        costs.gain(unit, choice)
        for costs in tuned.costs.values()
        for choice, times in costs.sampled.items()
        for unit in units
        if unit in times
    ]
    if not gains:
        return "none of the choices fits it"
    if max(gains) <= 0:
        return "no choice makes it faster on this machine"
    if tuned.best is None:
        return "nothing that was tried met the target"
    return "sampling it saves time, but the network that was taken does without"


def _masks(tuned: Tuned) -> str:
    errors = {each.name: each for each in tuned.error_maps if not each.is_output and each.relative >= ROUNDING}
    masks = {name: mask for name, mask in tuned.result.masks.items() if not mask.all()}
    layers = [layer for layer in tuned.result.report.layers if layer.name in masks or layer.name in errors]
    if not layers:
        return ""
    figures = [_mask_figure(layer, masks.get(layer.name), errors.get(layer.name)) for layer in layers]
    notes = ["White positions are computed, black ones are interpolated, or nobody reads them."] if masks else []
    if errors:
        images = _plural(next(iter(errors.values())).images, "image")
        notes.append(
            "The coloured pictures show where a layer's response, behind what is added to it and its activation, "
            f"differs from the original network's: the mean of the absolute differences over {images} that took no "
            "part in the choice, from black for none to pale yellow for the largest of the layer. Gray positions have "
            "no value."
        )
    return f"<h2>Masks and errors</h2>\n{_text(' '.join(notes), 'dim')}\n{_div('masks', figures)}"


def _mask_figure(layer: LayerReport, mask: Mask | None, error: ErrorMap | None) -> str:
    height, width = layer.output_shape
    caption = f"{layer.name}: {layer.plan.label}, {height}x{width}"
    images = []
    if mask is not None:
        caption += ", its middle" if max(mask.shape) > MASK_WINDOW else ""
        images.append(_image(mask_image(mask), caption))
    if error is not None:
        images.append(_image(heat_image(error.error), f"{layer.name}: where the error lies"))
        caption += f"; {_off(error)}"
    return f"<figure>{_div('two', images)}<figcaption>{escape(caption)}</figcaption></figure>"


def _off(error: ErrorMap) -> str:
    """How large an error is, in words."""
    return f"error {error.relative:.2%} of the response, {np.nanmax(error.error):.2g} where it is largest"


def mask_image(mask: Mask) -> Image.Image:
    """A mask as a picture, white where it is true: enlarged by a whole factor, or cut to its middle."""
    y, x = (max(size - MASK_WINDOW, 0) // 2 for size in mask.shape)
    part = mask[y : y + MASK_WINDOW, x : x + MASK_WINDOW]
    factor = max(MASK_SIDE // max(part.shape), 1)
    image = Image.fromarray(np.where(part, 255, 0).astype(np.uint8))
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST).convert("1", dither=Image.Dither.NONE)


_HEAT = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], np.float64)
"""Colours from none to the largest, evenly spaced: steps of equal lightness, also in print and to the colour-blind."""

_NOWHERE = 128  # the gray of positions without a value


def heat_image(error: NDArray[np.float64]) -> Image.Image:
    """A map of errors [H, W] as a picture: as large as its mask's, but a larger one is averaged in blocks, not cut."""
    block = -(-max(error.shape) // MASK_WINDOW)
    padded = np.pad(error, [(0, -size % block) for size in error.shape], constant_values=np.nan)
    blocks = padded.reshape(padded.shape[0] // block, block, -1, block).swapaxes(1, 2).reshape(-1, block * block)
    known = np.isfinite(blocks)
    means = np.where(known, blocks, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    place = means / (means.max() or 1.0) * (len(_HEAT) - 1)
    colours = np.stack([np.interp(place, np.arange(len(_HEAT)), channel) for channel in _HEAT.T], axis=1)
    colours[~known.any(axis=1)] = _NOWHERE
    pixels = np.rint(colours).astype(np.uint8).reshape(padded.shape[0] // block, -1, 3)
    factor = max(MASK_SIDE // max(error.shape), 1)
    return Image.fromarray(pixels.repeat(factor, 0).repeat(factor, 1))


# --- outputs ---------------------------------------------------------------------------------------------------------


def _pictures(tuned: Tuned) -> str:
    errors = [each for each in tuned.error_maps if each.is_output and each.relative >= ROUNDING]
    if not tuned.pictures and not errors:
        return ""
    parts = ["<h2>Outputs</h2>", _text("From images that took no part in the choice.", "dim")]
    for picture in tuned.pictures:
        value = f"{tuned.metric.name} {_value(tuned.metric, picture.value)}"
        captions = (f"{picture.name}: original", f"{picture.name}: rewritten, {value}")
        parts.append(
            _div(
                "pair",
                [
                    f"<figure>{_image(_thumbnail(pixels), caption)}<figcaption>{escape(caption)}</figcaption></figure>"
                    for pixels, caption in zip(as_pixels(picture), captions, strict=True)
                ],
            )
        )
    figures = []
    for each in errors:
        caption = f"{each.name}: where the error lies, in the mean of {_plural(each.images, 'image')}; {_off(each)}"
        image = _image(heat_image(each.error), caption)
        figures.append(f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>")
    parts.append(_div("masks", figures))
    return "\n".join(parts)


def _thumbnail(pixels: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(pixels)
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    return image


# --- everything tried ------------------------------------------------------------------------------------------------


def _curve(tuned: Tuned) -> str:
    """Speed against loss of all networks that were measured, as SVG."""
    trials = [trial for trial in tuned.trials if math.isfinite(_height(tuned.metric, trial.choosing.drop))]
    if not trials:
        return ""
    metric, target = tuned.metric, tuned.target
    psnr = metric.name == "psnr"
    xs = [1.0, *(t.speed.ratio for t in trials), *([target.speedup] if target.speedup else [])]
    losses = [_height(metric, t.choosing.drop) for t in trials]
    bound = None if target.max_drop is None else _height(metric, target.max_drop)
    ys = [*losses, *([] if psnr else [0.0]), *([] if bound is None or not math.isfinite(bound) else [bound])]
    plot = _Plot(_ticks(min(xs), max(xs)), _ticks(min(ys), max(ys)), up=psnr)
    lines = plot.axes("speed-up (original time / time)", _height_title(metric))
    if bound is not None and plot.holds(1.0, bound):
        lines.append(plot.horizontal(bound, f"bound {metric.show(target.max_drop or 0.0)}"))
    if target.speedup is not None:
        lines.append(plot.vertical(target.speedup, f"wanted {target.speedup:g}x"))
    if not psnr:
        lines.append(plot.point(1.0, 0.0, "origin", "the original", 4))
    front = {id(trial) for trial in tuned.pareto()}
    order = sorted(trials, key=lambda t: (t is tuned.best, id(t) in front))  # what matters is drawn last, on top
    for trial in order:
        kind = "taken" if trial is tuned.best else "front" if id(trial) in front else "tried"
        x, y = trial.speed.ratio, _height(metric, trial.choosing.drop)
        if trial is tuned.best:
            half = abs(_height(metric, trial.choosing.drop_error))
            lines.append(plot.cross(x, y, trial.speed.low, trial.speed.high, half))
        lines.append(plot.point(x, y, kind, _tooltip(tuned, trial), 6 if kind == "taken" else 4))
    guide = metric.to_json()["guide"]
    note = (
        f"{_plural(len(tuned.trials), 'network')} rewritten, run and timed. Losses are on the "
        f"{_plural(trials[0].choosing.images, 'image')} to choose by. Filled points are the best trades of speed for "
        f"{guide}; point at one for its numbers."
    )
    if tuned.best is not None:
        note += " The large one was taken; its lines are the 95 % interval of the speed and the loss's standard error."
    svg = f'<svg viewBox="0 0 {_Plot.WIDTH} {_Plot.HEIGHT}" role="img" aria-label="speed against loss">'
    return "\n".join(["<h2>Speed against loss</h2>", _text(note, "dim"), svg, *lines, "</svg>"])


class _Plot:
    """A coordinate system, its ranges those of its ticks."""

    WIDTH, HEIGHT = 900, 420
    LEFT, RIGHT, TOP, BOTTOM = 70, 20, 24, 50

    def __init__(self, x_ticks: Sequence[float], y_ticks: Sequence[float], *, up: bool) -> None:
        self.x_ticks, self.y_ticks, self.up = x_ticks, y_ticks, up

    def x(self, value: float) -> float:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return self.LEFT + (value - low) / (high - low) * (self.WIDTH - self.LEFT - self.RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return self.HEIGHT - self.BOTTOM - (value - low) / (high - low) * (self.HEIGHT - self.TOP - self.BOTTOM)

    def holds(self, x: float, y: float) -> bool:
        """Whether a point is inside."""
        return self.x_ticks[0] <= x <= self.x_ticks[-1] and self.y_ticks[0] <= y <= self.y_ticks[-1]

    def axes(self, x_title: str, y_title: str) -> list[str]:
        """Ticks with labels, and titles."""
        right, bottom = self.WIDTH - self.RIGHT, self.HEIGHT - self.BOTTOM
        lines = []
        for value in self.x_ticks:
            x = self.x(value)
            lines.append(_line("grid", x, self.TOP, x, bottom))
            lines.append(_label(x, bottom + 18, f"{value:.6g}x", "middle"))
        for value in self.y_ticks:
            y = self.y(value)
            lines.append(_line("grid", self.LEFT, y, right, y))
            lines.append(_label(self.LEFT - 8, y + 4, f"{value:.6g}", "end"))
        lines.append(_line("axis", self.LEFT, bottom, right, bottom))
        lines.append(_line("axis", self.LEFT, self.TOP, self.LEFT, bottom))
        lines.append(_label((self.LEFT + right) / 2, self.HEIGHT - 10, x_title, "middle"))
        lines.append(_label(8, 14, y_title, "start"))
        return lines

    def horizontal(self, value: float, text: str) -> str:
        """A bound of y."""
        y, right = self.y(value), self.WIDTH - self.RIGHT
        line = _line("bound", self.LEFT, y, right, y)
        return line + _label(right - 4, y - 5, text, "end", "boundtext")

    def vertical(self, value: float, text: str) -> str:
        """A bound of x."""
        x = self.x(value)
        line = _line("bound", x, self.TOP, x, self.HEIGHT - self.BOTTOM)
        return line + _label(x + 5, self.TOP + 12, text, "start", "boundtext")

    def point(self, x: float, y: float, kind: str, title: str, radius: int) -> str:
        """A point with its tooltip."""
        place = f'cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius}"'
        return f'<circle class="{kind}" {place}><title>{escape(title)}</title></circle>'

    def cross(self, x: float, y: float, low: float, high: float, half: float) -> str:
        """The uncertainty of a point, cut at the edges."""
        left, right = (min(max(v, self.x_ticks[0]), self.x_ticks[-1]) for v in (low, high))
        down, up = (min(max(v, self.y_ticks[0]), self.y_ticks[-1]) for v in (y - half, y + half))
        return _line("error", self.x(left), self.y(y), self.x(right), self.y(y)) + _line(
            "error", self.x(x), self.y(down), self.x(x), self.y(up)
        )


def _ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers, evenly spaced, from at or below `low` to at or above `high`; two at least."""
    span = max(high - low, abs(high) * 1e-6, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * most >= span * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _height(metric: Metric, drop: float) -> float:
    """A loss as the curve draws it: percentage points, per cent, dB of PSNR, or as it is."""
    if metric.name == "psnr":
        return -drop
    return 100 * drop if metric.is_share or metric.name == "distance" else drop


def _height_title(metric: Metric) -> str:
    units = {"psnr": "PSNR in dB", "ssim": "1 - SSIM", "distance": "distance in %", "loss": "log-loss gained, nats"}
    return units.get(metric.name, f"loss of {metric.name} in percentage points")


def _tooltip(tuned: Tuned, trial: Trial) -> str:
    unseen = "" if trial.held_back is None else f", on unseen images {tuned.metric.show(trial.held_back.drop)}"
    return (
        f"{trial.speed.ratio:.3f}x ({trial.speed.low:.3f} to {trial.speed.high:.3f}); "
        f"{tuned.metric.lost(trial.choosing.drop)}{unseen}; {_plural(len(trial.plan.layers), 'layer')}; {trial.why}"
    )


def _trials(tuned: Tuned) -> str:
    """Everything that was tried, in order."""
    if not tuned.trials:
        return ""
    rows = []
    for trial in tuned.trials:
        speed, quality = trial.speed, trial.choosing
        cells = [
            _cell(f"{speed.ratio:.2f}x", "n"),
            _cell(f"{speed.low:.2f} to {speed.high:.2f}", "n"),
            _cell(str(len(trial.plan.layers)), "n"),
            _cell(f"{tuned.metric.show(quality.drop)} ± {tuned.metric.show_error(quality.drop_error)}", "n"),
            _cell("" if trial.held_back is None else tuned.metric.show(trial.held_back.drop), "n"),
            _cell(trial.why + (" (taken)" if trial is tuned.best else ""), "name"),
        ]
        rows.append(cells)
    taken = next((i for i, trial in enumerate(tuned.trials) if trial is tuned.best), None)
    table = _table(("speed", "95 %", "layers", "loss", "loss on unseen images", "how"), rows, taken)
    return f"<details>\n<summary>All {len(rows)} networks that were measured</summary>\n{table}\n</details>"


# --- pieces ----------------------------------------------------------------------------------------------------------


def _plural(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _time(milliseconds: float) -> str:
    return f"{milliseconds:.3g} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.3g} s"


def _value(metric: Metric, value: float) -> str:
    """The metric itself, not what was lost of it."""
    if metric.is_share:
        return f"{value:.2%}"
    return f"{value:.1f} dB" if metric.name == "psnr" else f"{value:.4f}"


def _before_after(metric: Metric, quality: Quality) -> str:
    after = _value(metric, quality.value)
    if metric.name in ("top1", "loss"):
        return f"{_value(metric, quality.reference)} → {after}"
    return after  # the others compare with the original, whose own value says nothing


def _text(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def _div(kind: str, parts: Iterable[str]) -> str:
    content = "\n".join(parts)
    return f'<div class="{kind}">\n{content}\n</div>' if content else ""


def _card(title: str, value: str, detail: str) -> str:
    lines = f"<b>{escape(value)}</b><span class='dim'>{escape(detail)}</span>"
    return f'<div class="card"><span class="dim">{escape(title)}</span>{lines}</div>'


def _cell(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], taken: int | None = None) -> str:
    """A table of finished cells; a column has its heading on the side where its numbers are."""
    lines = []
    if any(header):
        starts = ['<th class="n">' if 'class="n"' in cell else "<th>" for cell in rows[0]]
        cells = [f"{start}{escape(text)}</th>" for start, text in zip(starts, header, strict=True)]
        lines.append(f"<thead><tr>{''.join(cells)}</tr></thead>")
    lines.append("<tbody>")
    for number, row in enumerate(rows):
        start = '<tr class="taken">' if number == taken else "<tr>"
        lines.append(f"{start}{''.join(row)}</tr>")
    lines.append("</tbody>")
    return _div("scroll", ["<table>", *lines, "</table>"])


def _bar(kind: str, value: float, largest: float) -> str:
    share = 0.0 if largest <= 0 or not math.isfinite(value) else min(max(value / largest, 0.0), 1.0)
    return f'<div class="bar {kind}" style="width:{100 * share:.1f}%"></div>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _label(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _image(image: Image.Image, text: str) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img {size} alt="{escape(text)}" src="data:image/png;base64,{data}">'
