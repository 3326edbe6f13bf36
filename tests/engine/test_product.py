"""Packed weights and the sampled product, on every instruction set of the machine."""

from __future__ import annotations

import platform
import re
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfonnx import _engine
from tests.engine.reference import activate, picked
from tests.processes import assert_same_on_any_number_of_processors, run_python

ISAS = _engine.available_isas()
PANEL = {"baseline": 8, "avx2": 16, "avx512": 32}
COMPILED = list(PANEL) if platform.machine() == "x86_64" else ["baseline"]


def _case(
    seed: int, images: int, sites: int, channels: int, outputs: int, taps: int, group: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows, table, weights and bias of a random product; about a quarter of the taps read the zero row."""
    rng = np.random.default_rng(seed)
    count = 7
    rows = rng.standard_normal((images, count, channels)).astype(np.float32)
    table = rng.integers(-2, count, (sites, taps)).clip(-1).astype(np.int32)
    w = rng.standard_normal((outputs, channels // group, taps)).astype(np.float32)
    return rows, table, w, rng.standard_normal(outputs).astype(np.float32)


def _expected(rows: np.ndarray, table: np.ndarray, w: np.ndarray, b: np.ndarray, group: int) -> np.ndarray:
    images, _, channels = rows.shape
    taken = picked(rows.astype(np.float64), table).reshape(images, *table.shape, group, channels // group)
    weights = w.astype(np.float64).reshape(group, -1, *w.shape[1:])
    result: np.ndarray = np.einsum("nptgc,gmct->npgm", taken, weights).reshape(images, len(table), len(w)) + b
    return result


def _check(isa: str, seed: int, images: int, sites: int, channels: int, outputs: int, taps: int, group: int) -> None:
    rows, table, w, b = _case(seed, images, sites, channels, outputs, taps, group)
    product = _engine.SampledProduct(w, b, group=group, isa=isa)
    expected = _expected(rows, table, w, b, group)
    got = product(rows, table)
    tolerance = 2e-6 * max(1, taps * channels // group)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=tolerance)
    act = (0.1, -1.5, 2.0)
    np.testing.assert_allclose(product(rows, table, activation=act), activate(expected, act), rtol=1e-4, atol=tolerance)
    slope = np.random.default_rng(seed).choice(np.array([-1.5, 0, 0.25, 1, 3], np.float32), outputs)
    sloped = product(rows, table, activation=act, slope=slope)
    np.testing.assert_allclose(sloped, activate(expected, act, slope), rtol=1e-4, atol=3 * tolerance)
    np.testing.assert_array_equal(product(rows, table, threads=3), got)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(0, 3),
    sites=st.integers(0, 40),
    channels=st.integers(1, 12),
    outputs=st.integers(1, 70),
    taps=st.integers(1, 9),
    group=st.integers(1, 4),
)
def test_product_equals_numpy(
    isa: str, seed: int, images: int, sites: int, channels: int, outputs: int, taps: int, group: int
) -> None:
    _check(isa, seed, images, sites, channels * group, outputs * group, taps, group)


def _lines(
    seed: int, channels: int, outputs: int, kernel: int, stride: int, dilation: int, width: int, group: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rows, table, weights and bias of a convolution of two images, of which most sites lie in lines."""
    rng = np.random.default_rng(seed)
    size = (4, width)
    reach = dilation * (kernel - 1) + 1
    pad = kernel // 2
    height_out, width_out = ((length + 2 * pad - reach) // stride + 1 for length in size)
    sites = np.arange(max(height_out, 0) * max(width_out, 0), dtype=np.int32)
    table = _engine.row_table(
        (kernel, kernel), (stride, stride), (pad,) * 4, (dilation, dilation), size, max(width_out, 1), sites
    )
    rows = rng.standard_normal((2, 4 * width, channels)).astype(np.float32)
    w = rng.standard_normal((outputs, channels // group, kernel**2)).astype(np.float32)
    return rows, table, w, rng.standard_normal(outputs).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    channels=st.integers(1, 20),
    outputs=st.integers(1, 70),
    kernel=st.sampled_from([1, 2, 3, 5, 7]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    width=st.integers(1, 60),
    group=st.sampled_from([1, 2, "depthwise"]),
)
def test_sites_in_a_line_give_what_sites_anywhere_give(
    isa: str,
    seed: int,
    channels: int,
    outputs: int,
    kernel: int,
    stride: int,
    dilation: int,
    width: int,
    group: int | str,
) -> None:
    if group == "depthwise":
        channels = outputs = groups = channels + 1
    else:
        assert isinstance(group, int)
        groups = group
        channels, outputs = channels * groups, outputs * groups
    rows, table, w, b = _lines(seed, channels, outputs, kernel, stride, dilation, width, groups)
    product = _engine.SampledProduct(w, b, group=groups, isa=isa)
    act = (0.1, -1.5, 2.0)
    got = product(rows, table, activation=act)
    expected = activate(_expected(rows, table, w, b, groups), act)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-6 * w[0].size)
    np.testing.assert_array_equal(product(rows, table, activation=act, threads=3), got)
    order = np.random.default_rng(seed).permutation(len(table))
    np.testing.assert_array_equal(product(rows, table[order], activation=act), got[:, order])
    slope = np.random.default_rng(seed).standard_normal(outputs).astype(np.float32)
    sloped = activate(_expected(rows, table, w, b, groups), act, slope)
    got = product(rows, table, activation=act, slope=slope)
    np.testing.assert_allclose(got, sloped, rtol=1e-4, atol=6e-6 * w[0].size)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("step", [-2, -1, 0, 1, 3])
def test_rows_at_any_distance(isa: str, step: int) -> None:
    rng = np.random.default_rng(0)
    first = 120 if step < 0 else 0
    table = (first + step * np.arange(40)[:, None] + np.arange(3)).astype(np.int32)
    table[:, 1] = -1
    rows = rng.standard_normal((2, 130, 6)).astype(np.float32)
    for outputs, group in ((20, 1), (6, 6)):
        w = rng.standard_normal((outputs, 6 // group, 3)).astype(np.float32)
        b = rng.standard_normal(outputs).astype(np.float32)
        got = _engine.SampledProduct(w, b, group=group, isa=isa)(rows, table)
        np.testing.assert_allclose(got, _expected(rows, table, w, b, group), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [1, 3, 24])
def test_no_site_writes_beside_its_row(isa: str, channels: int) -> None:
    rows, table, w, b = _lines(0, channels, 5, 3, 1, 1, 50, 1)
    many = np.full((rows.shape[0] + 1, len(table), 5), 7, np.float32)
    _engine.SampledProduct(w, b, isa=isa)(rows, table, out=many[:-1])
    assert (many[-1] == 7).all()
    np.testing.assert_allclose(many[:-1], _expected(rows, table, w, b, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sites", range(1, 32))
def test_every_edge_tile(isa: str, sites: int) -> None:
    _check(isa, sites, 1, sites, 5, 33, 4, 1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("outputs", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65])
def test_every_edge_panel(isa: str, outputs: int) -> None:
    _check(isa, outputs, 2, 9, 3, outputs, 9, 1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 50])
def test_depthwise(isa: str, channels: int) -> None:
    _check(isa, channels, 2, 23, channels, channels, 9, channels)


@pytest.mark.parametrize("isa", ISAS)
def test_depthwise_with_several_outputs_a_channel(isa: str) -> None:
    _check(isa, 1, 2, 23, 6, 18, 9, 6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("channels", "taps", "outputs"),
    [(300, 9, 70), (1000, 1, 33), (6000, 1, 17), (3, 3000, 8), (65, 130, 40), (700, 25, 5)],
)
def test_sums_too_long_for_one_block(isa: str, channels: int, taps: int, outputs: int) -> None:
    _check(isa, 0, 1, 20, channels, outputs, taps, 1)


@pytest.mark.parametrize("isa", ISAS)
def test_panels_hold_the_weights_and_zeros(isa: str) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((2 * 37, 3, 4)).astype(np.float32)
    packed = _engine.SampledProduct(w, group=2, isa=isa).packed
    width = PANEL[isa]
    panels = -(-37 // width)
    assert packed.shape == (2, panels, 4, 3, width)
    unpacked = packed.transpose(0, 1, 4, 3, 2).reshape(2, panels * width, 3, 4)
    np.testing.assert_array_equal(unpacked[:, :37].reshape(w.shape), w)
    assert (unpacked[:, 37:] == 0).all()


@pytest.mark.parametrize("isa", ISAS)
def test_nan_passes_and_relu_stops_minus_infinity(isa: str) -> None:
    rows = np.array([[[np.nan], [-np.inf], [np.inf], [-1.0]]], np.float32)
    table = np.arange(4, dtype=np.int32)[:, None]
    product = _engine.SampledProduct(np.ones((3, 1, 1), np.float32), isa=isa)
    largest = float(np.finfo(np.float32).max)
    got = product(rows, table, activation=(0.0, -largest, largest))[0, :, 1]
    np.testing.assert_array_equal(got, np.array([np.nan, 0, np.inf, 0], np.float32))
    slope = np.array([0, 2, -1], np.float32)
    got = product(rows, table, activation=(1.0, -largest, largest), slope=slope)[0]
    np.testing.assert_array_equal(got[0], [np.nan] * 3)
    np.testing.assert_array_equal(got[1:], np.array([[0, -np.inf, np.inf], [np.inf] * 3, [0, -2, 1]], np.float32))


@pytest.mark.parametrize("isa", ISAS)
def test_slopes_of_one_change_no_bit(isa: str) -> None:
    rows, table, w, b = _case(0, 2, 40, 6, 37, 9, 1)
    product, act = _engine.SampledProduct(w, b, isa=isa), (0.3, -1.0, 2.0)
    got = product(rows, table, activation=act, slope=np.ones(37, np.float32))
    np.testing.assert_array_equal(got, product(rows, table, activation=act))


def test_slopes_of_another_number_are_refused() -> None:
    rows, table, w, b = _case(0, 1, 4, 6, 5, 9, 1)
    with pytest.raises(ValueError, match="'slope': 4 elements instead of 5"):
        _engine.SampledProduct(w, b)(rows, table, activation=(1.0, 0.0, 1.0), slope=np.ones(4, np.float32))


@pytest.mark.parametrize(("outputs", "group"), [(5, 2), (4, 0), (4, -1)])
def test_group_that_does_not_divide_is_refused(outputs: int, group: int) -> None:
    with pytest.raises(ValueError, match="group"):
        _engine.SampledProduct(np.ones((outputs, 1, 1), np.float32), group=group)


@pytest.mark.parametrize("shape", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_empty_weights_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="'W'"):
        _engine.SampledProduct(np.ones(shape, np.float32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("channels", "outputs", "taps", "group"), [(24, 70, 9, 1), (3, 16, 9, 1), (32, 32, 9, 32)])
def test_results_do_not_depend_on_the_number_of_processors(
    isa: str, channels: int, outputs: int, taps: int, group: int
) -> None:
    assert_same_on_any_number_of_processors(f"""
rows = rng.standard_normal((1, 300, {channels})).astype(np.float32)
table = (np.arange(196)[:, None] + np.arange({taps})).astype(np.int32)
w = rng.standard_normal(({outputs}, {channels} // {group}, {taps})).astype(np.float32)
result = _engine.SampledProduct(w, group={group}, isa={isa!r})(rows, table, threads=2)
""")


def _isa_with(value: str) -> subprocess.CompletedProcess[str]:
    return run_python("from perfonnx import _engine; print(_engine.default_isa())", PERFONNX_ISA=value)


@pytest.mark.parametrize("cap", COMPILED)
def test_environment_variable_caps_the_instruction_set(cap: str) -> None:
    allowed = [isa for isa in ISAS if COMPILED.index(isa) <= COMPILED.index(cap)]
    assert _isa_with(cap).stdout.strip() == allowed[-1]


def test_unknown_instruction_set_is_a_clear_error() -> None:
    done = _isa_with("avx9000")
    assert done.returncode != 0
    assert "PERFONNX_ISA=avx9000" in done.stderr


def test_instruction_set_the_machine_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="not available"):
        _engine.SampledProduct(np.ones((1, 1, 1), np.float32), isa="mmx")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("channels", "outputs", "group"), [(24, 70, 1), (6, 18, 3), (5, 5, 5)])
def test_every_implementation_computes_the_same(isa: str, channels: int, outputs: int, group: int) -> None:
    rows, table, w, b = _case(0, 2, 40, channels, outputs, 9, group)
    expected = _expected(rows, table, w, b, group)
    refused = []
    for name in _engine.implementations():
        try:
            product = _engine.SampledProduct(w, b, group=group, isa=isa, implementation=name)
        except ValueError as error:
            assert f"'{name}' does not apply: " in str(error)  # noqa: PT017
            refused.append(name)
            continue
        assert product.implementation == name
        np.testing.assert_allclose(product(rows, table), expected, rtol=1e-4, atol=1e-4)
    # The sites of this product are not known beforehand.
    others = [name for name in _engine.implementations() if name == "merged" or name.startswith("winograd")]
    assert refused == (others if group == channels else ["depthwise", *others])


@pytest.mark.parametrize(
    ("channels", "outputs", "taps", "group", "chosen"),
    [
        (8, 8, 9, 8, "depthwise"),
        (8, 16, 9, 8, "direct"),
        (256, 8, 9, 1, "direct"),
        (257, 8, 9, 1, "gathered"),
        (1024, 8, 1, 1, "gathered"),
    ],
)
def test_of_equally_good_implementations_the_first_is_taken(
    channels: int, outputs: int, taps: int, group: int, chosen: str
) -> None:
    order = [
        "depthwise",
        "direct",
        "gathered",
        "columns",
        "winograd5",
        "winograd3",
        "winograd4",
        "winograd2",
        "winograd4_line",
        "merged",
    ]
    assert _engine.implementations() == order
    w = np.ones((outputs, channels // group, taps), np.float32)
    assert _engine.SampledProduct(w, group=group).implementation == chosen


def test_an_implementation_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no implementation 'fastest'"):
        _engine.SampledProduct(np.ones((1, 1, 1), np.float32), implementation="fastest")


@pytest.mark.parametrize(("value", "lines"), [("1", 1), ("0", 0), ("", 0)])
def test_verbose_says_once_what_runs_and_why_not_what_is_better(value: str, lines: int) -> None:
    code = """
import numpy as np
from perfonnx import _engine
product = _engine.SampledProduct(np.ones((3, 257, 9), np.float32))
for _ in range(2):
    product(np.ones((1, 9, 257), np.float32), np.zeros((4, 9), np.int32))
"""
    said = run_python(code, check=True, PERFONNX_VERBOSE=value).stderr.splitlines()
    assert len(said) == lines
    for line in said:
        assert line.startswith("perfonnx: SampledProduct: gathered (not depthwise: ")
        assert "not direct: a panel of 2313 inputs does not fit" in line


def test_verbose_says_how_much_longer_the_others_take() -> None:
    code = """
import numpy as np
from perfonnx import _engine
engine = _engine.SampledConv(np.ones((64, 64, 3, 3), np.float32), None, in_shape=(32, 32))
engine(np.ones((1, 1024, 64), np.float32))
"""
    (line,) = run_python(code, check=True, PERFONNX_VERBOSE="1").stderr.splitlines()
    assert line.startswith("perfonnx: SampledConv: winograd4 (")
    for other in ("direct", "gathered", "winograd2"):
        factor = re.search(f"not {other}: by estimate it takes ([0-9.]+) times as long", line)
        assert factor is not None
        assert 1.3 < float(factor[1]) < 4
