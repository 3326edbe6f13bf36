"""Reference == function body == kernel in onnxruntime, for the operators on rows and every instruction set."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import perfonnx
from perfonnx import _engine
from perfonnx.ops.common import Activation, ConvAttributes
from perfonnx.ops.sampled_conv import SAMPLED_CONV
from perfonnx.ops.sampled_radius_adaptive_conv import SAMPLED_RADIUS_ADAPTIVE_CONV
from tests.ops.cases import assert_close
from tests.ops.row_cases import OPERATORS, RowCase, row_cases
from tests.processes import run_python


@pytest.mark.parametrize("op", OPERATORS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_kernel_equals_reference(op: str, data: st.DataObject) -> None:
    case: RowCase = data.draw(row_cases(op))
    threads = data.draw(st.sampled_from([1, 2]))
    session = perfonnx.session(case.model(fallback=False), threads=threads)
    assert_close(session.run(None, case.feed)[0], case.expected)


@pytest.mark.parametrize("op", OPERATORS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_three_ways_agree(op: str, data: st.DataObject) -> None:
    """With every optional input written out and a function body in the model, the kernel still runs."""
    case: RowCase = data.draw(row_cases(op))
    model = case.model(fallback=True)
    assert_close(perfonnx.session(model, threads=1).run(None, case.feed)[0], case.expected)
    assert_close(perfonnx.session(model, threads=1, library=False).run(None, case.feed)[0], case.expected)


@pytest.mark.parametrize("isa", _engine.available_isas()[:-1])
def test_lower_instruction_sets_agree_too(isa: str) -> None:
    """The choice is made once per process, so each instruction set gets a process of its own."""
    program = (
        "import sys, pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-k', 'kernel_equals', "
        f"{__file__!r}]))"
    )
    done = run_python(program, PERFONNX_ISA=isa)
    assert done.returncode == 0, done.stdout + done.stderr


def _conv_case(
    *,
    channels: tuple[int, int],
    kernel: int | tuple[int, int] = 3,
    size: tuple[int, int] = (14, 15),
    batch: int = 2,
    group: int = 1,
    sloped: bool = False,
    keep: float = 0.4,
) -> RowCase:
    """A convolution large enough for several panels, blocks of channels and blocks of sites, with everything given."""
    rng = np.random.default_rng(7)
    positions = size[0] * size[1]
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    geometry = ConvAttributes((height, width), pads=(height // 2, width // 2) * 2, group=group)
    w = rng.standard_normal((channels[1], channels[0] // group, height, width)).astype(np.float32)
    inputs: dict[str, Any] = {
        "S": rng.standard_normal((batch, 60, channels[0])).astype(np.float32),
        "W": w / np.float32(np.sqrt(w[0].size)),
        "B": rng.standard_normal(channels[1]).astype(np.float32),
        "in_source": rng.integers(-1, 60, positions).astype(np.int32),
        "in_shape": np.array(size, np.int64),
        "sites": np.flatnonzero(rng.random(positions) < keep).astype(np.int32),
        "Z": rng.standard_normal((batch, 9, channels[1])).astype(np.float32),
        "z_source": None,
    }
    inputs["z_source"] = rng.integers(-1, 9, inputs["sites"].size).astype(np.int32)
    if sloped:
        inputs["slope"] = rng.standard_normal(channels[1]).astype(np.float32)
    activation = Activation(negative_slope=0.1, clip_max=1.0)
    expected = SAMPLED_CONV.reference(*inputs.values(), **geometry.attributes(), **activation.attributes())
    return RowCase("SampledConv", inputs, {**geometry.attributes(), **activation.attributes()}, expected)


@pytest.mark.parametrize("channels", [(600, 40), (32, 100), (16, 16)])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("sloped", [False, True])
def test_sums_in_several_steps_add_z_once(channels: tuple[int, int], kernel: int, sloped: bool) -> None:
    case = _conv_case(channels=channels, kernel=kernel, sloped=sloped)
    got = perfonnx.session(case.model(fallback=False)).run(None, case.feed)[0]
    np.testing.assert_allclose(got, case.expected, rtol=0, atol=5e-5)  # sums of up to 15000 products


@pytest.mark.parametrize(
    ("kernel", "group"), [((3, 3), 1), ((3, 3), 2), ((5, 5), 1), ((3, 1), 1), ((1, 5), 1), ((7, 1), 1)]
)
def test_the_three_ways_agree_on_tiles(kernel: tuple[int, int], group: int) -> None:
    case = _conv_case(channels=(64, 32), kernel=kernel, group=group, keep=1.0)
    model = case.model(fallback=True)
    by_kernel, by_body = (
        perfonnx.session(model, threads=1, library=library).run(None, case.feed)[0] for library in (True, False)
    )
    np.testing.assert_allclose(by_kernel, case.expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(by_body, case.expected, rtol=0, atol=2e-5)
    case.attributes["largest_tile"] = 0
    directly = perfonnx.session(case.model(fallback=False), threads=1).run(None, case.feed)[0]
    assert not np.array_equal(by_kernel, directly)


@pytest.mark.parametrize("channels", [3, 40, 70])
@pytest.mark.parametrize("sloped", [False, True])
def test_depthwise_adds_z(channels: int, sloped: bool) -> None:
    case = _conv_case(channels=(channels, channels), group=channels, sloped=sloped)
    assert_close(perfonnx.session(case.model(fallback=False)).run(None, case.feed)[0], case.expected)


def _fed(case: RowCase, name: str) -> onnx.ModelProto:
    """The model with one more input fed."""
    model = case.model(fallback=False)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    model.graph.initializer.remove(tensor)
    model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, [None] * len(tensor.dims)))
    return model


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_z_may_come_from_the_graph(images: int, dtype: type[np.floating[Any]]) -> None:
    case = _conv_case(channels=(8, 40), batch=3)
    inputs: dict[str, Any] = case.inputs
    for name in ("S", "W", "B", "Z"):
        inputs[name] = inputs[name].astype(dtype)
    inputs["Z"] = z = inputs["Z"][:images]
    expected = SAMPLED_CONV.reference(*inputs.values(), **case.attributes)
    got = perfonnx.session(_fed(case, "Z")).run(None, {**case.feed, "Z": z})[0]
    assert_close(got, expected)


def test_one_row_of_z_for_all_sites() -> None:
    case = _conv_case(channels=(8, 40))
    for one in (3, -1):
        full, single = case.inputs | {"z_source": np.full(case.inputs["sites"].size, one, np.int32)}, dict(case.inputs)
        single["z_source"] = np.array([one], np.int32)
        expected = SAMPLED_CONV.reference(*full.values(), **case.attributes)
        got = RowCase("SampledConv", single, case.attributes, expected)
        assert_close(perfonnx.session(got.model(fallback=False)).run(None, got.feed)[0], expected)
        assert_close(perfonnx.session(got.model(fallback=True), library=False).run(None, got.feed)[0], expected)


def test_a_z_of_zeros_changes_no_bit() -> None:
    case = _conv_case(channels=(8, 40))
    case.inputs["Z"] = np.zeros((1, 9, 40), np.float32)
    zeros = perfonnx.session(case.model(fallback=False)).run(None, case.feed)[0]
    case.inputs["Z"] = case.inputs["z_source"] = None
    np.testing.assert_array_equal(perfonnx.session(case.model(fallback=False)).run(None, case.feed)[0], zeros)


@pytest.mark.parametrize("given", [False, True])
def test_a_one_by_one_convolution_of_all_rows_is_a_matrix_product(given: bool) -> None:
    rng = np.random.default_rng(3)
    s = rng.standard_normal((2, 30, 48)).astype(np.float32)
    w = rng.standard_normal((20, 48, 1, 1)).astype(np.float32)
    identity = np.arange(30, dtype=np.int32) if given else None
    inputs = {"S": s, "W": w, "B": None, "in_source": identity, "in_shape": np.array([5, 6]), "sites": identity}
    case = RowCase("SampledConv", {**inputs, "Z": None}, ConvAttributes((1, 1)).attributes(), s @ w[:, :, 0, 0].T)
    assert_close(perfonnx.session(case.model(fallback=False)).run(None, case.feed)[0], case.expected)


def test_eight_threads_in_one_session_get_the_same_bits() -> None:
    case = _conv_case(channels=(64, 96))
    s = case.feed["S"]
    model = _fed(case, "Z")
    z = case.inputs["Z"]
    assert z is not None
    feeds = [{"S": s, "Z": z}, {"S": s[:1], "Z": z[:1]}, {"S": -s, "Z": z[1:]}, {"S": s[:0], "Z": z[:0]}]
    alone = perfonnx.session(model, threads=1)
    expected = [alone.run(None, feed)[0] for feed in feeds]
    shared = perfonnx.session(model, threads=2)
    wrong: list[int] = []

    def work(number: int) -> None:
        for i in range(12):
            k = (number + i) % len(feeds)
            if not np.array_equal(shared.run(None, feeds[k])[0], expected[k]):
                wrong.append(number)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def _radius_case(
    *, channels: tuple[int, int], size: tuple[int, int], batch: int, open_share: float, gain: float = 0.0
) -> RowCase:
    """A radius-adaptive convolution of many blocks of sites, its gates open in blobs, closed, and in between."""
    rng = np.random.default_rng(11)
    positions = size[0] * size[1]
    geometry = ConvAttributes((3, 3), pads=(1, 1, 1, 1))
    w = rng.standard_normal((channels[1], channels[0], 3, 3)).astype(np.float32)
    s = rng.standard_normal((batch, positions, channels[0])).astype(np.float32)
    gate = np.zeros((1, channels[0], 1, 1), np.float32)
    gate[0, 0] = 1
    waves = np.sin(np.arange(batch * positions) / 100).reshape(batch, positions)
    s[:, :, 0] = 3 * (waves - np.quantile(waves, 1 - open_share) + 1e-3 * (open_share - 0.5))
    inputs: dict[str, Any] = {
        "S": s,
        "W": w / np.float32(np.sqrt(w[0].size)),
        "B": rng.standard_normal(channels[1]).astype(np.float32),
        "W_alpha": gate,
        "B_alpha": np.zeros(1, np.float32),
        "B_ring": rng.standard_normal(channels[1]).astype(np.float32),
        "in_source": rng.permutation(positions).astype(np.int32),
        "in_shape": np.array(size, np.int64),
        "sites": np.flatnonzero(rng.random(positions) < 0.9).astype(np.int32),
    }
    activation = Activation(negative_slope=0.1, clip_max=1.0)
    attributes = {**geometry.attributes(), **activation.attributes(), "center_gain": gain}
    expected = SAMPLED_RADIUS_ADAPTIVE_CONV.reference(*inputs.values(), **attributes)
    return RowCase("SampledRadiusAdaptiveConv", inputs, attributes, expected)


@pytest.mark.parametrize("gain", [0.0, 1.0])
@pytest.mark.parametrize("open_share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("channels", "size"), [((17, 40), (60, 70)), ((300, 20), (14, 13))])
def test_radius_adaptive_blocks(
    channels: tuple[int, int], size: tuple[int, int], open_share: float, gain: float
) -> None:
    """Blocks that run side by side, and sums so long that the blocks follow one another."""
    case = _radius_case(channels=channels, size=size, batch=2, open_share=open_share, gain=gain)
    model = case.model(fallback=False)
    one, three = (perfonnx.session(model, threads=count).run(None, case.feed)[0] for count in (1, 3))
    assert_close(one, case.expected)
    np.testing.assert_array_equal(one, three)


def test_eight_threads_in_one_session_adapt_to_the_same_bits() -> None:
    case = _radius_case(channels=(24, 40), size=(60, 70), batch=2, open_share=0.5)
    s, model = case.feed["S"], case.model(fallback=False)
    feeds = [{"S": s}, {"S": s[:1]}, {"S": -s}, {"S": s[:0]}]
    alone = perfonnx.session(model, threads=1)
    expected = [alone.run(None, feed)[0] for feed in feeds]
    shared = perfonnx.session(model, threads=2)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda i: shared.run(None, feeds[i % 4])[0], range(48)))
    for i, rows in enumerate(got):
        np.testing.assert_array_equal(rows, expected[i % 4])


@pytest.mark.parametrize("where", ["centre", "ring"])
def test_a_nan_reaches_the_pixels_that_read_it(where: str) -> None:
    """One under the centre tap makes alpha a NaN, one under the ring shows where alpha is above 0.

    Of a kernel that does not use tiles: these share it out.
    """
    case = _radius_case(channels=(17, 40), size=(60, 70), batch=1, open_share=0.5)
    case.inputs["sites"] = case.inputs["in_source"] = None
    case.attributes["largest_tile"] = 0
    s = case.feed["S"].copy()
    s[0, 35 * 70 + 30, 0 if where == "centre" else 5] = np.nan
    got = perfonnx.session(case.model(fallback=False)).run(None, {"S": s})[0].reshape(60, 70, 40)
    near = np.zeros((60, 70), bool)
    near[34:37, 29:32] = True
    alpha = np.clip(case.feed["S"][0, :, 0].reshape(60, 70), 0, 1)
    assert np.array_equal(
        np.isnan(got).any(axis=2), near & ((alpha > 0) | (np.indices((60, 70)) == [[[35]], [[30]]]).all(axis=0))
    )


@pytest.mark.parametrize("op", OPERATORS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_number_of_threads_does_not_change_a_bit(op: str, data: st.DataObject) -> None:
    case: RowCase = data.draw(row_cases(op))
    model = case.model(fallback=False)
    one, three = (perfonnx.session(model, threads=count).run(None, case.feed)[0] for count in (1, 3))
    np.testing.assert_array_equal(one, three)


def _pool(op: str, s: np.ndarray, size: tuple[int, int], **attributes: Any) -> np.ndarray:
    inputs = {"S": s, "in_source": None, "in_shape": np.array(size, np.int64), "sites": None}
    model = RowCase(op, inputs, attributes, s).model(fallback=False)
    result: np.ndarray = perfonnx.session(model, threads=2).run(None, {"S": s})[0]
    return result


@pytest.mark.parametrize("channels", [1, 16, 63, 64, 65, 200, 512])
def test_global_pools_of_every_width(channels: int) -> None:
    s = np.random.default_rng(channels).standard_normal((2, 56 * 60, channels)).astype(np.float32)
    average = _pool("SampledAveragePool", s, (56, 60), kernel_shape=[56, 60])
    np.testing.assert_allclose(average, s.astype(np.float64).mean(axis=1, keepdims=True), rtol=0, atol=2e-7)
    largest = _pool("SampledMaxPool", s, (56, 60), kernel_shape=[56, 60])
    np.testing.assert_array_equal(largest, s.max(axis=1, keepdims=True))


@pytest.mark.parametrize("where", [0, 2, 3])
def test_a_nan_survives_pooling(where: int) -> None:
    s = np.ones((1, 4, 20), np.float32)
    s[0, where, 17] = np.nan
    for op in ("SampledMaxPool", "SampledAveragePool"):
        got = _pool(op, s, (2, 2), kernel_shape=[2, 2])
        assert np.isnan(got[0, 0, 17])
        assert (np.delete(got, 17, axis=2) == 1).all()


def test_a_max_window_of_nothing_but_padding_is_below_everything() -> None:
    s = np.ones((1, 1, 20), np.float32)
    got = _pool("SampledMaxPool", s, (1, 1), kernel_shape=[1, 1], pads=[0, 1, 0, 0])
    np.testing.assert_array_equal(got, np.stack([np.full((1, 20), -np.inf, np.float32), s[0, :1]], axis=1))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_moving_rows_keeps_every_bit(dtype: type[np.floating[Any]]) -> None:
    """Also of NaN, infinities, zeros with a sign and subnormals, in more channels and positions than one tile has."""
    rng = np.random.default_rng(0)
    bits = np.uint16 if dtype == np.float16 else np.uint32
    x = rng.integers(0, np.iinfo(bits).max, (2, 70, 13, 17), bits, endpoint=True)
    sites = rng.permutation(13 * 17).astype(np.int32)
    compact = RowCase("Compact", {"X": x.view(dtype), "sites": sites, "shape": None}, {}, x)
    s = perfonnx.session(compact.model(fallback=False)).run(None, compact.feed)[0]
    np.testing.assert_array_equal(s.view(bits), x.reshape(2, 70, -1)[:, :, sites].transpose(0, 2, 1))
    source = np.argsort(sites).astype(np.int32)[:, None]
    expand = RowCase("ExpandRows", {"S": s, "source": source, "shape": np.array([13, 17])}, {}, x)
    np.testing.assert_array_equal(
        perfonnx.session(expand.model(fallback=False)).run(None, expand.feed)[0].view(bits), x
    )


def test_small_maps_of_many_channels() -> None:
    x = np.random.default_rng(0).standard_normal((1, 1000, 2, 3)).astype(np.float32)
    compact = RowCase("Compact", {"X": x, "sites": None, "shape": None}, {}, x)
    s = perfonnx.session(compact.model(fallback=False), threads=2).run(None, compact.feed)[0]
    np.testing.assert_array_equal(s, x.reshape(1, 1000, 6).transpose(0, 2, 1))
    source = np.array([5, -1, 3, 2, 1, 0], np.int32)[:, None]
    expand = RowCase("ExpandRows", {"S": s, "source": source, "shape": np.array([2, 3])}, {}, x)
    got = perfonnx.session(expand.model(fallback=False), threads=2).run(None, expand.feed)[0].reshape(1, 1000, 6)
    np.testing.assert_array_equal(got, x.reshape(1, 1000, 6)[:, :, source[:, 0]] * (source[:, 0] >= 0))
