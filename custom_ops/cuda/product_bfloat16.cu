#include "cuda/product_kernels.h"

namespace perfonnx::cuda {

template int launch_product_of<Bfloat16>(Product product, Math math, std::int32_t tile, void* stream);

}  // namespace perfonnx::cuda
