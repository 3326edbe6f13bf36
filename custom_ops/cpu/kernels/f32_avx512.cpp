// AVX-512: 32 registers of 16 floats; 28 accumulators, 2 weights, inputs broadcast from memory inside the multiply-add.
#define PERFONNX_KERNELS kF32Avx512
#define PERFONNX_VECTOR 16
#define PERFONNX_SITE_TILE 14
#include "cpu/kernels/f32_body.h"
