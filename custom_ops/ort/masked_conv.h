// What the operators that run a MaskedConv share.
#pragma once

#include "ort/custom_op.h"

namespace perfonnx::ort {

template <typename B>
struct MaskedConvOp {
  using Backend = B;
  using Engine = typename B::MaskedConv;

  template <typename Call>
  static void compute(const Engine& engine, Call& call) {
    const Images x = call.images("X");
    engine.check(x);
    void* y = call.output(x.images, engine.outputs(), engine.height(), engine.width());
    auto context = call.context();
    engine.run(x, y, context);
  }
};

}  // namespace perfonnx::ort
