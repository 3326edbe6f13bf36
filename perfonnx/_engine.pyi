"""The sampled-convolution engine, for tests and tools; see custom_ops/python/engine_module.cpp."""

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[np.float32] | npt.NDArray[np.float16]
_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int32]
_Pair = tuple[int, int]
_Quad = tuple[int, int, int, int]
_Triple = tuple[float, float, float]

def operators() -> dict[str, dict[str, list[tuple[str, str, bool]]]]:
    """What the library registers, by name: "inputs" as (name, type, optional), "attributes" as (name, type, required).

    Types are those of onnx's schemas: "T", "F" and "tensor(int32)" for inputs, "INTS" for attributes.
    """

def available_isas() -> list[str]:
    """Instruction sets this machine runs, slowest first."""

def default_isa() -> str:
    """The one kernels use: the fastest, capped by the environment variable PERFONNX_ISA."""

def implementations() -> list[str]:
    """Ways to compute a sampled product, of which the cheapest by estimate is taken; gathered computes every layer."""

def row_table(
    kernel: _Pair,
    strides: _Pair,
    pads: _Quad,
    dilations: _Pair,
    input_size: _Pair,
    output_width: int,
    sites: _Ints,
) -> npt.NDArray[np.int32]:
    """Input row (y * width + x, or -1) of each tap of each site, int32 [sites, taps]."""

def half_to_float(bits: npt.NDArray[np.uint16], isa: str | None = None) -> _Floats:
    """Values of binary16 bits [n]."""

def float_to_half(values: _Floats, isa: str | None = None) -> npt.NDArray[np.uint16]:
    """Bits of values [n] rounded to binary16, ties to even."""

class SampledProduct:
    """Rows of an input, read through a row table, times packed weights [M, C/group, taps] plus bias [M].

    implementation is the one that computes it: the first that applies, or the one that was asked for.
    """

    def __init__(
        self,
        w: _Floats,
        b: _Floats | None = None,
        *,
        group: int = 1,
        isa: str | None = None,
        implementation: str = "",
    ) -> None: ...
    @property
    def implementation(self) -> str: ...
    @property
    def packed(self) -> _Floats:
        """[groups, panels, taps, C/group, panel width]; [taps, channels padded] where each group is one channel."""

    def __call__(
        self,
        rows: _Floats,
        table: _Ints,
        *,
        activation: _Triple | None = None,
        slope: _Floats | None = None,
        out: _Floats | None = None,
        threads: int = 1,
    ) -> _Floats:
        """Rows [N, R, C] through the table [P, taps] to [N, P, M].

        activation is (negative_slope, min, max); slope [M] is read where there is one.
        """

class MaskedConv:
    """PerforatedConv or SparseConv."""

    @staticmethod
    def perforated(
        w: _Floats,
        b: _Floats | None,
        mask: npt.NDArray[np.bool_],
        source: _Ints,
        weight: _Floats | None = None,
        *,
        strides: _Pair = (1, 1),
        pads: _Quad = (0, 0, 0, 0),
        dilations: _Pair = (1, 1),
        group: int = 1,
        activation: _Triple = ...,
        slope: _Floats | None = None,
        isa: str | None = None,
    ) -> MaskedConv: ...
    @staticmethod
    def sparse(
        w: _Floats,
        b: _Floats | None,
        mask: npt.NDArray[np.bool_],
        fill: _Floats | None = None,
        *,
        strides: _Pair = (1, 1),
        pads: _Quad = (0, 0, 0, 0),
        dilations: _Pair = (1, 1),
        group: int = 1,
        activation: _Triple = ...,
        slope: _Floats | None = None,
        isa: str | None = None,
    ) -> MaskedConv: ...
    @property
    def implementation(self) -> str:
        """What computes its product."""

    def __call__(self, x: _Array, *, threads: int = 1) -> _Array:
        """X [N, C, H, W] to Y [N, M, OH, OW] of the same type."""

class RadiusAdaptiveConv:
    """RadiusAdaptiveConv."""

    def __init__(
        self,
        w: _Floats,
        b: _Floats | None,
        w_alpha: _Floats,
        b_alpha: float = 0.0,
        b_ring: _Floats | None = None,
        *,
        center_gain: float = 0.0,
        strides: _Pair = (1, 1),
        pads: _Quad = (0, 0, 0, 0),
        dilations: _Pair = (1, 1),
        group: int = 1,
        activation: _Triple = ...,
        slope: _Floats | None = None,
        isa: str | None = None,
    ) -> None: ...
    def __call__(self, x: _Array, *, threads: int = 1) -> _Array:
        """X [N, C, H, W] to Y [N, M, OH, OW] of the same type."""

class SampledRadiusAdaptiveConv:
    """SampledRadiusAdaptiveConv."""

    def __init__(
        self,
        w: _Floats,
        b: _Floats | None,
        w_alpha: _Floats,
        b_alpha: float = 0.0,
        b_ring: _Floats | None = None,
        *,
        in_shape: _Pair,
        in_source: _Ints | None = None,
        sites: _Ints | None = None,
        center_gain: float = 0.0,
        strides: _Pair = (1, 1),
        pads: _Quad = (0, 0, 0, 0),
        dilations: _Pair = (1, 1),
        group: int = 1,
        activation: _Triple = ...,
        slope: _Floats | None = None,
        isa: str | None = None,
    ) -> None: ...
    def __call__(self, s: _Array, *, threads: int = 1) -> _Array:
        """Rows S [N, R, C] to rows [N, P, M] of the same type."""

class SampledConv:
    """SampledConv; `adds` says whether rows Z [N or 1, Pz, M] are added."""

    def __init__(
        self,
        w: _Floats,
        b: _Floats | None,
        *,
        in_shape: _Pair,
        in_source: _Ints | None = None,
        sites: _Ints | None = None,
        adds: bool = False,
        z_source: _Ints | None = None,
        strides: _Pair = (1, 1),
        pads: _Quad = (0, 0, 0, 0),
        dilations: _Pair = (1, 1),
        group: int = 1,
        activation: _Triple = ...,
        slope: _Floats | None = None,
        isa: str | None = None,
        implementation: str = "",
    ) -> None: ...
    @property
    def implementation(self) -> str:
        """What computes its product."""

    def __call__(self, s: _Array, z: _Array | None = None, *, threads: int = 1) -> _Array:
        """Rows S [N, R, C] to rows [N, P, M] of the same type."""

class SampledPool:
    """SampledMaxPool, or SampledAveragePool where `average`."""

    def __init__(
        self,
        kernel: _Pair,
        *,
        in_shape: _Pair,
        in_source: _Ints | None = None,
        sites: _Ints | None = None,
        strides: _Pair = (1, 1),
        pads: _Quad = (0, 0, 0, 0),
        dilations: _Pair = (1, 1),
        ceil_mode: bool = False,
        average: bool = False,
        count_include_pad: bool = False,
        isa: str | None = None,
    ) -> None: ...
    def __call__(self, s: _Array, *, threads: int = 1) -> _Array:
        """Rows S [N, R, C] to rows [N, P, C] of the same type."""

class Compact:
    """Compact."""

    def __init__(self, sites: _Ints | None = None, shape: _Pair = (0, 0), *, isa: str | None = None) -> None: ...
    def __call__(self, x: _Array, *, threads: int = 1) -> _Array:
        """X [N, C, H, W] to rows [N, P, C] of the same type."""

class ExpandRows:
    """ExpandRows."""

    def __init__(
        self, source: _Ints, shape: _Pair, weight: _Floats | None = None, *, isa: str | None = None
    ) -> None: ...
    def __call__(self, s: _Array, *, threads: int = 1) -> _Array:
        """Rows S [N, P, C] to a map [N, C, H, W] of the same type."""
