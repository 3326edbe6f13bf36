#include "core/signatures.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace perfonnx {
namespace {

constexpr bool kRequired = false;
constexpr bool kOptional = true;
constexpr bool kOfRun = true;

template <typename T>
std::vector<T> joined(std::vector<T> first, const std::vector<T>& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

// What every convolution has, and `own` behind it.
std::vector<Attribute> conv_attributes(const std::vector<Attribute>& own = {}) {
  return joined({{"kernel_shape", AttributeType::kInts, false},
                 {"strides", AttributeType::kInts, false},
                 {"pads", AttributeType::kInts, false},
                 {"dilations", AttributeType::kInts, false},
                 {"group", AttributeType::kInt, false},
                 {"negative_slope", AttributeType::kFloat, false},
                 {"clip_min", AttributeType::kFloat, false},
                 {"clip_max", AttributeType::kFloat, false},
                 {"largest_tile", AttributeType::kInt, false}},
                own);
}

// What it reads (X maps, or S rows), weights and bias; `own`; the slopes of its activation.
std::vector<Input> conv_inputs(const char* read, const std::vector<Input>& own) {
  const std::vector<Input> first{
      {read, InputType::kT, kRequired, kOfRun}, {"W", InputType::kT, kRequired}, {"B", InputType::kT, kOptional}};
  return joined(joined(first, own), {{"slope", InputType::kT, kOptional}});
}

std::vector<Input> radius_inputs(const std::vector<Input>& own = {}) {
  return joined({{"W_alpha", InputType::kT, kRequired},
                 {"B_alpha", InputType::kT, kOptional},
                 {"B_ring", InputType::kT, kOptional}},
                own);
}

// Of the operators on rows: the map that these stand for, and the sites.
std::vector<Input> map_inputs() {
  return {{"in_source", InputType::kInt32, kOptional},
          {"in_shape", InputType::kInt64, kRequired},
          {"sites", InputType::kInt32, kOptional}};
}

Signature pool(const char* name, const Attribute& own) {
  return {name,
          joined({{"S", InputType::kT, kRequired, kOfRun}}, map_inputs()),
          {{"kernel_shape", AttributeType::kInts, true},
           {"strides", AttributeType::kInts, false},
           {"pads", AttributeType::kInts, false},
           {"ceil_mode", AttributeType::kInt, false},
           own}};
}

std::vector<Signature> all() {
  const Input mask{"mask", InputType::kBool, kRequired};
  const Attribute center_gain{"center_gain", AttributeType::kFloat, false};
  return {
      {"PerforatedConv",
       conv_inputs("X", {mask, {"source", InputType::kInt32, kRequired}, {"weight", InputType::kFactors, kOptional}}),
       conv_attributes({{"interpolation", AttributeType::kString, false}})},  // for people to read: source says it
      {"SparseConv", conv_inputs("X", {mask, {"fill", InputType::kT, kOptional}}), conv_attributes()},
      {"RadiusAdaptiveConv", conv_inputs("X", radius_inputs()), conv_attributes({center_gain})},
      {"Compact",
       {{"X", InputType::kT, kRequired, kOfRun},
        {"sites", InputType::kInt32, kOptional},
        {"shape", InputType::kInt64, kOptional}},
       {}},
      {"ExpandRows",
       {{"S", InputType::kT, kRequired, kOfRun},
        {"source", InputType::kInt32, kRequired},
        {"shape", InputType::kInt64, kRequired},
        {"weight", InputType::kFactors, kOptional}},
       {}},
      {"SampledConv",
       conv_inputs("S", joined(map_inputs(),
                               {{"Z", InputType::kT, kOptional, kOfRun}, {"z_source", InputType::kInt32, kOptional}})),
       conv_attributes()},
      pool("SampledMaxPool", {"dilations", AttributeType::kInts, false}),
      pool("SampledAveragePool", {"count_include_pad", AttributeType::kInt, false}),
      {"SampledRadiusAdaptiveConv", conv_inputs("S", radius_inputs(map_inputs())), conv_attributes({center_gain})},
  };
}

}  // namespace

const char* text(InputType type) {
  switch (type) {
    case InputType::kT:
      return "T";
    case InputType::kFactors:
      return "F";
    case InputType::kBool:
      return "tensor(bool)";
    case InputType::kInt32:
      return "tensor(int32)";
    case InputType::kInt64:
      return "tensor(int64)";
  }
  throw std::logic_error("an input of no type");
}

const char* text(AttributeType type) {
  switch (type) {
    case AttributeType::kInt:
      return "INT";
    case AttributeType::kInts:
      return "INTS";
    case AttributeType::kFloat:
      return "FLOAT";
    case AttributeType::kString:
      return "STRING";
  }
  throw std::logic_error("an attribute of no type");
}

std::size_t Signature::input(const char* of) const {
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (std::strcmp(inputs[i].name, of) == 0) return i;
  }
  throw std::logic_error(std::string(name) + " has no input '" + of + "'");
}

void Signature::expect(const char* attribute, AttributeType type) const {
  for (const Attribute& known : attributes) {
    if (std::strcmp(known.name, attribute) == 0 && known.type == type) return;
  }
  throw std::logic_error(std::string(name) + " has no attribute '" + attribute + "' of type " + text(type));
}

const std::vector<Signature>& signatures() {
  static const std::vector<Signature> list = all();
  return list;
}

const Signature& signature(const char* name) {
  for (const Signature& known : signatures()) {
    if (std::strcmp(known.name, name) == 0) return known;
  }
  throw std::logic_error("there is no operator '" + std::string(name) + "'");
}

}  // namespace perfonnx
