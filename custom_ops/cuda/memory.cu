#include "cuda/device.h"

using namespace perfonnx::cuda;

int perfonnx_cuda_upload(void* to, const void* from, std::size_t bytes, void* stream) {
#ifdef __CUDACC__
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream));
#else
  (void)stream;
  std::memcpy(to, from, bytes);
  return 0;
#endif
}

int perfonnx_cuda_download(void* to, const void* from, std::size_t bytes, void* stream) {
#ifdef __CUDACC__
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, static_cast<cudaStream_t>(stream));
#else
  (void)stream;
  std::memcpy(to, from, bytes);
  return 0;
#endif
}

int perfonnx_cuda_wait(void* stream) {
#ifdef __CUDACC__
  return cudaStreamSynchronize(static_cast<cudaStream_t>(stream));
#else
  (void)stream;
  return 0;
#endif
}

int perfonnx_cuda_wait_for_device() {
#ifdef __CUDACC__
  return cudaDeviceSynchronize();
#else
  return 0;
#endif
}
