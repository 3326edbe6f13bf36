#include "cuda/product.h"

namespace perfonnx::cuda {

int launch_product(const Product& product, Element element, Math math, std::int32_t tile, void* stream) {
  return with_type_of(element,
                      [&](auto value) { return launch_product_of<decltype(value)>(product, math, tile, stream); });
}

}  // namespace perfonnx::cuda

using namespace perfonnx::cuda;

int perfonnx_cuda_product(const ProductArgs* args, void* stream) {
  if (!few_enough(*args)) return kInvalidValue;
  Product product = product_of(*args);
  product.taps = static_cast<std::int32_t>(args->shape.taps);
  product.packed = args->packed;
  product.bias = args->bias;
  product.table = args->table;
  product.added = args->added;
  product.added_source = args->added_source;
  product.added_per_image = args->added_images == 1 ? 0 : args->rows_added;
  return launch_product(product, args->element, args->math, args->tile, stream);
}

const char* perfonnx_cuda_error_text(int status) { return error_text(status); }
