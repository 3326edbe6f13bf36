"""Runs of layers on one sublattice: which taps exist, what is fitted, and what the model then gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import perfonnx
from perfonnx import PerfonnxError, Plan
from perfonnx.cli import main
from perfonnx.corrections import Correction
from perfonnx.fitting import Goal, Refit
from perfonnx.masks import PoolWindow
from perfonnx.methods.sublattice import (
    LATTICES,
    Sublattice,
    lattice_mask,
    site_classes,
    within_windows,
)
from perfonnx.ops.common import ConvAttributes
from perfonnx.sampling import interpolate
from perfonnx.search import Space
from tests.passes import nets
from tests.passes.nets import node

THREE = ConvAttributes((3, 3), pads=(1, 1, 1, 1))
SHAPE = (9, 10)
EVERYWHERE = np.ones(SHAPE, bool)
TURNED_TAPS = {(0, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (2, 0), (-2, 0), (0, 2), (0, -2)}


def taps_of(classes: list[Any]) -> list[set[tuple[int, int]]]:
    return [{(int(y), int(x)) for y, x in each.taps} for each in classes]


# --- which taps exist ------------------------------------------------------------------------------------------------


def test_inside_the_quincunx_a_kernel_is_turned() -> None:
    mask = lattice_mask("quincunx", SHAPE)
    (only,) = site_classes(mask, THREE, mask, "turned")
    assert taps_of([only]) == [TURNED_TAPS]
    assert np.array_equal(only.mask, mask)


def test_its_own_taps_that_exist_are_five() -> None:
    mask = lattice_mask("quincunx", SHAPE)
    classes = site_classes(mask, THREE, mask, "own")
    assert taps_of(classes) == [{(0, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)}]


def test_inside_the_square_lattice_a_kernel_is_stretched() -> None:
    mask = lattice_mask("square", SHAPE)
    classes = site_classes(mask, THREE, mask, "turned")
    assert taps_of(classes) == [{(2 * i, 2 * j) for i in (-1, 0, 1) for j in (-1, 0, 1)}]


@pytest.mark.parametrize(("lattice", "counts"), [("quincunx", [4, 9]), ("square", [4, 6, 6, 9])])
def test_who_leaves_has_a_class_for_each_way_to_lie(lattice: str, counts: list[int]) -> None:
    known = lattice_mask(lattice, SHAPE)
    classes = site_classes(EVERYWHERE, THREE, known, "turned")
    assert sorted(len(each.taps) for each in classes) == counts
    assert (sum(each.mask.astype(int) for each in classes) == 1).all()
    for each in classes:
        for y, x in np.argwhere(each.mask):
            read = each.taps + np.array([y, x])
            inside = ((read >= 0) & (read < SHAPE)).all(axis=1)
            assert known[tuple(read[inside].T)].all()


@pytest.mark.parametrize(
    ("lattice", "inside", "leaving"), [("honeycomb", [6, 6], [6, 6, 6]), ("depleted", [7, 7, 7, 7], [7, 7, 7, 7, 8])]
)
def test_unions_of_cosets_have_a_class_for_each_way_to_lie(lattice: str, inside: list[int], leaving: list[int]) -> None:
    known = lattice_mask(lattice, SHAPE, (1, 2))
    window = {(int(y), int(x)) for y, x in np.argwhere(np.ones((3, 3))) - 1}
    for mask, counts in ((known, inside), (EVERYWHERE, leaving)):
        classes = site_classes(mask, THREE, known, "turned")
        assert sorted(len(each.taps) for each in classes) == counts
        assert (sum(each.mask.astype(int) for each in classes) == mask).all()
        for each, taps in zip(classes, taps_of(classes), strict=True):
            for y, x in np.argwhere(each.mask):
                read = {(i, j) for i, j in window if 0 <= y + i < SHAPE[0] and 0 <= x + j < SHAPE[1]}
                assert {(i, j) for i, j in read if known[y + i, x + j]} == taps & read


@pytest.mark.parametrize("lattice", LATTICES)
def test_a_pointwise_layer_makes_what_it_lacks_from_neighbours(lattice: str) -> None:
    known = lattice_mask(lattice, SHAPE)
    for each in site_classes(EVERYWHERE, ConvAttributes((1, 1)), known, "turned"):
        assert 1 <= len(each.taps) <= 4
        for read in (np.argwhere(each.mask)[:, None] + each.taps).reshape(-1, 2):
            if (read >= 0).all() and (read < SHAPE).all():
                assert known[tuple(read)]


def test_a_search_tries_true_sublattices() -> None:
    tried = Sublattice.candidates(Space(rates=tuple(1 - cosets.share for cosets in LATTICES.values())))
    assert tried == [Sublattice("quincunx"), Sublattice("square")]


def test_every_second_position_reads_one_coset() -> None:
    half = ConvAttributes((3, 3), (2, 2), (1, 1, 1, 1))
    known = lattice_mask("quincunx", SHAPE)
    classes = site_classes(np.ones(half.output_shape(*SHAPE), bool), half, known, "turned")
    assert taps_of(classes) == [TURNED_TAPS]


@pytest.mark.parametrize(
    "attributes",
    [
        ConvAttributes((1, 1)),
        ConvAttributes((3, 3), pads=(2, 2, 2, 2), dilations=(2, 2)),
        ConvAttributes((1, 3), pads=(0, 1, 0, 1)),
    ],
)
def test_kernels_that_need_no_others_keep_their_taps(attributes: ConvAttributes) -> None:
    mask = lattice_mask("quincunx", SHAPE)
    (only,) = site_classes(mask, attributes, mask, "turned")
    assert len(only.taps) == attributes.kernel_shape[0] * attributes.kernel_shape[1]


def test_who_enters_reads_what_it_read() -> None:
    (only,) = site_classes(lattice_mask("quincunx", SHAPE), THREE, EVERYWHERE, "turned")
    assert taps_of([only]) == [{(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)}]


@pytest.mark.parametrize("pads", [0, 1])
def test_pools_read_the_sites_in_their_windows(pads: int) -> None:
    sampling = interpolate(lattice_mask("quincunx", (9, 9)))
    pool = PoolWindow((3, 3), (2, 2), (pads,) * 4)
    source = within_windows(sampling, pool).source[:, 0]
    assert (source[sampling.sites] == sampling.sites).all()
    outside = 0
    for top in range(0 - pads, 9 - 2, 2):
        for left in range(0 - pads, 9 - 2, 2):
            rows, columns = (range(max(first, 0), first + 3) for first in (top, left))
            window = {9 * y + x for y in rows for x in columns}
            outside += len({int(source[q]) for q in window} - window)
    assert outside == 0
    plain = interpolate(sampling.mask).source[:, 0]
    assert (plain != source).any()


# --- the fit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
def test_the_first_fit_is_ridge_regression(groups: int) -> None:
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(40, 4, 6, 5)).astype("f"), rng.normal(size=(40, 6, 6, 5)).astype("f")
    taps, mask = np.array([(0, 0), (1, -1)]), lattice_mask("quincunx", (6, 5))
    start = rng.normal(size=(6, 4 // groups, 2))
    fit = Refit(mask, taps, (1, 1), start, np.zeros(6), Goal(), 100, groups)
    fit.add(x[:15], target[:15])
    fit.add(x[15:], target[15:])
    weight, bias = fit.solve(0.1)
    padded = np.pad(x, ((0, 0), (0, 0), (0, 1), (1, 0)))
    ys, xs = np.nonzero(mask)
    read = np.stack([padded[:, :, ys, xs + 1], padded[:, :, ys + 1, xs]], axis=-1)  # [N, C, P, T]
    for group in range(groups):
        ours, outputs = slice(group * 4 // groups, (group + 1) * 4 // groups), slice(group * 3, group * 3 + 3)
        outputs = outputs if groups == 2 else slice(None)
        rows = read[:, ours].transpose(0, 2, 3, 1).reshape(-1, 2 * 4 // groups).astype(np.float64)
        wanted = target[:, outputs][:, :, ys, xs].transpose(0, 2, 1).reshape(len(rows), -1).astype(np.float64)
        first = start[outputs].transpose(2, 1, 0).reshape(rows.shape[1], -1)
        centred = rows - rows.mean(axis=0)
        gram = centred.T @ centred
        gram += 0.1 * np.trace(gram) / len(gram) * np.eye(len(gram))
        expected = first + np.linalg.solve(gram, centred.T @ (wanted - wanted.mean(axis=0) - centred @ first))
        found = weight[outputs].transpose(2, 1, 0).reshape(rows.shape[1], -1)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(bias[outputs], wanted.mean(axis=0) - rows.mean(axis=0) @ expected, atol=1e-5)


def test_a_second_fit_loses_less_behind_the_activation() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 8, 6, 6)).astype("f")
    target = np.tanh(np.einsum("mc,nchw->nmhw", rng.normal(size=(5, 8)), np.abs(x))).astype("f") - np.float32(0.5)
    fit = Refit(np.ones((6, 6), bool), np.array([(0, 0)]), (1, 1), np.zeros((5, 8, 1)), np.zeros(5), Goal(0.0), 100)
    errors = []
    for _ in range(3):
        fit.add(x, target)
        errors.append(fit.error)
        fit.again(*fit.solve(1e-6))
    assert errors[2] < 0.99 * errors[1]


# --- networks --------------------------------------------------------------------------------------------------------


def network(size: tuple[int, int] = (12, 11), stride: int = 2) -> ModelProto:
    """A residual block, a pool, a layer behind it, and one of a larger stride."""
    nodes = [
        nets.conv("x", "a", "w0", name="enter"),
        node("Relu", ["a"], ["ra"]),
        nets.conv("ra", "b", "w1", name="inside"),
        node("Relu", ["b"], ["rb"]),
        nets.conv("rb", "c", "w2", name="sum"),
        node("Add", ["c", "ra"], ["s"]),
        node("Relu", ["s"], ["rs"]),
        nets.conv("rs", "d", "w3", name="leave"),
        node("Relu", ["d"], ["rd"]),
        nets.conv("rd", "y", "w4", name="last", strides=[stride, stride]),
    ]
    weights = {f"w{i}": nets.values(8, 3 if i == 0 else 8, 3, 3, seed=i) for i in range(5)}
    outputs = tuple((length - 1) // stride + 1 for length in size)
    return nets.model(nodes, weights, inputs={"x": ("N", 3, *size)}, outputs={"y": ("N", 8, *outputs)})


def plan(**lattices: str) -> Plan:
    return Plan({name: Sublattice(lattice) for name, lattice in lattices.items()})


REGION = {"enter": "quincunx", "inside": "quincunx", "sum": "quincunx", "leave": "dense", "last": "dense"}


def samples(count: int = 24, size: tuple[int, int] = (12, 11)) -> list[dict[str, np.ndarray]]:
    """Smooth images, as photographs are."""
    images = np.random.default_rng(3).normal(size=(count, 3, *size)).astype(np.float32)
    smooth = sum(np.roll(images, (dy, dx), (2, 3)) for dy in range(3) for dx in range(3)) / 3
    return [{"x": smooth[i : i + 8].astype(np.float32)} for i in range(0, count, 8)]


def loss(model: ModelProto, other: ModelProto) -> float:
    """Mean squared difference over the variance of the first's output."""
    feed = samples(8)[0]
    (first,), (second,) = nets.run(model, feed), nets.run(other, feed)
    return float(np.square(first - second).mean() / first.var())


@pytest.mark.parametrize("layout", ["rows", "nchw"])
@pytest.mark.parametrize("lattice", LATTICES)
def test_kernels_and_bodies_agree(lattice: str, layout: str) -> None:
    steps = {name: lattice if step == "quincunx" else step for name, step in REGION.items()}
    result = perfonnx.rewrite(network(), plan=plan(**steps), samples=samples(), layout=layout)
    assert [layer.name for layer in result.report.layers] == list(REGION)
    nets.check(result.proto)
    feed = samples(8)[0]
    (without,), (with_library,) = nets.run(result.proto, feed), perfonnx.session(result.proto).run(None, feed)
    np.testing.assert_allclose(with_library, without, atol=1e-5 * np.abs(without).max())


def test_the_fit_makes_up_for_most_of_what_is_lost() -> None:
    model = network()
    fitted = perfonnx.rewrite(model, plan=plan(**REGION), samples=samples(96))
    masked = {name: perfonnx.Perforate(0.5, "lattice") for name in ("enter", "inside", "sum")}
    perforated = perfonnx.rewrite(model, plan=Plan(masked))
    assert loss(model, fitted.proto) < 0.5 * loss(model, perforated.proto)


def test_what_nothing_has_changed_for_stays() -> None:
    model = network()
    result = perfonnx.rewrite(model, plan=plan(enter="dense", inside="dense", sum="quincunx"), samples=samples())
    notes = {layer.name: " ".join(layer.notes) for layer in result.report.layers}
    assert "hardly reaches it" in notes["enter"]
    assert "hardly reaches it" in notes["inside"]
    assert not result.corrections["inside"].arrays


def test_classes_that_leave_positions_out_are_known_for_what_they_are() -> None:
    """Sites of a quincunx that read a square lattice are of two classes; who follows reads the quincunx."""
    steps = {"enter": "square", "inside": "quincunx", "sum": "dense"}
    result = perfonnx.rewrite(network(), plan=plan(**steps), samples=samples())
    taps = {
        name: [len(c.arrays[f"taps{i}"]) for i in range(int(c.arrays["classes"].max()) + 1)]
        for name, c in result.corrections.items()
        if c.arrays
    }
    assert sorted(taps["inside"]) == [4, 9]
    assert sorted(taps["sum"]) == [4, 9]


def test_a_saved_plan_gives_the_same_bytes_without_data(tmp_path: Path) -> None:
    model = network()
    result = perfonnx.rewrite(model, plan=plan(**REGION), samples=samples())
    result.save_plan(tmp_path / "plan.json")
    again = perfonnx.rewrite(model, plan=tmp_path / "plan.json")
    assert again.to_bytes() == result.to_bytes()
    multiplies = [layer.multiplies for layer in again.report.layers]
    assert multiplies == [layer.multiplies for layer in result.report.layers]


def test_with_flips_it_is_fitted_to_mirror_images_too(tmp_path: Path) -> None:
    model, data = network(), samples()
    twice = [feed for one in data for feed in (one, {"x": np.ascontiguousarray(one["x"][:, :, :, ::-1])})]
    steps = {name: Sublattice(lattice) for name, lattice in REGION.items()}
    flipped = {**steps, "inside": Sublattice("quincunx", flips=True)}
    result = perfonnx.rewrite(model, plan=Plan(flipped), samples=data)
    wanted = perfonnx.rewrite(model, plan=Plan(steps), samples=twice)
    for name, correction in wanted.corrections.items():
        assert correction.arrays.keys() == result.corrections[name].arrays.keys()
        for kind, array in correction.arrays.items():
            np.testing.assert_array_equal(array, result.corrections[name].arrays[kind])
    result.save_plan(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").layers["inside"] == Sublattice("quincunx", flips=True)
    assert perfonnx.rewrite(model, plan=tmp_path / "plan.json").to_bytes() == result.to_bytes()


def test_what_may_be_no_image_is_not_mirrored() -> None:
    model = network()
    turned = node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2])
    model.graph.input[0].CopyFrom(nets.model([], {}, inputs={"x": ("N", 12, 11, 3)}, outputs={}).graph.input[0])
    model.graph.node[0].input[0] = "t"
    model.graph.node.insert(0, turned)
    data = [{"x": feed["x"].transpose(0, 2, 3, 1)} for feed in samples()]
    with pytest.raises(PerfonnxError, match="no input is certain to be an image"):
        perfonnx.rewrite(model, method="sublattice", flips=True, samples=data)


def test_flips_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, data = tmp_path / "m.onnx", tmp_path / "x.npz"
    path.write_bytes(network().SerializeToString())
    np.savez(data, x=np.concatenate([feed["x"] for feed in samples()]))
    command = ["rewrite", str(path), str(tmp_path / "o.onnx"), "--flips", "--data", str(data)]
    assert main([*command, "--method", "sublattice", "--save-plan", str(tmp_path / "plan.json")]) == 0
    assert all(step.mirrors for step in Plan.load(tmp_path / "plan.json").steps())
    assert main([*command, "--rate", "0.5"]) == 2
    assert "--flips: has no meaning without its --method: sublattice" in capsys.readouterr().err


def test_without_data_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(network().SerializeToString())
    assert main(["rewrite", str(path), str(tmp_path / "o.onnx"), "--method", "sublattice"]) == 2
    assert "--data" in capsys.readouterr().err
    assert not (tmp_path / "o.onnx").exists()


def test_sizes_choose_the_layers() -> None:
    result = perfonnx.rewrite(network(), method="sublattice", at="6x6", samples=samples())
    steps = {layer.name: layer.plan for layer in result.report.layers}
    assert steps["last"] == Sublattice("quincunx")
    assert all(step == Sublattice("dense") for name, step in steps.items() if name != "last")


def test_a_size_that_no_layer_has_is_refused() -> None:
    with pytest.raises(PerfonnxError, match="--at 7x7"):
        perfonnx.rewrite(network(), method="sublattice", at="6x6,7x7", samples=samples())


def test_a_size_of_layers_that_are_left_alone_is_refused_with_the_reason() -> None:
    asked: dict[str, Any] = {"method": "sublattice", "samples": samples()}
    with pytest.raises(
        PerfonnxError, match=r"--at 6x6: all layers .* are left alone, 'last' for one: excluded by --skip"
    ):
        perfonnx.rewrite(network(), at="6x6", skip="last", **asked)
    with pytest.raises(PerfonnxError, match="'last' for one: not selected by --only"):
        perfonnx.rewrite(network(), at="6x6,12x12", only="enter", **asked)


@pytest.mark.parametrize(
    "step", [{"lattice": "hexagons"}, {"taps": "all"}, {"at": "56xx"}, {"at": 56}, {"flips": "maybe"}]
)
def test_settings_without_meaning_are_refused(step: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"perfonnx_plan": 1, "layers": {"inside": {"method": "sublattice", **step}}}))
    with pytest.raises(PerfonnxError, match=str(next(iter(step.values())))):
        Plan.load(path)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("taps0", np.zeros((9, 3), "f")),
        ("taps0", np.full((9, 2), 0.5, "f")),
        ("taps0", np.full((9, 2), 1e6, "f")),
        ("taps0", np.full((9, 2), 5, "f")),
        ("taps0", np.full((9, 2), -5, "f")),
        ("weight0", np.zeros((8, 8, 4), "f")),
        ("bias0", np.zeros(3, "f")),
        ("classes", np.zeros((12, 11), "f")),
        ("classes", np.where(lattice_mask("quincunx", (12, 11)), 0.5, -1).astype("f")),
    ],
)
def test_weights_of_another_form_are_refused(name: str, array: np.ndarray) -> None:
    model = network()
    result = perfonnx.rewrite(model, plan=plan(**REGION), samples=samples())
    known = dict(result.corrections)
    old = known["inside"]
    known["inside"] = Correction(old.bias, old.mask, old.interpolation, old.weights, arrays={**old.arrays, name: array})
    with pytest.raises(PerfonnxError, match=r"'inside'.*fit again"):
        perfonnx.rewrite(model, plan=result.plan, corrections=known)


@pytest.mark.parametrize("lattice", ["quincunx", "square"])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (5, 5), (131, 1)])
def test_a_saved_fit_of_any_kernel_is_taken(kernel: tuple[int, int], lattice: str, tmp_path: Path) -> None:
    geometry = {"kernel_shape": list(kernel), "pads": [size // 2 for size in kernel] * 2}
    nodes = [
        nets.conv("x", "a", "w0", name="enter"),
        nets.conv("a", "b", "w1", name="inside", **geometry),
        nets.conv("b", "y", "w2", name="leave", **geometry),
    ]
    weights = {f"w{i}": nets.values(4, 3 if i == 0 else 4, *((3, 3) if i == 0 else kernel), seed=i) for i in range(3)}
    outputs = {"y": ("N", 4, *(n + 2 * (1 - size % 2) for n, size in zip((12, 11), kernel, strict=True)))}
    model = nets.model(nodes, weights, inputs={"x": ("N", 3, 12, 11)}, outputs=outputs)
    result = perfonnx.rewrite(model, plan=plan(enter=lattice, inside=lattice, leave="dense"), samples=samples())
    assert result.corrections["leave"].arrays
    result.save_plan(tmp_path / "plan.json")
    assert perfonnx.rewrite(model, plan=tmp_path / "plan.json").to_bytes() == result.to_bytes()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (5, 4)])
def test_tiny_maps(size: tuple[int, int]) -> None:
    data = samples(16, size)
    result = perfonnx.rewrite(network(size), plan=plan(**REGION), samples=data)
    (without,), (with_library,) = nets.run(result.proto, data[0]), perfonnx.session(result.proto).run(None, data[0])
    np.testing.assert_allclose(with_library, without, atol=1e-5 * max(np.abs(without).max(), 1e-3))


def test_layers_of_too_many_weights_are_left_alone() -> None:
    """A fit keeps the products of all weights of an output: those of a kernel of 64x1 over 1024 channels take 32 GB."""
    nodes = [
        nets.conv("x", "c1", "w1", name="first"),
        nets.conv("c1", "y", "w2", name="second", kernel_shape=[9, 9], pads=[4] * 4),
    ]
    weights = {"w1": nets.values(64, 3, 3, 3), "w2": nets.values(2, 64, 9, 9)}
    model = nets.model(nodes, weights, inputs={"x": ("N", 3, 12, 12)}, outputs={"y": ("N", 2, 12, 12)})
    samples = [{"x": nets.values(8, 3, 12, 12)}]
    report = perfonnx.rewrite(model, method="sublattice", lattice="quincunx", samples=samples).report
    assert [layer.name for layer in report.layers] == ["first"]
    (skip,) = (skip for skip in report.skips if skip.layer == "second")
    assert skip.reason == "its 5184 weights for each output are too many to be refitted: more than 5000"
