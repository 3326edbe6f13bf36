// The operators as the nodes of a model write them: their inputs and attributes, said once. The library reads nodes by
// these names and registers what they say, and a test compares them with the schemas of the Python package.
#pragma once

#include <cstddef>
#include <vector>

namespace perfonnx {

// What an input holds: elements of the operator's type T (float or float16), or F (the same, whatever T is), or others.
enum class InputType { kT, kFactors, kBool, kInt32, kInt64 };
enum class AttributeType { kInt, kInts, kFloat, kString };

// As schemas of ONNX write them: "T", "F", "tensor(int32)", ...; "INT", "INTS", ...
const char* text(InputType type);
const char* text(AttributeType type);

struct Input {
  const char* name;
  InputType type;
  bool optional;
  bool of_run = false;  // it may change from run to run; the others are constants of the model
};

struct Attribute {
  const char* name;
  AttributeType type;
  bool required;
};

struct Signature {
  const char* name;
  std::vector<Input> inputs;
  std::vector<Attribute> attributes;

  // Place of an input among them. Throws std::logic_error for a name that is not there: then the code is wrong.
  std::size_t input(const char* of) const;
  // Throws std::logic_error unless there is such an attribute of that type.
  void expect(const char* attribute, AttributeType type) const;
};

// Of all operators of the domain.
const std::vector<Signature>& signatures();
// Throws std::logic_error for an operator that is not there.
const Signature& signature(const char* name);

}  // namespace perfonnx
