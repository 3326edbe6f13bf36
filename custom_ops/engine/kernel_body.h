// The kernels, written once with the vector extensions of GCC and Clang and compiled once per instruction set.
//
// A file that includes this defines
//   PERFONNX_KERNELS      the KernelSet to define, with PERFONNX_ISA_NAME its name;
//   PERFONNX_VECTOR       floats in a vector of this instruction set;
//   PERFONNX_SITE_TILE    sites in a tile, so that 2 * sites accumulators, two weight vectors and (where an instruction
//                         cannot broadcast from memory) an input vector fill the registers.
// Everything here has internal linkage, see kernel_types.h.

#include "engine/kernel_types.h"

namespace perfonnx {
namespace {

constexpr size_t kVector = PERFONNX_VECTOR;
constexpr size_t kPanel = 2 * kVector;
static_assert(PERFONNX_SITE_TILE <= kMaxSiteTile, "the table of tile functions is too small");

typedef float Vec __attribute__((vector_size(PERFONNX_VECTOR * sizeof(float))));
// Rows start at any channel, so loads and stores ask for no alignment.
typedef float UnalignedVec __attribute__((vector_size(PERFONNX_VECTOR * sizeof(float)), aligned(4), may_alias));

#define PERFONNX_INLINE inline __attribute__((always_inline))
// Arrays of vectors stay in registers only where every index is a constant.
#if defined(__clang__)
#define PERFONNX_UNROLL _Pragma("clang loop unroll(full)")
#else
#define PERFONNX_UNROLL _Pragma("GCC unroll 16")
#endif

PERFONNX_INLINE Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
PERFONNX_INLINE void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }

// Into the second cache. Never faults, whatever the address.
PERFONNX_INLINE void prefetch(const float* p) { __builtin_prefetch(p, 0, 2); }
constexpr size_t kLine = 16;  // floats in a line of the cache

// The same for `count` floats, at most a vector; the others are zero.
PERFONNX_INLINE Vec load_some(const float* p, size_t count) {
  if (count >= kVector) return load(p);
  float buffer[kVector];
  for (size_t i = 0; i < kVector; ++i) buffer[i] = i < count ? p[i] : 0.0F;
  return load(buffer);
}
PERFONNX_INLINE void store_some(float* p, Vec v, size_t count) {
  if (count >= kVector) return store(p, v);
  float buffer[kVector];
  store(buffer, v);
  for (size_t i = 0; i < count; ++i) p[i] = buffer[i];
}

struct Act {
  float negative_slope;
  float clip_min;
  float clip_max;
};

// Comparisons with NaN are false, so NaN passes. A slope of zero gives zero also for minus infinity.
PERFONNX_INLINE Vec apply(Vec v, const Act& act) {
  const Vec zero = {};
  const Vec low = zero + act.clip_min;
  const Vec high = zero + act.clip_max;
  const Vec scaled = act.negative_slope == 0.0F ? zero : v * act.negative_slope;
  v = v < zero ? scaled : v;
  v = v < low ? low : v;
  return v > high ? high : v;
}

// SITES x (VECTORS * kVector) outputs, all accumulators in registers. Per input channel: VECTORS loads of weights and,
// per site, one broadcast of the input that feeds VECTORS multiply-adds.
template <bool GATHERED, int SITES, int VECTORS>
void tile(const TileArgs* args) {
  const size_t channels = args->channels;
  const bool whole = channels == VECTORS * kVector;
  float edge[SITES * kPanel];  // stands in for out where the panel has fewer channels than the vectors

  const float* from = args->bias;
  size_t from_stride = 0;
  if (args->accumulate != 0) {
    from = args->out;
    from_stride = args->out_stride;
    if (!whole) {
      for (size_t p = 0; p < SITES; ++p) {
        for (size_t i = 0; i < kPanel; ++i) edge[p * kPanel + i] = i < channels ? from[p * from_stride + i] : 0.0F;
      }
      from = edge;
      from_stride = kPanel;
    }
  }
  Vec sum[SITES][VECTORS];
  PERFONNX_UNROLL
  for (size_t p = 0; p < SITES; ++p) {
    PERFONNX_UNROLL
    for (size_t v = 0; v < VECTORS; ++v) sum[p][v] = load(from + p * from_stride + v * kVector);
  }

  const size_t inputs = args->inputs;
  const float* weights = args->panel;
  if constexpr (GATHERED) {
    const float* x = args->gathered;
    for (size_t k = 0; k < inputs; ++k, ++x, weights += kPanel) {
      Vec w[VECTORS];
      PERFONNX_UNROLL
      for (size_t v = 0; v < VECTORS; ++v) w[v] = load(weights + v * kVector);
      PERFONNX_UNROLL
      for (size_t p = 0; p < SITES; ++p) {
        PERFONNX_UNROLL
        for (size_t v = 0; v < VECTORS; ++v) sum[p][v] += x[p * kGatherStride] * w[v];
      }
    }
  } else {
    const float* const* rows = args->rows;
    const size_t offset = args->offset;
    const float* const* next_rows = args->next_rows;
    for (size_t t = 0; t < args->taps; ++t, rows += SITES) {
      if (next_rows != nullptr) {
        for (size_t p = 0; p < SITES; ++p) {
          for (size_t c = 0; c < inputs; c += kLine) prefetch(next_rows[t * SITES + p] + offset + c);
        }
      }
      const float* row[SITES];
      PERFONNX_UNROLL
      for (size_t p = 0; p < SITES; ++p) row[p] = rows[p] + offset;
      for (size_t c = 0; c < inputs; ++c, weights += kPanel) {
        Vec w[VECTORS];
        PERFONNX_UNROLL
        for (size_t v = 0; v < VECTORS; ++v) w[v] = load(weights + v * kVector);
        PERFONNX_UNROLL
        for (size_t p = 0; p < SITES; ++p) {
          const float x = row[p][c];
          PERFONNX_UNROLL
          for (size_t v = 0; v < VECTORS; ++v) sum[p][v] += x * w[v];
        }
      }
    }
  }

  if (args->added != nullptr) {
    if (!whole) {
      for (size_t p = 0; p < SITES; ++p) {
        const float* added = args->added[p] + args->column;
        for (size_t i = 0; i < kPanel; ++i) edge[p * kPanel + i] = i < channels ? added[i] : 0.0F;
      }
    }
    PERFONNX_UNROLL
    for (size_t p = 0; p < SITES; ++p) {
      const float* added = whole ? args->added[p] + args->column : edge + p * kPanel;
      PERFONNX_UNROLL
      for (size_t v = 0; v < VECTORS; ++v) sum[p][v] += load(added + v * kVector);
    }
  }
  if (args->activate != 0) {
    const Act act = {args->negative_slope, args->clip_min, args->clip_max};
    PERFONNX_UNROLL
    for (size_t p = 0; p < SITES; ++p) {
      PERFONNX_UNROLL
      for (size_t v = 0; v < VECTORS; ++v) sum[p][v] = apply(sum[p][v], act);
    }
  }
  float* to = whole ? args->out : edge;
  const size_t to_stride = whole ? args->out_stride : kPanel;
  PERFONNX_UNROLL
  for (size_t p = 0; p < SITES; ++p) {
    PERFONNX_UNROLL
    for (size_t v = 0; v < VECTORS; ++v) store(to + p * to_stride + v * kVector, sum[p][v]);
  }
  if (!whole) {
    for (size_t p = 0; p < SITES; ++p) {
      for (size_t i = 0; i < channels; ++i) args->out[p * args->out_stride + i] = edge[p * kPanel + i];
    }
  }
}

// Channels lie side by side in the rows and in the weights, so one vector is that many independent convolutions.
void depthwise(const DepthwiseArgs* args) {
  const Act act = {args->negative_slope, args->clip_min, args->clip_max};
  const size_t whole = args->channels / kVector * kVector;
  for (size_t p = 0; p < args->sites; ++p) {
    float* out = args->out + p * args->out_stride;
    for (size_t c = 0; c < whole; c += kVector) {
      Vec sum = load(args->bias + c);
      for (size_t t = 0; t < args->taps; ++t) {
        sum += load(args->rows[t * args->sites + p] + c) * load(args->weights + t * args->weight_stride + c);
      }
      if (args->added != nullptr) sum += load(args->added[p] + c);
      store(out + c, args->activate != 0 ? apply(sum, act) : sum);
    }
    if (whole < args->channels) {
      const size_t left = args->channels - whole;
      Vec sum = load(args->bias + whole);
      for (size_t t = 0; t < args->taps; ++t) {
        const float* from = args->rows[t * args->sites + p] + whole;
        sum += load_some(from, left) * load(args->weights + t * args->weight_stride + whole);
      }
      if (args->added != nullptr) sum += load_some(args->added[p] + whole, left);
      store_some(out + whole, args->activate != 0 ? apply(sum, act) : sum, left);
    }
  }
}

// Pooling of VECTORS vectors of channels, of which `count` channels each are there.
struct Max {
  // A NaN, once met, stays: nothing is greater than it.
  template <int VECTORS>
  static PERFONNX_INLINE void pool(const PoolArgs* args, size_t channel, size_t count) {
    const Vec zero = {};
    Vec best[VECTORS];
    PERFONNX_UNROLL
    for (size_t v = 0; v < VECTORS; ++v) best[v] = zero - __builtin_inff();
    for (size_t k = 0; k < args->count; ++k) {
      const float* row = args->rows[k] + args->offset + channel;
      PERFONNX_UNROLL
      for (size_t v = 0; v < VECTORS; ++v) {
        const Vec x = load_some(row + v * kVector, count);
        best[v] = (x > best[v]) | (x != x) ? x : best[v];
      }
    }
    PERFONNX_UNROLL
    for (size_t v = 0; v < VECTORS; ++v) store_some(args->out + channel + v * kVector, best[v], count);
  }
};

struct Average {
  // Sums of sums: a window of a whole map would lose digits in one long sum.
  template <int VECTORS>
  static PERFONNX_INLINE void pool(const PoolArgs* args, size_t channel, size_t count) {
    constexpr size_t kRun = 64;
    const Vec zero = {};
    Vec total[VECTORS] = {};
    for (size_t begin = 0; begin < args->count; begin += kRun) {
      const size_t end = args->count - begin < kRun ? args->count : begin + kRun;
      Vec sum[VECTORS] = {};
      for (size_t k = begin; k < end; ++k) {
        const float* row = args->rows[k] + args->offset + channel;
        const Vec factor = zero + (args->repeats == nullptr ? 1.0F : args->repeats[k]);
        PERFONNX_UNROLL
        for (size_t v = 0; v < VECTORS; ++v) sum[v] += factor * load_some(row + v * kVector, count);
      }
      PERFONNX_UNROLL
      for (size_t v = 0; v < VECTORS; ++v) total[v] += sum[v];
    }
    PERFONNX_UNROLL
    for (size_t v = 0; v < VECTORS; ++v) {
      store_some(args->out + channel + v * kVector, total[v] / args->divisor, count);
    }
  }
};

template <typename Pool>
void pool(const PoolArgs* args) {
  constexpr size_t kWide = 4 * kVector;
  size_t c = 0;
  for (; c + kWide <= args->channels; c += kWide) Pool::template pool<4>(args, c, kVector);
  for (; c + kVector <= args->channels; c += kVector) Pool::template pool<1>(args, c, kVector);
  if (c < args->channels) Pool::template pool<1>(args, c, args->channels - c);
}

// The first and the second half of a[0], b[0], a[1], b[1], ...
#if PERFONNX_VECTOR == 4
#define PERFONNX_FIRST_HALF 0, 4, 1, 5
#define PERFONNX_SECOND_HALF 2, 6, 3, 7
#elif PERFONNX_VECTOR == 8
#define PERFONNX_FIRST_HALF 0, 8, 1, 9, 2, 10, 3, 11
#define PERFONNX_SECOND_HALF 4, 12, 5, 13, 6, 14, 7, 15
#else
#define PERFONNX_FIRST_HALF 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define PERFONNX_SECOND_HALF 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#endif
#if defined(__clang__) || __GNUC__ >= 12
#define PERFONNX_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int IntVec __attribute__((vector_size(PERFONNX_VECTOR * sizeof(int))));
#define PERFONNX_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, IntVec{__VA_ARGS__})
#endif

// Each round shuffles all elements as one deck of cards; log2(kVector) rounds exchange rows and columns.
PERFONNX_INLINE void transpose(Vec (&v)[kVector]) {
  PERFONNX_UNROLL
  for (size_t round = 1; round < kVector; round *= 2) {
    Vec next[kVector];
    PERFONNX_UNROLL
    for (size_t i = 0; i < kVector / 2; ++i) {
      next[2 * i] = PERFONNX_SHUFFLE(v[i], v[i + kVector / 2], PERFONNX_FIRST_HALF);
      next[2 * i + 1] = PERFONNX_SHUFFLE(v[i], v[i + kVector / 2], PERFONNX_SECOND_HALF);
    }
    PERFONNX_UNROLL
    for (size_t i = 0; i < kVector; ++i) v[i] = next[i];
  }
}

void turn(const TurnArgs* args) {
  constexpr size_t kFew = kVector / 4 + 1;  // so few are cheaper to move one by one
  const size_t stride = args->to_stride;
  size_t i = 0;
  for (; args->lines - i > kFew; i += kVector) {
    const size_t lines = args->lines - i < kVector ? args->lines - i : kVector;
    const float* from[kVector];
    for (size_t l = 0; l < kVector; ++l) from[l] = args->from[i + (l < lines ? l : 0)] + args->offset;
    float* to = args->to + i;
    size_t j = 0;
    for (; j + kVector <= args->length; j += kVector, to += kVector * stride) {
      Vec v[kVector];
      PERFONNX_UNROLL
      for (size_t l = 0; l < kVector; ++l) v[l] = load(from[l] + j);
      transpose(v);
      if (lines == kVector) {
        PERFONNX_UNROLL
        for (size_t l = 0; l < kVector; ++l) store(to + l * stride, v[l]);
      } else {
        for (size_t l = 0; l < kVector; ++l) store_some(to + l * stride, v[l], lines);
      }
    }
    for (; j < args->length; ++j, to += stride) {
      for (size_t l = 0; l < lines; ++l) to[l] = from[l][j];
    }
    if (lines < kVector) return;
  }
  for (; i < args->lines; ++i) {
    const float* from = args->from[i] + args->offset;
    for (size_t j = 0; j < args->length; ++j) args->to[j * stride + i] = from[j];
  }
}

// Four sites at a time, so that four sums run side by side.
template <int SITES>
PERFONNX_INLINE void gate_sites(const GateArgs* args, size_t first) {
  const size_t whole = args->channels / kVector * kVector;
  const float* const* rows = args->rows + first;
  Vec sum[SITES] = {};
  for (size_t c = 0; c < whole; c += kVector) {
    const Vec w = load(args->weights + c);
    PERFONNX_UNROLL
    for (size_t p = 0; p < SITES; ++p) sum[p] += load(rows[p] + c) * w;
  }
  if (whole < args->channels) {
    const Vec w = load(args->weights + whole);
    for (size_t p = 0; p < SITES; ++p) sum[p] += load_some(rows[p] + whole, args->channels - whole) * w;
  }
  for (size_t p = 0; p < SITES; ++p) {
    float lane[kVector];
    store(lane, sum[p]);
    PERFONNX_UNROLL
    for (size_t half = kVector / 2; half > 0; half /= 2) {
      for (size_t i = 0; i < half; ++i) lane[i] += lane[i + half];
    }
    float alpha = lane[0] + args->bias;
    alpha = alpha < 0.0F ? 0.0F : alpha;
    args->out[first + p] = alpha > 1.0F ? 1.0F : alpha;
  }
}

void gate(const GateArgs* args) {
  size_t p = 0;
  for (; p + 4 <= args->sites; p += 4) gate_sites<4>(args, p);
  for (; p < args->sites; ++p) gate_sites<1>(args, p);
}

// One vector of the sum, of which `count` channels are there.
PERFONNX_INLINE Vec radius_sum_vector(const RadiusSumArgs* args, size_t site, size_t channel, size_t count) {
  const Vec zero = {};
  const float alpha = args->alpha[site];
  Vec sum = load_some(args->centre + site * args->channels + channel, count);
  if (args->bias != nullptr) {
    sum = sum * (zero + (1.0F + args->center_gain * alpha)) + load_some(args->bias + channel, count);
  }
  const int row = args->ring_row[site];
  if (row >= 0) {
    sum += (zero + alpha) * load_some(args->ring + static_cast<size_t>(row) * args->channels + channel, count);
  }
  if (args->activate == 0) return sum;
  return apply(sum, Act{args->negative_slope, args->clip_min, args->clip_max});
}

void radius_sum(const RadiusSumArgs* args) {
  const size_t whole = args->channels / kVector * kVector;
  const size_t left = args->channels - whole;
  for (size_t p = 0; p < args->sites; ++p) {
    float* out = args->out + p * args->channels;
    for (size_t c = 0; c < whole; c += kVector) store(out + c, radius_sum_vector(args, p, c, kVector));
    if (left > 0) store_some(out + whole, radius_sum_vector(args, p, whole, left), left);
  }
}

// Tiles that the instruction set does not use have no function.
template <bool GATHERED, int SITES, int VECTORS>
constexpr TileFunction tile_or_null() {
  if constexpr (SITES <= PERFONNX_SITE_TILE) {
    return tile<GATHERED, SITES, VECTORS>;
  } else {
    return nullptr;
  }
}

#define PERFONNX_TILES(g, v)                                                                               \
  {tile_or_null<g, 1, v>(),  tile_or_null<g, 2, v>(),  tile_or_null<g, 3, v>(),  tile_or_null<g, 4, v>(),  \
   tile_or_null<g, 5, v>(),  tile_or_null<g, 6, v>(),  tile_or_null<g, 7, v>(),  tile_or_null<g, 8, v>(),  \
   tile_or_null<g, 9, v>(),  tile_or_null<g, 10, v>(), tile_or_null<g, 11, v>(), tile_or_null<g, 12, v>(), \
   tile_or_null<g, 13, v>(), tile_or_null<g, 14, v>(), tile_or_null<g, 15, v>(), tile_or_null<g, 16, v>()}

}  // namespace

// Constant initialisation: no code of this file runs before it is chosen.
extern constexpr KernelSet PERFONNX_KERNELS = {PERFONNX_ISA_NAME,
                                               kVector,
                                               kPanel,
                                               PERFONNX_SITE_TILE,
                                               {PERFONNX_TILES(false, 1), PERFONNX_TILES(false, 2)},
                                               {PERFONNX_TILES(true, 1), PERFONNX_TILES(true, 2)},
                                               depthwise,
                                               pool<Max>,
                                               pool<Average>,
                                               turn,
                                               gate,
                                               radius_sum};

}  // namespace perfonnx
