// What the operators that run a MaskedConv share.
#pragma once

#include "cpu/isa.h"
#include "ort/custom_op.h"

namespace perfonnx::ort {

struct MaskedConvOp {
  using Engine = MaskedConv;

  static void compute(const Engine& engine, Call& call) {
    const Images x = call.images("X");
    engine.check(x);
    void* y = call.output(x.images, engine.outputs(), engine.height(), engine.width());
    Context context = call.context();
    engine.run(x, y, context);
  }
};

}  // namespace perfonnx::ort
