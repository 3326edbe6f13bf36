// The engine as a Python module, for tests and tools. Not needed to run a model.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "core/signatures.h"
#include "cpu/isa.h"
#include "cpu/operators.h"
#include "cpu/row_operators.h"

namespace py = pybind11;

namespace perfonnx {
namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Ints = py::array_t<std::int32_t, py::array::c_style | py::array::forcecast>;
using Bools = py::array_t<bool, py::array::c_style | py::array::forcecast>;
using Bits = py::array_t<std::uint16_t, py::array::c_style | py::array::forcecast>;
using Pair = std::array<std::int64_t, 2>;
using Quad = std::array<std::int64_t, 4>;
using Triple = std::array<float, 3>;

// Threads of its own: only the tests use this, to see that tasks are independent of each other.
class ThreadedFor final : public ParallelFor {
 public:
  explicit ThreadedFor(int threads) : threads_(threads) {}
  void run(std::size_t count, const std::function<void(std::size_t)>& task) override {
    std::vector<std::thread> pool;
    for (int i = 0; i < threads_; ++i) {
      pool.emplace_back([&, i] {
        for (auto k = static_cast<std::size_t>(i); k < count; k += static_cast<std::size_t>(threads_)) task(k);
      });
    }
    for (std::thread& thread : pool) thread.join();
  }

 private:
  int threads_;
};

// Calls function(context) outside the interpreter's lock.
template <typename Function>
void with_context(int threads, const Function& function) {
  const py::gil_scoped_release release;
  HeapAllocator allocator;
  if (threads > 1) {
    ThreadedFor parallel(threads);
    Context context{parallel, allocator};
    function(context);
  } else {
    SerialFor parallel;
    Context context{parallel, allocator};
    function(context);
  }
}

const KernelSet& kernels(const std::optional<std::string>& isa) {
  return isa ? kernels_by_name(*isa) : default_kernels();
}

void expect_rank(const py::array& array, py::ssize_t rank, const char* name) {
  if (array.ndim() != rank) {
    throw Error("input '" + std::string(name) + "': rank " + std::to_string(array.ndim()) + " instead of " +
                std::to_string(rank));
  }
}

void expect_size(const py::array& array, std::int64_t size, const char* name) {
  if (array.size() != size) {
    throw Error("input '" + std::string(name) + "': " + std::to_string(array.size()) + " elements instead of " +
                std::to_string(size));
  }
}

ConvGeometry geometry_of(const Pair& kernel, const Pair& strides, const Quad& pads, const Pair& dilations) {
  ConvGeometry geometry;
  for (int i = 0; i < 2; ++i) {
    geometry.kernel[i] = kernel[static_cast<std::size_t>(i)];
    geometry.strides[i] = strides[static_cast<std::size_t>(i)];
    geometry.dilations[i] = dilations[static_cast<std::size_t>(i)];
  }
  for (int i = 0; i < 4; ++i) geometry.pads[i] = pads[static_cast<std::size_t>(i)];
  return geometry;
}

Activation activation_of(const Triple& numbers, const std::optional<Floats>& slope, std::int64_t outputs) {
  Activation activation{numbers[0], numbers[1], numbers[2], {}};
  if (slope) {
    expect_size(*slope, outputs, "slope");
    activation.slopes.assign(slope->data(), slope->data() + outputs);
  }
  return activation;
}

ConvConstants conv_of(const Floats& w, const std::optional<Floats>& b, const Pair& strides, const Quad& pads,
                      const Pair& dilations, std::int64_t group, const Triple& activation,
                      const std::optional<Floats>& slope) {
  expect_rank(w, 4, "W");
  ConvConstants conv;
  conv.weights = w.data();
  conv.outputs = w.shape(0);
  conv.inputs = w.shape(1);
  conv.groups = group;
  conv.geometry = geometry_of({w.shape(2), w.shape(3)}, strides, pads, dilations);
  conv.activation = activation_of(activation, slope, conv.outputs);
  if (b) {
    expect_size(*b, conv.outputs, "B");
    conv.bias = b->data();
  }
  return conv;
}

Mask mask_of(const Bools& mask) {
  expect_rank(mask, 2, "mask");
  return Mask{mask.data(), mask.shape(0), mask.shape(1)};
}

// Element type of an array of floats.
Element element_of(const py::array& array, const char* name) {
  if (py::dtype::of<float>().is(array.dtype())) return Element::kFloat;
  if (array.dtype().kind() == 'f' && array.dtype().itemsize() == 2) return Element::kHalf;
  throw Error("input '" + std::string(name) + "': it must be float32 or float16");
}

// X, C-contiguous; `keep` holds the array that the pointer belongs to.
Images images_of(const py::array& x, py::array& keep) {
  expect_rank(x, 4, "X");
  keep = py::array::ensure(x, py::array::c_style);
  return Images{keep.data(), element_of(x, "X"), keep.shape(0), keep.shape(1), keep.shape(2), keep.shape(3)};
}

// The same for rows.
Rows rows_of(const py::array& s, const char* name, py::array& keep) {
  expect_rank(s, 3, name);
  keep = py::array::ensure(s, py::array::c_style);
  return Rows{keep.data(), element_of(s, name), keep.shape(0), keep.shape(1), keep.shape(2)};
}

// A result of the type of `like`.
py::array new_array(const py::array& like, const std::vector<std::int64_t>& shape) {
  return py::array(like.dtype(), std::vector<py::ssize_t>(shape.begin(), shape.end()));
}

// Runs an engine on `input`; shape is that of its result.
template <typename Run>
py::array run_on(const py::array& input, const std::vector<std::int64_t>& shape, int threads, const Run& run) {
  py::array result = new_array(input, shape);
  void* data = result.mutable_data();
  with_context(threads, [&](Context& context) { run(data, context); });
  return result;
}

py::array run_masked(const MaskedConv& engine, const py::array& x, int threads) {
  py::array keep;
  const Images images = images_of(x, keep);
  engine.check(images);
  return run_on(x, {images.images, engine.outputs(), engine.height(), engine.width()}, threads,
                [&](void* y, Context& context) { engine.run(images, y, context); });
}

py::array run_radius(const RadiusAdaptiveConv& engine, const py::array& x, int threads) {
  py::array keep;
  const Images images = images_of(x, keep);
  engine.check(images);
  return run_on(x, {images.images, engine.outputs(), engine.height(images), engine.width(images)}, threads,
                [&](void* y, Context& context) { engine.run(images, y, context); });
}

py::array run_sampled_radius(const SampledRadiusAdaptiveConv& engine, const py::array& s, int threads) {
  py::array keep;
  const Rows rows = rows_of(s, "S", keep);
  engine.check(rows);
  return run_on(s, {rows.images, engine.sites(), engine.outputs()}, threads,
                [&](void* r, Context& context) { engine.run(rows, r, context); });
}

py::array run_sampled_conv(const SampledConv& engine, const py::array& s, const std::optional<py::array>& z,
                           int threads) {
  py::array keep;
  py::array keep_z;
  const Rows rows = rows_of(s, "S", keep);
  std::optional<Rows> added;
  if (z) added = rows_of(*z, "Z", keep_z);
  if (engine.adds() != added.has_value()) throw Error("input 'Z': it must be given where the operator adds rows");
  engine.check(rows, added ? &*added : nullptr);
  return run_on(s, {rows.images, engine.sites(), engine.outputs()}, threads,
                [&](void* r, Context& context) { engine.run(rows, added ? &*added : nullptr, r, context); });
}

py::array run_pool(const SampledPool& engine, const py::array& s, int threads) {
  py::array keep;
  const Rows rows = rows_of(s, "S", keep);
  engine.check(rows);
  return run_on(s, {rows.images, engine.sites(), rows.channels}, threads,
                [&](void* r, Context& context) { engine.run(rows, r, context); });
}

py::array run_compact(const Compact& engine, const py::array& x, int threads) {
  py::array keep;
  const Images images = images_of(x, keep);
  engine.check(images);
  return run_on(x, {images.images, engine.sites(images), images.channels}, threads,
                [&](void* rows, Context& context) { engine.run(images, rows, context); });
}

py::array run_expand(const Expand& engine, const py::array& s, int threads) {
  py::array keep;
  const Rows rows = rows_of(s, "S", keep);
  engine.check(rows);
  return run_on(s, {rows.images, rows.channels, engine.map().height, engine.map().width}, threads,
                [&](void* y, Context& context) { engine.run(rows, y, context); });
}

Ints row_table(const Pair& kernel, const Pair& strides, const Quad& pads, const Pair& dilations, const Pair& input,
               std::int64_t output_width, const Ints& sites) {
  const ConvGeometry geometry = geometry_of(kernel, strides, pads, dilations).checked();
  if (output_width < 1) throw Error("output_width must be at least 1");
  const std::vector<std::int32_t> list(sites.data(), sites.data() + sites.size());
  const RowTable table =
      make_row_table({geometry, all_taps(geometry), {input[0], input[1]}, output_width, list, nullptr});
  Ints result({static_cast<py::ssize_t>(table.sites), static_cast<py::ssize_t>(table.taps)});
  std::copy_n(table.rows.data(), table.sites * table.taps, result.mutable_data());
  return result;
}

// A sampled product on rows, weights packed once.
class SampledProduct {
 public:
  SampledProduct(const Floats& w, const std::optional<Floats>& b, std::int64_t group,
                 const std::optional<std::string>& isa, const std::string& implementation)
      : product_(product_of(w, b, group, kernels(isa), implementation)),
        zero_row_(static_cast<std::size_t>(product_.input_channels()), 0.0F) {}

  std::string implementation() const { return product_.implementation(); }

  Floats packed() const {
    const WeightShape& shape = product_.shape();
    const auto size = [](std::int64_t n) { return static_cast<py::ssize_t>(n); };
    const auto whole = static_cast<py::ssize_t>(product_.packed().size());
    const auto panel = static_cast<py::ssize_t>(product_.kernels().f32->panel);
    std::vector<py::ssize_t> dims{size(shape.groups), -1, size(shape.taps), size(shape.inputs), panel};
    if (implementation() == "depthwise") dims = {size(shape.taps), whole / size(shape.taps)};
    if (implementation() == "columns") dims = {whole};
    if (dims.size() > 1 && dims[1] < 0) dims[1] = whole / (dims[0] * dims[2] * dims[3] * dims[4]);
    Floats result(dims);
    std::copy_n(product_.packed().data(), product_.packed().size(), result.mutable_data());
    return result;
  }

  Floats run(const Floats& rows, const Ints& table, const std::optional<Triple>& activation,
             const std::optional<Floats>& slope, std::optional<Floats> out, int threads) const {
    expect_rank(rows, 3, "rows");
    expect_rank(table, 2, "table");
    if (rows.shape(2) != product_.input_channels()) throw Error("input 'rows': wrong number of channels");
    if (table.shape(1) != product_.shape().taps) throw Error("input 'table': wrong number of taps");
    RowTable plan;
    plan.sites = table.shape(0);
    plan.taps = table.shape(1);
    plan.rows = AlignedArray<std::int32_t>(static_cast<std::size_t>(table.size()));
    for (py::ssize_t i = 0; i < table.size(); ++i) {
      const std::int32_t row = table.data()[i];
      if (row < -1 || row >= rows.shape(1)) throw Error("input 'table': a row is out of range");
      plan.rows[static_cast<std::size_t>(i)] = row;
    }
    find_runs(&plan);
    const std::int64_t outputs = product_.outputs();
    Floats result = out ? *out : Floats({rows.shape(0), table.shape(0), static_cast<py::ssize_t>(outputs)});
    expect_size(result, rows.shape(0) * table.shape(0) * outputs, "out");
    float* to = result.mutable_data();
    const InputRows input{rows.data(), rows.shape(0), rows.shape(1), zero_row_.data()};
    Activation act;
    if (activation) act = activation_of(*activation, slope, outputs).opened();
    with_context(threads, [&](Context& context) {
      product_.run({input, plan, activation ? &act : nullptr, to, outputs}, context);
    });
    return result;
  }

 private:
  static Product product_of(const Floats& w, const std::optional<Floats>& b, std::int64_t group,
                            const KernelSet& kernels, const std::string& implementation) {
    expect_rank(w, 3, "W");
    if (b) expect_size(*b, w.shape(0), "B");
    const WeightShape shape{w.shape(0), w.shape(1), w.shape(2), group};
    return Product({w.data(), b ? b->data() : nullptr, shape, kernels, nullptr, nullptr}, "SampledProduct",
                   implementation);
  }

  Product product_;
  std::vector<float> zero_row_;
};

constexpr Triple kNoActivation{1.0F, -std::numeric_limits<float>::max(), std::numeric_limits<float>::max()};

std::unique_ptr<MaskedConv> new_perforated(const Floats& w, const std::optional<Floats>& b, const Bools& mask,
                                           const Ints& source, const std::optional<Floats>& weight, const Pair& strides,
                                           const Quad& pads, const Pair& dilations, std::int64_t group,
                                           const Triple& activation, const std::optional<Floats>& slope,
                                           const std::optional<std::string>& isa) {
  const Mask positions = mask_of(mask);
  expect_rank(source, 2, "source");
  expect_size(source, positions.positions() * source.shape(1), "source");
  if (weight) expect_size(*weight, source.size(), "weight");
  return std::unique_ptr<MaskedConv>(new MaskedConv(
      make_perforated_conv(conv_of(w, b, strides, pads, dilations, group, activation, slope), positions, source.data(),
                           weight ? weight->data() : nullptr, source.shape(1), kernels(isa))));
}

std::unique_ptr<MaskedConv> new_sparse(const Floats& w, const std::optional<Floats>& b, const Bools& mask,
                                       const std::optional<Floats>& fill, const Pair& strides, const Quad& pads,
                                       const Pair& dilations, std::int64_t group, const Triple& activation,
                                       const std::optional<Floats>& slope, const std::optional<std::string>& isa) {
  const ConvConstants conv = conv_of(w, b, strides, pads, dilations, group, activation, slope);
  if (fill) expect_size(*fill, conv.outputs, "fill");
  return std::unique_ptr<MaskedConv>(
      new MaskedConv(make_sparse_conv(conv, mask_of(mask), fill ? fill->data() : nullptr, kernels(isa))));
}

RadiusConstants radius_of(const ConvConstants& conv, const Floats& w_alpha, float b_alpha,
                          const std::optional<Floats>& b_ring, float center_gain) {
  expect_size(w_alpha, conv.inputs * conv.groups, "W_alpha");
  if (b_ring) expect_size(*b_ring, conv.outputs, "B_ring");
  return RadiusConstants{w_alpha.data(), b_alpha, b_ring ? b_ring->data() : nullptr, center_gain};
}

std::unique_ptr<RadiusAdaptiveConv> new_radius(const Floats& w, const std::optional<Floats>& b, const Floats& w_alpha,
                                               float b_alpha, const std::optional<Floats>& b_ring, float center_gain,
                                               const Pair& strides, const Quad& pads, const Pair& dilations,
                                               std::int64_t group, const Triple& activation,
                                               const std::optional<Floats>& slope,
                                               const std::optional<std::string>& isa) {
  const ConvConstants conv = conv_of(w, b, strides, pads, dilations, group, activation, slope);
  const RadiusConstants radius = radius_of(conv, w_alpha, b_alpha, b_ring, center_gain);
  return std::make_unique<RadiusAdaptiveConv>(conv, radius, kernels(isa));
}

std::optional<Indices> list_of(const std::optional<Ints>& given) {
  return given ? std::optional<Indices>(Indices{given->data(), given->size()}) : std::nullopt;
}

VirtualMap map_of(const Pair& in_shape, const std::optional<Ints>& in_source) {
  return VirtualMap{MapSize{in_shape[0], in_shape[1]}, list_of(in_source)};
}

std::unique_ptr<SampledRadiusAdaptiveConv> new_sampled_radius(
    const Floats& w, const std::optional<Floats>& b, const Floats& w_alpha, float b_alpha,
    const std::optional<Floats>& b_ring, const Pair& in_shape, const std::optional<Ints>& in_source,
    const std::optional<Ints>& sites, float center_gain, const Pair& strides, const Quad& pads, const Pair& dilations,
    std::int64_t group, const Triple& activation, const std::optional<Floats>& slope,
    const std::optional<std::string>& isa) {
  const ConvConstants conv = conv_of(w, b, strides, pads, dilations, group, activation, slope);
  const RadiusConstants radius = radius_of(conv, w_alpha, b_alpha, b_ring, center_gain);
  return std::make_unique<SampledRadiusAdaptiveConv>(conv, radius, map_of(in_shape, in_source), list_of(sites),
                                                     kernels(isa));
}

std::unique_ptr<SampledConv> new_sampled_conv(const Floats& w, const std::optional<Floats>& b, const Pair& in_shape,
                                              const std::optional<Ints>& in_source, const std::optional<Ints>& sites,
                                              bool adds, const std::optional<Ints>& z_source, const Pair& strides,
                                              const Quad& pads, const Pair& dilations, std::int64_t group,
                                              const Triple& activation, const std::optional<Floats>& slope,
                                              const std::optional<std::string>& isa,
                                              const std::string& implementation) {
  ConvConstants conv = conv_of(w, b, strides, pads, dilations, group, activation, slope);
  conv.layer = "SampledConv";
  conv.implementation = implementation;
  std::optional<AddedConstants> added;
  if (adds) added = AddedConstants{list_of(z_source), std::nullopt};
  return std::make_unique<SampledConv>(conv, map_of(in_shape, in_source), list_of(sites), added, kernels(isa));
}

std::unique_ptr<SampledPool> new_pool(const Pair& kernel, const Pair& in_shape, const std::optional<Ints>& in_source,
                                      const std::optional<Ints>& sites, const Pair& strides, const Quad& pads,
                                      const Pair& dilations, bool ceil_mode, bool average, bool count_include_pad,
                                      const std::optional<std::string>& isa) {
  const PoolWindow window{geometry_of(kernel, strides, pads, dilations), ceil_mode, average, count_include_pad};
  return std::make_unique<SampledPool>(window, map_of(in_shape, in_source), list_of(sites), kernels(isa));
}

std::unique_ptr<Compact> new_compact(const std::optional<Ints>& sites, const Pair& shape,
                                     const std::optional<std::string>& isa) {
  return std::make_unique<Compact>(list_of(sites), MapSize{shape[0], shape[1]}, kernels(isa));
}

std::unique_ptr<Expand> new_expand(const Ints& source, const Pair& shape, const std::optional<Floats>& weight,
                                   const std::optional<std::string>& isa) {
  const MapSize map = MapSize{shape[0], shape[1]}.checked("shape");
  expect_rank(source, 2, "source");
  expect_size(source, map.positions() * source.shape(1), "source");
  if (weight) expect_size(*weight, source.size(), "weight");
  return std::make_unique<Expand>(map, source.data(), weight ? weight->data() : nullptr, source.shape(1), kernels(isa));
}

// Inputs (name, type, whether it may be omitted) and attributes (name, type, whether a node must have it).
using Part = std::tuple<std::string, std::string, bool>;
std::map<std::string, std::map<std::string, std::vector<Part>>> operators() {
  std::map<std::string, std::map<std::string, std::vector<Part>>> result;
  for (const Signature& signature : signatures()) {
    auto& parts = result[signature.name];
    auto& inputs = parts["inputs"];
    auto& attributes = parts["attributes"];
    for (const Input& input : signature.inputs) inputs.emplace_back(input.name, text(input.type), input.optional);
    for (const Attribute& attribute : signature.attributes) {
      attributes.emplace_back(attribute.name, text(attribute.type), attribute.required);
    }
  }
  return result;
}

}  // namespace
}  // namespace perfonnx

PYBIND11_MODULE(_engine, m) {
  using namespace perfonnx;
  using py::arg;
  m.doc() = "The sampled-convolution engine, for tests and tools.";
  const Pair ones{1, 1};
  const Quad zeros{0, 0, 0, 0};

  m.def("operators", operators);
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (const KernelSet* set : available_kernels()) names.insert(names.begin(), set->name);
    return names;
  });
  m.def("default_isa", [] { return std::string(default_kernels().name); });
  m.def("implementations", [] {
    std::vector<std::string> names;
    for (const Implementation* implementation : implementations()) names.emplace_back(implementation->name());
    return names;
  });
  m.def("row_table", row_table, arg("kernel"), arg("strides"), arg("pads"), arg("dilations"), arg("input_size"),
        arg("output_width"), arg("sites"));
  m.def(
      "half_to_float",
      [](const Bits& bits, const std::optional<std::string>& isa) {
        Floats result(bits.size());
        kernels(isa).f16->widen(bits.data(), static_cast<std::size_t>(bits.size()), result.mutable_data());
        return result;
      },
      arg("bits"), arg("isa") = py::none());
  m.def(
      "float_to_half",
      [](const Floats& values, const std::optional<std::string>& isa) {
        Bits result(values.size());
        kernels(isa).f16->narrow(values.data(), static_cast<std::size_t>(values.size()), result.mutable_data());
        return result;
      },
      arg("values"), arg("isa") = py::none());

  py::class_<SampledProduct>(m, "SampledProduct")
      .def(py::init<const Floats&, const std::optional<Floats>&, std::int64_t, const std::optional<std::string>&,
                    const std::string&>(),
           arg("w"), arg("b") = py::none(), py::kw_only(), arg("group") = 1, arg("isa") = py::none(),
           arg("implementation") = "")
      .def_property_readonly("packed", &SampledProduct::packed)
      .def_property_readonly("implementation", &SampledProduct::implementation)
      .def("__call__", &SampledProduct::run, arg("rows"), arg("table"), py::kw_only(), arg("activation") = py::none(),
           arg("slope") = py::none(), arg("out") = py::none(), arg("threads") = 1);

  // Perforated and sparse convolutions are one class of the engine, told apart by how they are made.
  py::class_<MaskedConv>(m, "MaskedConv")
      .def_static("perforated", new_perforated, arg("w"), arg("b"), arg("mask"), arg("source"),
                  arg("weight") = py::none(), py::kw_only(), arg("strides") = ones, arg("pads") = zeros,
                  arg("dilations") = ones, arg("group") = 1, arg("activation") = kNoActivation,
                  arg("slope") = py::none(), arg("isa") = py::none())
      .def_static("sparse", new_sparse, arg("w"), arg("b"), arg("mask"), arg("fill") = py::none(), py::kw_only(),
                  arg("strides") = ones, arg("pads") = zeros, arg("dilations") = ones, arg("group") = 1,
                  arg("activation") = kNoActivation, arg("slope") = py::none(), arg("isa") = py::none())
      .def_property_readonly("implementation",
                             [](const MaskedConv& engine) { return std::string(engine.implementation()); })
      .def("__call__", run_masked, arg("x"), py::kw_only(), arg("threads") = 1);

  py::class_<RadiusAdaptiveConv>(m, "RadiusAdaptiveConv")
      .def(py::init(&new_radius), arg("w"), arg("b"), arg("w_alpha"), arg("b_alpha") = 0.0F, arg("b_ring") = py::none(),
           py::kw_only(), arg("center_gain") = 0.0F, arg("strides") = ones, arg("pads") = zeros,
           arg("dilations") = ones, arg("group") = 1, arg("activation") = kNoActivation, arg("slope") = py::none(),
           arg("isa") = py::none())
      .def("__call__", run_radius, arg("x"), py::kw_only(), arg("threads") = 1);

  py::class_<SampledRadiusAdaptiveConv>(m, "SampledRadiusAdaptiveConv")
      .def(py::init(&new_sampled_radius), arg("w"), arg("b"), arg("w_alpha"), arg("b_alpha") = 0.0F,
           arg("b_ring") = py::none(), py::kw_only(), arg("in_shape"), arg("in_source") = py::none(),
           arg("sites") = py::none(), arg("center_gain") = 0.0F, arg("strides") = ones, arg("pads") = zeros,
           arg("dilations") = ones, arg("group") = 1, arg("activation") = kNoActivation, arg("slope") = py::none(),
           arg("isa") = py::none())
      .def("__call__", run_sampled_radius, arg("s"), py::kw_only(), arg("threads") = 1);

  py::class_<SampledConv>(m, "SampledConv")
      .def(py::init(&new_sampled_conv), arg("w"), arg("b"), py::kw_only(), arg("in_shape"),
           arg("in_source") = py::none(), arg("sites") = py::none(), arg("adds") = false, arg("z_source") = py::none(),
           arg("strides") = ones, arg("pads") = zeros, arg("dilations") = ones, arg("group") = 1,
           arg("activation") = kNoActivation, arg("slope") = py::none(), arg("isa") = py::none(),
           arg("implementation") = "")
      .def_property_readonly("implementation",
                             [](const SampledConv& engine) { return std::string(engine.implementation()); })
      .def("__call__", run_sampled_conv, arg("s"), arg("z") = py::none(), py::kw_only(), arg("threads") = 1);

  py::class_<SampledPool>(m, "SampledPool")
      .def(py::init(&new_pool), arg("kernel"), py::kw_only(), arg("in_shape"), arg("in_source") = py::none(),
           arg("sites") = py::none(), arg("strides") = ones, arg("pads") = zeros, arg("dilations") = ones,
           arg("ceil_mode") = false, arg("average") = false, arg("count_include_pad") = false, arg("isa") = py::none())
      .def("__call__", run_pool, arg("s"), py::kw_only(), arg("threads") = 1);

  py::class_<Compact>(m, "Compact")
      .def(py::init(&new_compact), arg("sites") = py::none(), arg("shape") = Pair{0, 0}, py::kw_only(),
           arg("isa") = py::none())
      .def("__call__", run_compact, arg("x"), py::kw_only(), arg("threads") = 1);

  py::class_<Expand>(m, "ExpandRows")
      .def(py::init(&new_expand), arg("source"), arg("shape"), arg("weight") = py::none(), py::kw_only(),
           arg("isa") = py::none())
      .def("__call__", run_expand, arg("s"), py::kw_only(), arg("threads") = 1);
}
