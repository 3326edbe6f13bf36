// What every processor of the architecture has: SSE2 on x86-64 (16 registers), NEON on AArch64 (32 registers).
//
// Architecture: any
#define PERFONNX_KERNELS kF32Baseline
#define PERFONNX_VECTOR 4
#if defined(__aarch64__)
#define PERFONNX_SITE_TILE 12
#else
#define PERFONNX_SITE_TILE 6
#endif
#include "cpu/kernels/f32_body.h"
