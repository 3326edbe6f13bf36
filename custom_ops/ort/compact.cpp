#include "ort/custom_op.h"

namespace perfonnx::ort {
namespace {

template <typename B>
struct CompactOp {
  using Backend = B;
  using Engine = typename B::Compact;
  static constexpr const char* kName = "Compact";

  static std::unique_ptr<const Engine> create(const KernelInfo& info) {
    MapSize size;  // older models do not say which size they were made for
    if (info.has_input("shape")) size = read_map_size(info, "shape");
    return std::make_unique<const Engine>(read_indices(info, "sites"), size, B::device(info));
  }

  template <typename Call>
  static void compute(const Engine& engine, Call& call) {
    const Images x = call.images("X");
    engine.check(x);
    void* rows = call.output(x.images, engine.sites(x), x.channels);
    auto context = call.context();
    engine.run(x, rows, context);
  }
};

const Registration<CompactOp> kRegistration;

}  // namespace

}  // namespace perfonnx::ort
