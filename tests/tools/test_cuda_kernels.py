"""What the tool reads of the compiler's messages."""

from __future__ import annotations

from tools.cuda_kernels import Resources, nvcc_command, resources

LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'void first<float>(Args)' for 'sm_80'
ptxas info    : Function properties for void first<float>(Args)
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 36 registers, used 1 barriers, 464 bytes cmem[0]
ptxas info    : Compiling entry function 'second' for 'sm_90a'
    8 bytes stack frame, 18 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers
"""


def test_registers_and_what_is_spilled() -> None:
    expected = [Resources("void first<float>(Args)", "sm_80", 36, 0), Resources("second", "sm_90a", 255, 18)]
    assert resources(LOG) == expected


def test_products_by_warpgroups_are_compiled_where_there_is_code_for_them() -> None:
    assert "-DPERFONNX_SM90A" in nvcc_command()
    assert "-DPERFONNX_SM90A" not in nvcc_command([("80", "sm_80")])
