// Winograd's algorithm, part of f32_body.h: A. Lavin, S. Gray, arXiv 1509.09308. Tiles of EDGE x EDGE outputs of
// kernels of R x R taps, made from POINTS x POINTS inputs, POINTS = EDGE + R - 1, by as many multiplies a pair of
// channels; or the same in a line, with DOWN = 1 for POINTS.

namespace perfonnx {
namespace {

// One dimension: `in` turns POINTS inputs into as many factors, `out` the products of those into EDGE outputs; the
// results lie `step` apart. What `in` does depends on the points alone, not on how many outputs are made of them:
// a factor is the inputs times the coefficients of the product of x - p over the other points p. A pair of points, p
// and -p, shares its even and its odd terms.
template <int POINTS>
struct Winograd {
  static constexpr size_t kPairs = POINTS / 2 - 1;
  static constexpr const double (&kPoints)[4] = kWinogradPoints[kPairs - 1];

  // The coefficients, lowest first, of the product of y - p^2 over all pairs but one; [kPairs]: over all.
  struct Products {
    float of[kPairs + 1][kPairs + 1];
  };
  static constexpr Products products() {
    Products result{};
    for (size_t without = 0; without <= kPairs; ++without) {
      double product[kPairs + 2] = {1};
      for (size_t i = 0; i < kPairs; ++i) {
        if (i == without) continue;
        for (size_t k = kPairs; k > 0; --k) product[k] = product[k - 1] - kPoints[i] * kPoints[i] * product[k];
        product[0] *= -kPoints[i] * kPoints[i];
      }
      for (size_t k = 0; k <= kPairs; ++k) result.of[without][k] = static_cast<float>(product[k]);
    }
    return result;
  }
  static constexpr Products kProducts = products();

  static PERFONNX_INLINE Vec sum(const Vec* d, const float (&coefficients)[kPairs + 1], size_t count) {
    Vec result = d[2 * (count - 1)];  // the highest coefficient is 1
    PERFONNX_UNROLL
    for (size_t k = 0; k + 1 < count; ++k) result += coefficients[k] * d[2 * k];
    return result;
  }
  static PERFONNX_INLINE void in(const Vec* d, Vec* to, size_t step) {
    to[0] = sum(d, kProducts.of[kPairs], kPairs + 1);
    to[(POINTS - 1) * step] = sum(d + 1, kProducts.of[kPairs], kPairs + 1);
    PERFONNX_UNROLL
    for (size_t i = 0; i < kPairs; ++i) {
      const Vec even = sum(d + 2, kProducts.of[i], kPairs);
      const Vec odd = static_cast<float>(kPoints[i]) * sum(d + 1, kProducts.of[i], kPairs);
      to[(2 * i + 1) * step] = even + odd;
      to[(2 * i + 2) * step] = even - odd;
    }
  }

  template <int EDGE>
  static PERFONNX_INLINE void out(const Vec* m, Vec* to, size_t step) {
    Vec outputs[EDGE] = {m[0]};
    PERFONNX_UNROLL
    for (size_t i = 0; i < kPairs; ++i) {
      const Vec both[2] = {m[2 * i + 1] + m[2 * i + 2], m[2 * i + 1] - m[2 * i + 2]};
      double power = 1;
      PERFONNX_UNROLL
      for (size_t k = 0; k < EDGE; ++k, power *= kPoints[i]) outputs[k] += static_cast<float>(power) * both[k % 2];
    }
    outputs[EDGE - 1] += m[POINTS - 1];
    PERFONNX_UNROLL
    for (size_t k = 0; k < EDGE; ++k) to[k * step] = outputs[k];
  }
};

template <int POINTS, int DOWN, bool WHOLE>
PERFONNX_INLINE void winograd_input_vector(const float* const* rows, size_t channel, size_t count, float* to,
                                           size_t point_stride) {
  Vec half[DOWN * POINTS];
  PERFONNX_UNROLL
  for (size_t j = 0; j < POINTS; ++j) {
    Vec d[DOWN];
    PERFONNX_UNROLL
    for (size_t i = 0; i < DOWN; ++i) {
      const float* from = rows[i * POINTS + j] + channel;
      d[i] = WHOLE ? load(from) : load_some(from, count);
    }
    if constexpr (DOWN > 1) {
      Winograd<DOWN>::in(d, half + j, POINTS);
    } else {
      half[j] = d[0];
    }
  }
  PERFONNX_UNROLL
  for (size_t i = 0; i < DOWN; ++i) {
    Vec point[POINTS];
    Winograd<POINTS>::in(half + i * POINTS, point, 1);
    PERFONNX_UNROLL
    for (size_t j = 0; j < POINTS; ++j) store(to + (i * POINTS + j) * point_stride, point[j]);
  }
}

constexpr size_t piece_offset(size_t channel, size_t piece_stride) {
  return channel / kPiece * piece_stride + channel % kPiece;
}

template <int POINTS, int DOWN = POINTS>
void winograd_input(const WinogradInputArgs* args) {
  constexpr size_t kReads = DOWN * POINTS;
  constexpr size_t kSeen = DOWN > 1 ? 2 : 0;  // so many first columns of a square are those of the one before
  const float* const* rows = args->rows;
  for (size_t tile = 0; tile < args->tiles; ++tile, rows += kReads) {
    const float* const* next = tile + 1 < args->tiles ? rows + kReads : rows;
    for (size_t c = args->begin; c < args->end; c += kVector) {
      for (size_t i = 0; i < DOWN; ++i) {
        for (size_t j = kSeen; j < POINTS; ++j) prefetch(next[i * POINTS + j] + c);
      }
      const size_t count = args->end - c;
      float* to = args->points + piece_offset(c, args->piece_stride) + tile * kPiece;
      if (count >= kVector) {
        winograd_input_vector<POINTS, DOWN, true>(rows, c, kVector, to, args->point_stride);
      } else {
        winograd_input_vector<POINTS, DOWN, false>(rows, c, count, to, args->point_stride);
      }
    }
  }
}

template <int POINTS, int EDGE, int DOWN>
PERFONNX_INLINE void winograd_output_vector(const WinogradOutputArgs* args, const float* sums, float* const* out,
                                            const float* const* added, size_t channel, size_t count) {
  constexpr size_t kRows = DOWN > 1 ? EDGE : 1;
  Vec half[kRows * POINTS];
  PERFONNX_UNROLL
  for (size_t j = 0; j < POINTS; ++j) {
    Vec m[DOWN];
    PERFONNX_UNROLL
    for (size_t i = 0; i < DOWN; ++i) m[i] = load(sums + (i * POINTS + j) * args->point_stride);
    if constexpr (DOWN > 1) {
      Winograd<DOWN>::template out<EDGE>(m, half + j, POINTS);
    } else {
      half[j] = m[0];
    }
  }
  const Vec bias = load(args->bias + channel);
  Vec slope = {};
  if (args->act.on != 0) {
    slope =
        args->act.slopes != nullptr ? load_some(args->act.slopes + channel, count) : slope + args->act.negative_slope;
  }
  PERFONNX_UNROLL
  for (size_t i = 0; i < kRows; ++i) {
    Vec sum[EDGE];
    Winograd<POINTS>::template out<EDGE>(half + i * POINTS, sum, 1);
    PERFONNX_UNROLL
    for (size_t j = 0; j < EDGE; ++j) {
      float* to = out[i * EDGE + j];
      if (to == nullptr) continue;
      Vec v = sum[j] + bias;
      if (added != nullptr) v += load_some(added[i * EDGE + j] + channel, count);
      if (args->act.on != 0) v = apply(v, slope, args->act);
      store_some(to + channel, v, count);
    }
  }
}

template <int POINTS, int EDGE, int DOWN = POINTS>
void winograd_output(const WinogradOutputArgs* args) {
  constexpr size_t kWrites = DOWN > 1 ? EDGE * EDGE : EDGE;
  float* const* out = args->out;
  const float* const* added = args->added;
  for (size_t tile = 0; tile < args->tiles; ++tile, out += kWrites) {
    float* const* next = tile + 1 < args->tiles ? out + kWrites : out;
    for (size_t c = args->begin; c < args->end; c += kVector) {
      for (size_t i = 0; i < kWrites; ++i) {
        if (next[i] != nullptr) __builtin_prefetch(next[i] + c, 1, 2);
      }
      const size_t count = args->end - c;
      const float* sums = args->sums + piece_offset(c, args->piece_stride) + tile * kPiece;
      if (count >= kVector) {
        winograd_output_vector<POINTS, EDGE, DOWN>(args, sums, out, added, c, kVector);
      } else {
        winograd_output_vector<POINTS, EDGE, DOWN>(args, sums, out, added, c, count);
      }
    }
    if (added != nullptr) added += kWrites;
  }
}

template <int TILES, int VECTORS>
PERFONNX_INLINE void winograd_multiply(const float* points, size_t count, const float** weights, const float** next,
                                       size_t next_step, Vec (&sum)[TILES][VECTORS]) {
  for (size_t c = 0; c < count; ++c, *weights += kPanel, *next += next_step) {
    prefetch(*next);
    Vec w[VECTORS];
    PERFONNX_UNROLL
    for (size_t v = 0; v < VECTORS; ++v) w[v] = load(*weights + v * kVector);
    PERFONNX_UNROLL
    for (size_t t = 0; t < TILES; ++t) {
      const float x = points[t * kPiece + c];
      PERFONNX_UNROLL
      for (size_t v = 0; v < VECTORS; ++v) sum[t][v] += x * w[v];
    }
  }
}

template <int TILES, int VECTORS>
void winograd_product(const WinogradProductArgs* args) {
  Vec sum[TILES][VECTORS] = {};
  const float* points = args->points;
  const float* weights = args->panel;
  const float* next = args->next;
  size_t left = args->inputs;
  for (; left >= kPiece; left -= kPiece, points += args->piece_stride) {
    winograd_multiply(points, kPiece, &weights, &next, args->next_step, sum);
  }
  if (left > 0) winograd_multiply(points, left, &weights, &next, args->next_step, sum);
  PERFONNX_UNROLL
  for (size_t v = 0; v < VECTORS; ++v) {
    float* to = args->sums + piece_offset(v * kVector, args->sum_piece_stride);
    PERFONNX_UNROLL
    for (size_t t = 0; t < TILES; ++t) store(to + t * kPiece, sum[t][v]);
  }
}

}  // namespace
}  // namespace perfonnx
