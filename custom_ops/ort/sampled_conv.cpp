#include <algorithm>

#include "ort/custom_op.h"

namespace perfonnx::ort {
namespace {

// nullopt without Z; with the shape of a Z that is known to add nothing.
template <typename B>
std::optional<AddedConstants> read_added(const KernelInfo& info) {
  const std::optional<Indices> source = read_indices(info, "z_source");
  if (!info.has_input("Z")) {
    if (source) throw Error("input 'z_source': it is given without Z; give both or neither");
    return std::nullopt;
  }
  AddedConstants added{source, std::nullopt};
  if (std::optional<Constant> z = info.constant_if_any("Z")) {
    if (z->dims.size() != 3) {
      throw Error("input 'Z': shape " + shape_text(z->dims) + " instead of [N or 1, rows, channels]");
    }
    const std::vector<char> copy = B::on_host(&*z);
    const std::vector<float> values = z->floats();
    if (std::all_of(values.begin(), values.end(), [](float v) { return v == 0.0F; })) {
      added.zeros = Rows{nullptr, Element::kFloat, z->dims[0], z->dims[1], z->dims[2]};
    }
  }
  return added;
}

template <typename B>
struct SampledConvOp {
  using Backend = B;
  using Engine = typename B::SampledConv;
  static constexpr const char* kName = "SampledConv";

  static std::unique_ptr<const Engine> create(const KernelInfo& info) {
    const ConvInputs inputs(info);
    const VirtualMap map{read_map_size(info, "in_shape"), read_indices(info, "in_source")};
    return std::make_unique<const Engine>(inputs.conv, map, read_indices(info, "sites"), read_added<B>(info),
                                          B::device(info));
  }

  template <typename Call>
  static void compute(const Engine& engine, Call& call) {
    const Rows s = call.rows("S");
    std::optional<Rows> z;
    if (engine.adds()) z = call.rows("Z");
    engine.check(s, z ? &*z : nullptr);
    void* r = call.output(s.images, engine.sites(), engine.outputs());
    auto context = call.context();
    engine.run(s, z ? &*z : nullptr, r, context);
  }
};

const Registration<SampledConvOp> kRegistration;

}  // namespace

}  // namespace perfonnx::ort
