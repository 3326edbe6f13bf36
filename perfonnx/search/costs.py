"""What every choice in every unit, a layer or a group of layers, costs in time, from a few profiles of the network.

One profile per choice and layout, with all layers rewritten alike, gives the time of that choice in each layer. On maps
a layer's time hardly depends on the others. On rows it does: two more profiles, with every other layer rewritten, give
the time of a layer that stays dense between sampled ones, and one per layer, with that layer alone rewritten, gives
what it costs to enter and leave the region of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from perfonnx.methods import Method, Needs
from perfonnx.plan import LAYOUTS, Plan
from perfonnx.search.choose import Layer, Option
from perfonnx.search.groups import Units, alone, by_layer
from perfonnx.search.pace import PROFILE
from perfonnx.search.sensitivity import plan_key
from perfonnx.search.state import Records
from perfonnx.search.timing import OTHER, LayerTimes
from perfonnx.subject import Subject

HOPELESS = 1.2
"""Where all layers together are this much slower than dense, smaller rates of the same kind are not profiled."""

LONE_LAYERS = 64
"""In networks with more layers than this, only every second one is profiled alone, and so on."""


@dataclass
class LayerCosts:
    """Times by unit in one layout, as parts of the original network's time.

    Attributes:
        dense: As the network came.
        inside: Dense between sampled layers.
        border: To enter and leave the region, where the layer is the only sampled one.
        sampled: By choice, among sampled layers.
        rest: What no layer here accounts for.
    """

    dense: dict[str, float] = field(default_factory=dict)
    inside: dict[str, float] = field(default_factory=dict)
    border: dict[str, float] = field(default_factory=dict)
    sampled: dict[Method, dict[str, float]] = field(default_factory=dict)
    rest: float = 0.0

    def gain(self, layer: str, choice: Method) -> float:
        """What a choice saves in a layer at most: against the dense layer where it stands, or between sampled ones."""
        dense = max(self.dense[layer], self.inside.get(layer, 0.0))
        return dense - self.sampled[choice].get(layer, math.inf)

    def chain(
        self, options: Mapping[str, Sequence[Option]], started: Mapping[str, float] | None = None
    ) -> dict[str, Layer]:
        """The layers as `choose.frontier` takes them, in running order, with these ways of sampling them.

        Layers that are sampled from the start have these times instead of their dense ones.

        The first layer's times among sampled ones already hold the way into the region, the last one's the way out.
        """
        names = list(self.dense)
        chain = {}
        for place, name in enumerate(names):
            first, last = place == 0, place == len(names) - 1
            border = self.border.get(name, 0.0)
            share = border if first or last else border / 2
            own = (started or {}).get(name)
            chain[name] = Layer(
                self.dense[name] if own is None else own,
                self.inside.get(name, self.dense[name]) if own is None else own,
                tuple(options.get(name, ())),
                0.0 if first else share,
                0.0 if last else share,
            )
        return chain

    def to_json(self) -> dict[str, dict[str, float]]:
        """As plain data: state to layer to time."""
        choices = {choice.label: times for choice, times in self.sampled.items()}
        return {"dense": self.dense, "dense between sampled": self.inside, "border": self.border, **choices}


def layer_costs(
    subject: Subject,
    timer: LayerTimes,
    units: Units,
    choices: Sequence[Method],
    *,
    layout: str,
    seed: int,
    records: Records,
    borders: bool = True,
    kind: str = PROFILE,
    go_on: Callable[[], bool] = lambda: True,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> LayerCosts:
    """Profiles a network in one layout; see the module.

    Args:
        subject: The model.
        timer: Profiles plans, or counts.
        units: What gets one choice together, in running order.
        choices: What may be done with them.
        layout: One of `perfonnx.plan.LAYOUTS`.
        seed: Seed of the masks.
        records: What is known already.
        borders: Profile too what rows cost at their borders.
        kind: Before the keys of the profiles in the records.
        go_on: Asked before each profile but the original's and those made before; what is not profiled has no choices.
        progress: Called with what is profiled, and the profiles done and their total.
    """
    rows = borders and layout == LAYOUTS[0]
    layers = list(units)
    owners: dict[str, str] = {}
    total, done = len(choices) + 1 + (2 + len(layers) if rows else 0), 0

    def planned(chosen: Mapping[str, Method]) -> Plan:
        return Plan(by_layer(units, chosen), seed, layout=layout if chosen else LAYOUTS[0])

    def profiled(chosen: Mapping[str, Method], what: str) -> dict[str, float]:
        nonlocal done
        progress(what, done, total)
        done += 1
        found = profile(records, timer, planned(chosen), kind)
        return _folded(found, owners) if owners else found

    original = profiled({}, "the original")
    owners = _owners(original, units)
    original = _folded(original, owners)
    costs = LayerCosts({name: original.get(name, 0.0) for name in layers})
    costs.rest = sum(original.values()) - sum(costs.dense.values())
    too_slow: dict[Method, float] = {}  # a kind of choice, and a saving at which it is slower than nothing
    for choice in sorted(choices, key=lambda choice: -choice.saving):
        new = not records.was_asked(_able_key(units, choice, seed))
        if new and not go_on():
            continue
        able = _able(subject, units, choice, seed, records)
        if not able or choice.saving < too_slow.get(choice.kind, 0.0):
            progress(choice.label, done, total)
            done += 1
            continue
        plain = choice.timed
        everywhere = dict.fromkeys(able, plain)
        if not new and not records.was_asked(_profile_key(planned(everywhere), kind)) and not go_on():
            continue
        times = profiled(everywhere, plain.label)
        costs.sampled[choice] = {name: times.get(name, 0.0) for name in able}
        if sum(costs.sampled[choice].values()) > HOPELESS * sum(costs.dense[name] for name in able):
            too_slow[choice.kind] = choice.saving
    if not rows or not costs.sampled or len(layers) < 2 or not go_on():
        return costs
    usual = _usual(costs)
    usual_plan = usual.timed
    for parity in (0, 1):
        chosen = {name: usual_plan for name in layers[parity::2] if name in costs.sampled[usual]}
        times = profiled(chosen, f"every other layer {usual.label}")
        sampled = [place for place, name in enumerate(layers) if name in chosen]
        for place, name in enumerate(layers):
            if sampled and sampled[0] < place < sampled[-1] and name not in chosen:
                costs.inside[name] = times.get(name, 0.0)
    step = math.ceil(len(layers) / LONE_LAYERS)
    for place in range(0, len(layers), step):
        name = layers[place]
        if name in costs.sampled[usual] and go_on():
            times = profiled({name: usual_plan}, f"{name} alone")
            near = [*layers[max(place - 1, 0) : place + 2], OTHER]
            more = sum(times.get(n, 0.0) - original.get(n, 0.0) for n in near)
            border = max(more - (costs.sampled[usual][name] - costs.dense[name]), 0.0)
            costs.border.update(dict.fromkeys(layers[place : place + step], border))
    return costs


def profile(records: Records, timer: LayerTimes, plan: Plan, kind: str = PROFILE) -> dict[str, float]:
    """What `Timer.layers` gives, measured once."""
    times = records.ask(_profile_key(plan, kind), lambda: timer.layers(plan))
    return {name: float(value) for name, value in times.items()}


def _profile_key(plan: Plan, kind: str) -> str:
    return f"{kind} {plan_key(plan)}"


def layer_times(original: Mapping[str, float], rewritten: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Each convolution's times in two profiles; `OTHER` is what belongs to none."""
    owners = _owners(original, alone([name for name in original if name != OTHER]))
    after = _folded(rewritten, owners)
    return {name: (time, after.get(name, 0.0)) for name, time in original.items()}


def _able(subject: Subject, units: Units, choice: Method, seed: int, records: Records) -> list[str]:
    """The units all of whose layers can have a choice."""
    layers = [layer for unit in units.values() for layer in unit]
    able = set(records.ask(_able_key(units, choice, seed), lambda: subject.able(layers, choice, seed)))
    single = [unit[0] for unit in units.values() if len(unit) == 1 and unit[0] in able]
    promising = set(subject.promising(single, choice, seed))
    return [name for name, unit in units.items() if able >= set(unit) and (len(unit) > 1 or unit[0] in promising)]


def _able_key(units: Units, choice: Method, seed: int) -> str:
    """Under which it is kept where a choice applies; asked for before each profile of it."""
    return f"applicable {plan_key(Plan(by_layer(units, dict.fromkeys(units, choice)), seed))}"


def _owners(original: Mapping[str, float], units: Units) -> dict[str, str]:
    """For each convolution the unit that its time is counted with: its own, or the last one before it, or the first.

    Convolutions of no unit are rewritten by nobody, but the region of rows takes them along: what they gain or lose by
    that is counted with what is before them.
    """
    unit_of = {layer: name for name, unit in units.items() for layer in unit}
    owners, current = {}, next(iter(units))
    for name in original:
        current = unit_of.get(name, current)
        owners[name] = current
    owners.pop(OTHER, None)
    return owners


def _folded(times: Mapping[str, float], owners: Mapping[str, str]) -> dict[str, float]:
    """The times of all convolutions, counted with their owners; a new one belongs to the layer it is named after."""
    folded: dict[str, float] = {}
    for name, value in times.items():
        known = name
        if name not in owners and name != OTHER:
            known = max((layer for layer in owners if name.startswith(layer)), key=len, default=OTHER)
        owner = owners.get(known, OTHER)
        folded[owner] = folded.get(owner, 0.0) + value
    return folded


def _usual(costs: LayerCosts) -> Method:
    """The choice that stands for all: of those that fit the most layers, the one nearest to half the positions."""
    fitting = max(len(times) for times in costs.sampled.values())
    wide = [choice for choice, times in costs.sampled.items() if len(times) == fitting]
    return min(wide, key=lambda choice: (choice.timed.needs is not Needs.NOTHING, abs(choice.saving - 0.5)))
