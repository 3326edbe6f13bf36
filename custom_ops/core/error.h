// What is wrong with a model's constants or with a tensor at run time, in one line. The glue adds the node's name.
#pragma once

#include <stdexcept>
#include <string>

namespace perfonnx {

class Error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

}  // namespace perfonnx
