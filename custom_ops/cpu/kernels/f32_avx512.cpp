// AVX-512: 32 registers of 16 floats; 28 accumulators, 2 weights, inputs broadcast from memory inside the multiply-add.
//
// Architecture: x86_64, flags: -mavx512f -mavx512vl -mavx512bw -mavx512dq -mfma
#define PERFONNX_KERNELS kF32Avx512
#define PERFONNX_VECTOR 16
#define PERFONNX_SITE_TILE 14
#include "cpu/kernels/f32_body.h"
