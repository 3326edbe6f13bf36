"""The plan: which layer gets which methods, with which settings. A JSON file, readable and editable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from perfonnx.errors import PerfonnxError
from perfonnx.methods import DENSE, METHODS, Chain, Method, Needs, check_setting, find_method, own_settings, owners
from perfonnx.model.atomic import digest, write_atomically
from perfonnx.ops.common import LARGEST_TILE, TILE_SIZES

FORMAT = 1
_FIELDS = (
    "perfonnx_plan",
    "seed",
    "layout",
    "largest_tile",
    "means",
    "layers",
    "notes",
    "input_shapes",
    "corrections",
    "masks",
    "impact",
    "digests",
    "placement",
)
FILES = {"corrections": ".corrections.npz", "masks": ".masks.npz", "impact": ".impact.npz"}
"""The files that a plan may name, by its fields, and what their names end with where they are saved with it."""
LAYOUTS = ("rows", "nchw")
"""How rewritten layers hand on their results."""
MEANS = ("sites", "maps")
"""What averages over whole maps of which a lattice is computed take."""
_TILE_WORDS = f"{', '.join(map(str, TILE_SIZES[:-1]))} or {TILE_SIZES[-1]}"


@dataclass(frozen=True)
class Placement:
    """Which nodes work on rows, as estimates had it when a plan was made, and what else is not seen in its layers.

    Attributes:
        of: Digest of the plan that it was decided for; for one that somebody changed since it is decided anew.
        joined: Layers that were not chosen and work on rows all the same, since their neighbours do.
        on_maps: Layers that were chosen and stay on maps.
        dense: Those of them for which a `Conv` may stand, which is faster.
        kept: What other nodes give that could work on rows and stay on maps: names of tensors.
        folded: Layers that were left alone after what follows them had been folded into them.
    """

    of: str = ""
    joined: tuple[str, ...] = ()
    on_maps: tuple[str, ...] = ()
    dense: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    folded: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Any, where: str) -> Placement:
        """Build from parsed JSON; `where` names the source in errors."""
        names = [each.name for each in fields(cls)]
        if not isinstance(data, Mapping) or not isinstance(data.get("of"), str) or set(data) - set(names):
            raise PerfonnxError(f"{where}: placement is none that perfonnx wrote; leave it out")
        for name in names[1:]:
            found = data.get(name, [])
            if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
                raise PerfonnxError(f"{where}: placement: {name} is {found!r}; give a list of names, or leave it out")
        return cls(data["of"], *(tuple(data.get(name, ())) for name in names[1:]))

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {name: value if name == "of" else list(value) for name, value in asdict(self).items() if value}


@dataclass
class Plan:
    """Methods by layer name, the seed of all random choices, and the layout, one of `LAYOUTS`.

    Kernels use Winograd's algorithm with tiles of at most `largest_tile` outputs along an edge, one of `TILE_SIZES`.
    `means`, one of `MEANS`, says whether averages over whole maps leave out what is no site of a lattice.

    `notes` explains the layers that are left alone. `placement` is what estimates decided when the plan was made.
    `input_shapes` are the shapes that the plan was made for, where the model left them open.
    `corrections` is the file of what repair or training found, see `perfonnx.corrections`, `masks` the .npz file of the
    masks that were given, and `impact` that of the maps which the masks called so are made from; in a saved plan they
    are relative to it. `digests` has those of the files, by which a plan knows its own; without them any is taken.
    """

    layers: dict[str, Method] = field(default_factory=dict)
    seed: int = 0
    notes: dict[str, str] = field(default_factory=dict)
    input_shapes: dict[str, tuple[int | str | None, ...]] = field(default_factory=dict)
    layout: str = LAYOUTS[0]
    largest_tile: int = LARGEST_TILE
    means: str = MEANS[0]
    corrections: str | None = None
    masks: str | None = None
    impact: str | None = None
    digests: dict[str, str] = field(default_factory=dict)
    placement: Placement | None = None

    def steps(self) -> list[Method]:
        """All steps of all layers."""
        return [step for method in self.layers.values() for step in method.steps]

    @property
    def needs_targets(self) -> bool:
        """Whether a layer is fitted to what it gave in the original network."""
        return any(step.needs is Needs.TARGETS for step in self.steps())

    def content(self) -> dict[str, Any]:
        """What it says by itself, as plain data: without what explains it, follows from it or lies beside it."""
        beside = ("notes", "placement", *FILES, "digests")
        return {name: value for name, value in self.to_json().items() if name not in beside}

    def placed(self, placement: Placement | None) -> Plan:
        """With the placement that was decided for it."""
        return replace(self, placement=None if placement is None else replace(placement, of=self._digest()))

    @property
    def own_placement(self) -> Placement | None:
        """The placement, unless it was decided for another plan."""
        known = self.placement
        return known if known is not None and known.of == self._digest() else None

    def _digest(self) -> str:
        return digest(json.dumps(self.content(), sort_keys=True))

    def file(self, kind: str) -> str:
        """The file of one of the kinds in `FILES`, which must be there.

        Raises:
            PerfonnxError: It cannot be read, or is not the one that was written with this plan.
        """
        file = str(getattr(self, kind))
        try:
            if self.digests.get(kind) not in (None, digest(Path(file).read_bytes())):
                raise PerfonnxError(
                    f"{file}: is damaged, or was not written with this plan; to use it all the same, take its digest "
                    "out of the plan"
                )
        except (OSError, ValueError) as error:
            raise PerfonnxError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
        return file

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan.

        Raises:
            PerfonnxError: Not there, not JSON, or not a plan.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the name
            raise PerfonnxError(
                f"{path}: cannot be read as a plan: {getattr(error, 'strerror', None) or error}"
            ) from error
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
            raise PerfonnxError(f"{path}: not a plan, since it is not JSON ({error})") from error
        plan = cls.from_json(data, str(path))
        for kind in FILES:
            file = getattr(plan, kind)
            if file is not None:
                setattr(plan, kind, str(Path(path).parent / file))
        return plan

    @classmethod
    def from_json(cls, data: Any, where: str = "plan") -> Plan:
        """Build from parsed JSON; `where` names the source in errors."""
        if not isinstance(data, Mapping) or not isinstance(data.get("layers"), Mapping):
            raise PerfonnxError(f'{where}: not a plan; it needs {{"perfonnx_plan": {FORMAT}, "layers": {{...}}}}')
        if type(data.get("perfonnx_plan")) is not int or data["perfonnx_plan"] != FORMAT:
            raise PerfonnxError(
                f"{where}: plan format {data.get('perfonnx_plan')!r} is unknown; this version reads {FORMAT}"
            )
        unknown = sorted(set(data) - set(_FIELDS))
        if unknown:
            raise PerfonnxError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(_FIELDS)}")
        seed = data.get("seed", 0)
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise PerfonnxError(f"{where}: seed {seed!r} is not a whole number from 0 up")
        layout = data.get("layout", LAYOUTS[0])
        if layout not in LAYOUTS:
            raise PerfonnxError(f"{where}: unknown layout {layout!r}; choose from {', '.join(LAYOUTS)}")
        largest_tile = data.get("largest_tile", LARGEST_TILE)
        if type(largest_tile) is not int or largest_tile not in TILE_SIZES:
            raise PerfonnxError(f"{where}: largest_tile is {largest_tile!r}; give {_TILE_WORDS}")
        means = data.get("means", MEANS[0])
        if means not in MEANS:
            raise PerfonnxError(f"{where}: unknown means {means!r}; choose from {', '.join(MEANS)}")
        files: dict[str, Any] = {kind: data.get(kind) for kind in FILES}
        for kind, file in files.items():
            if file is not None and not isinstance(file, str):
                raise PerfonnxError(f"{where}: {kind} is {file!r}; give the name of a file")
        digests = data.get("digests", {})
        if not isinstance(digests, Mapping) or not all(isinstance(value, str) for value in digests.values()):
            raise PerfonnxError(f"{where}: digests is {digests!r}; give an object, or leave it out")
        placement, notes = data.get("placement"), data.get("notes")
        layers = {name: _method(found, f"{where}: layer {name!r}") for name, found in data["layers"].items()}
        shapes = _input_shapes(data.get("input_shapes", {}), where)
        return cls(
            layers,
            seed,
            {name: why for name, why in notes.items() if isinstance(why, str)} if isinstance(notes, Mapping) else {},
            layout=layout,
            largest_tile=largest_tile,
            means=means,
            input_shapes=shapes,
            digests=dict(digests),
            placement=None if placement is None else Placement.from_json(placement, where),
            **files,
        )

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        layers = {name: method.to_json() for name, method in self.layers.items()}
        result: dict[str, Any] = {"perfonnx_plan": FORMAT, "seed": self.seed, "layers": layers}
        if self.input_shapes:
            result["input_shapes"] = {name: list(shape) for name, shape in self.input_shapes.items()}
        if self.layout != LAYOUTS[0]:
            result["layout"] = self.layout
        if self.largest_tile != LARGEST_TILE:
            result["largest_tile"] = self.largest_tile
        if self.means != MEANS[0]:
            result["means"] = self.means
        files = {kind: getattr(self, kind) for kind in FILES}
        result |= {kind: file for kind, file in files.items() if file is not None}
        if self.digests:
            result["digests"] = self.digests
        if self.placement is not None:
            result["placement"] = self.placement.to_json()
        if self.notes:
            result["notes"] = self.notes
        return result

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as indented JSON, atomically."""
        write_atomically(path, json.dumps(self.to_json(), indent=2) + "\n")


def _method(data: Any, where: str) -> Method:
    """What happens to a layer, checked."""
    if isinstance(data, Mapping) and data.get("method") == DENSE:
        for name, value in _settings(data, where).items():
            check_setting(name, value, where)
        return Chain()
    if not isinstance(data, list):
        return _step(data, where, DENSE)
    chain = Chain(tuple(_step(fields, f"{where}, step {number}") for number, fields in enumerate(data, 1)))
    chain.check(where)
    return chain


def _step(fields: Any, where: str, *others: str) -> Method:
    if not isinstance(fields, Mapping) or not isinstance(fields.get("method"), str):
        raise PerfonnxError(f'{where} needs an object with a "method"')
    method = find_method(fields["method"], where, *others)
    step = method(**own_settings(method, _settings(fields, where), where))
    step.check(where)
    return step


def _settings(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What stands beside the method: settings that some method has."""
    settings = {name: value for name, value in fields.items() if name != "method"}
    unknown = [name for name in settings if not owners(name)]
    if unknown:
        known = sorted({"method"}.union(*(method.settings() for method in METHODS.values())))
        raise PerfonnxError(f"{where} has the unknown field {unknown[0]!r}; known are {', '.join(known)}")
    return settings


def _input_shapes(data: Any, where: str) -> dict[str, tuple[int | str | None, ...]]:
    if not isinstance(data, Mapping):
        raise PerfonnxError(f'{where}: input_shapes must be an object such as {{"image": [1, 3, 224, 224]}}')
    for name, shape in data.items():
        sizes = isinstance(shape, list) and all(
            d is None or isinstance(d, str) or (isinstance(d, int) and not isinstance(d, bool) and d >= 0)
            for d in shape
        )
        if not sizes:
            raise PerfonnxError(f"{where}: input_shapes, {name!r}: {shape!r} is no shape; give a list of sizes")
    return {name: tuple(shape) for name, shape in data.items()}
