// AVX2 and FMA: 16 registers of 8 floats; 12 accumulators, 2 weights, 1 input.
//
// Architecture: x86_64, flags: -mavx2 -mfma
#define PERFONNX_KERNELS kF32Avx2
#define PERFONNX_VECTOR 8
#define PERFONNX_SITE_TILE 6
#include "cpu/kernels/f32_body.h"
