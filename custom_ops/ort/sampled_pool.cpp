#include "ort/custom_op.h"

namespace perfonnx::ort {
namespace {

bool read_flag(const KernelInfo& info, const char* name) {
  const std::int64_t value = info.integer(name).value_or(0);
  if (value != 0 && value != 1) throw Error("attribute '" + std::string(name) + "': it must be 0 or 1");
  return value == 1;
}

template <typename B, bool kAverage>
struct SampledPoolOp {
  using Backend = B;
  using Engine = typename B::SampledPool;
  static constexpr const char* kName = kAverage ? "SampledAveragePool" : "SampledMaxPool";

  static std::unique_ptr<const Engine> create(const KernelInfo& info) {
    PoolWindow window;
    if (!info.ints("kernel_shape")) throw Error("attribute 'kernel_shape': it is missing");
    read_ints(info, "kernel_shape", window.geometry.kernel, 2);
    read_ints(info, "strides", window.geometry.strides, 2);
    read_ints(info, "pads", window.geometry.pads, 4);
    window.ceil_mode = read_flag(info, "ceil_mode");
    window.average = kAverage;
    if (kAverage) {
      window.count_include_pad = read_flag(info, "count_include_pad");
    } else {
      read_ints(info, "dilations", window.geometry.dilations, 2);
    }
    const VirtualMap map{read_map_size(info, "in_shape"), read_indices(info, "in_source")};
    return std::make_unique<const Engine>(window, map, read_indices(info, "sites"), B::device(info));
  }

  template <typename Call>
  static void compute(const Engine& engine, Call& call) {
    const Rows s = call.rows("S");
    engine.check(s);
    void* r = call.output(s.images, engine.sites(), s.channels);
    auto context = call.context();
    engine.run(s, r, context);
  }
};

template <typename B>
using SampledMaxPoolOp = SampledPoolOp<B, false>;
template <typename B>
using SampledAveragePoolOp = SampledPoolOp<B, true>;

const Registration<SampledMaxPoolOp> kMax;
const Registration<SampledAveragePoolOp> kAverage;

}  // namespace

}  // namespace perfonnx::ort
