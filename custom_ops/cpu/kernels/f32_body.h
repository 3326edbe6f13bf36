// The kernels, written once with the vector extensions of GCC and Clang and compiled once per instruction set.
//
// A file that includes this defines
//   PERFONNX_KERNELS      the F32Kernels to define;
//   PERFONNX_VECTOR       floats in a vector of this instruction set;
//   PERFONNX_SITE_TILE    sites in a tile, so that 2 * sites accumulators, two weight vectors and (where an instruction
//                         cannot broadcast from memory) an input vector fill the registers.
// Everything here has internal linkage, see f32.h.

#include "cpu/kernels/f32.h"

#if defined(__AVX2__)
#include <immintrin.h>  // only what is always inlined
#endif

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

// What `sites` sites read that come after the `sites` sites from `row` on, far enough for memory to answer in time.
constexpr size_t kAhead = 1024;
PERFONNX_INLINE void prefetch_ahead(const float* row, size_t sites, ptrdiff_t stride, size_t inputs) {
  if (stride <= 0) return;
  const auto step = static_cast<size_t>(stride);
  row += sites * step > kAhead ? sites * step : kAhead;
  if (step <= inputs) {  // one piece
    row += inputs - step;
    for (size_t i = 0; i < sites * step; i += kLine) prefetch(row + i);
    return;
  }
  for (size_t p = 0; p < sites; ++p, row += step) {
    for (size_t i = 0; i < inputs; i += kLine) prefetch(row + i);
  }
}

// The same for `count` floats, at most a vector; the others are zero.
PERFONNX_INLINE Vec load_some(const float* p, size_t count) {
  if (count >= kVector) return load(p);
#if PERFONNX_VECTOR == 16
  return reinterpret_cast<Vec>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1U << count) - 1), p));
#elif PERFONNX_VECTOR == 8
  static constexpr int kMask[2 * kVector] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
  const void* mask = kMask + kVector - count;
  return reinterpret_cast<Vec>(_mm256_maskload_ps(p, _mm256_loadu_si256(static_cast<const __m256i*>(mask))));
#else
  float buffer[kVector];
  for (size_t i = 0; i < kVector; ++i) buffer[i] = i < count ? p[i] : 0.0F;
  return load(buffer);
#endif
}
PERFONNX_INLINE void store_some(float* p, Vec v, size_t count) {
  if (count >= kVector) return store(p, v);
#if PERFONNX_VECTOR == 16
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1U << count) - 1), reinterpret_cast<__m512>(v));
#else  // the masked store of AVX2 takes some processors longer than a few plain ones
  float buffer[kVector];
  store(buffer, v);
  const float* from = buffer;
  for (size_t piece = kVector / 2; piece > 0; piece /= 2) {
    if ((count & piece) == 0) continue;
    __builtin_memcpy(p, from, piece * sizeof(float));
    p += piece;
    from += piece;
  }
#endif
}

PERFONNX_INLINE bool any_nan(Vec v) {
#if PERFONNX_VECTOR == 16
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(v), reinterpret_cast<__m512>(v), _CMP_UNORD_Q) != 0;
#elif PERFONNX_VECTOR == 8
  const auto x = reinterpret_cast<__m256>(v);
  return _mm256_movemask_ps(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)) != 0;
#else
  bool found = false;
  for (size_t i = 0; i < kVector; ++i) found |= v[i] != v[i];
  return found;
#endif
}

// Comparisons with NaN are false, so NaN passes.
PERFONNX_INLINE Vec clip(Vec v, const Act& act) {
  const Vec zero = {};
  const Vec low = zero + act.clip_min;
  const Vec high = zero + act.clip_max;
  v = v < low ? low : v;
  return v > high ? high : v;
}
// A slope of zero gives zero also for minus infinity.
PERFONNX_INLINE Vec apply(Vec v, const Act& act) {
  const Vec zero = {};
  const Vec scaled = act.negative_slope == 0.0F ? zero : v * act.negative_slope;
  return clip(v < zero ? scaled : v, act);
}
// With a slope for each channel.
PERFONNX_INLINE Vec apply(Vec v, Vec slope, const Act& act) {
  const Vec zero = {};
  const Vec scaled = slope == zero ? zero : v * slope;
  return clip(v < zero ? scaled : v, act);
}

// A tile: SITES x (VECTORS * kVector) outputs, all accumulators in registers. Per input channel: VECTORS loads of
// weights and, per site, one broadcast of the input that feeds VECTORS multiply-adds.

// The sums of a tile, started.
template <int SITES, int VECTORS>
PERFONNX_INLINE void start(const TileArgs* args, const float* out, size_t last, Vec (&sum)[SITES][VECTORS]) {
  if (args->accumulate == 0) {
    Vec bias[VECTORS];
    PERFONNX_UNROLL
    for (size_t v = 0; v < VECTORS; ++v) bias[v] = load(args->bias + v * kVector);
    PERFONNX_UNROLL
    for (size_t p = 0; p < SITES; ++p) {
      PERFONNX_UNROLL
      for (size_t v = 0; v < VECTORS; ++v) sum[p][v] = bias[v];
    }
  } else {
    PERFONNX_UNROLL
    for (size_t p = 0; p < SITES; ++p) {
      PERFONNX_UNROLL
      for (size_t v = 0; v < VECTORS; ++v) {
        sum[p][v] = load_some(out + p * args->out_stride + v * kVector, v + 1 < VECTORS ? kVector : last);
      }
    }
  }
}

// The sums of a tile, finished: what is added, the activation, and out with them.
template <int SITES, int VECTORS>
PERFONNX_INLINE void finish(const TileArgs* args, const float* const* added, float* out, size_t last,
                            Vec (&sum)[SITES][VECTORS]) {
  if (added != nullptr) {
    PERFONNX_UNROLL
    for (size_t p = 0; p < SITES; ++p) {
      const float* row = added[p] + args->column;
      PERFONNX_UNROLL
      for (size_t v = 0; v < VECTORS; ++v) {
        sum[p][v] += load_some(row + v * kVector, v + 1 < VECTORS ? kVector : last);
      }
    }
  }
  if (args->act.on != 0) {
    if (args->act.slopes == nullptr) {
      PERFONNX_UNROLL
      for (size_t p = 0; p < SITES; ++p) {
        PERFONNX_UNROLL
        for (size_t v = 0; v < VECTORS; ++v) sum[p][v] = apply(sum[p][v], args->act);
      }
    } else {
      PERFONNX_UNROLL
      for (size_t v = 0; v < VECTORS; ++v) {
        const Vec slope = load_some(args->act.slopes + args->column + v * kVector, v + 1 < VECTORS ? kVector : last);
        PERFONNX_UNROLL
        for (size_t p = 0; p < SITES; ++p) sum[p][v] = apply(sum[p][v], slope, args->act);
      }
    }
  }
  const bool whole = last == kVector;
  PERFONNX_UNROLL
  for (size_t p = 0; p < SITES; ++p, out += args->out_stride) {
    PERFONNX_UNROLL
    for (size_t v = 0; v + 1 < VECTORS; ++v) store(out + v * kVector, sum[p][v]);
    float* end = out + (VECTORS - 1) * kVector;
    if (whole) {
      store(end, sum[p][VECTORS - 1]);
    } else {
      store_some(end, sum[p][VECTORS - 1], last);
    }
  }
}

// Adds the products of `count` inputs of each site, at row[p], with the weights, which move on.
template <int SITES, int VECTORS>
PERFONNX_INLINE void multiply(const float* const (&row)[SITES], size_t count, const float** weights,
                              Vec (&sum)[SITES][VECTORS]) {
  const float* from = *weights;
  for (size_t c = 0; c < count; ++c, from += kPanel) {
    Vec w[VECTORS];
    PERFONNX_UNROLL
    for (size_t v = 0; v < VECTORS; ++v) w[v] = load(from + v * kVector);
    PERFONNX_UNROLL
    for (size_t p = 0; p < SITES; ++p) {
      const float x = row[p][c];
      PERFONNX_UNROLL
      for (size_t v = 0; v < VECTORS; ++v) sum[p][v] += x * w[v];
    }
  }
  *weights = from;
}

// Channels of the last vector: it may have fewer than there is room for.
template <int VECTORS>
PERFONNX_INLINE size_t last_channels(const TileArgs* args) {
  return args->channels - (VECTORS - 1) * kVector;
}

// Sites in a line: several tiles, one behind the other.
template <int SITES, int VECTORS>
void strided_tiles(const TileArgs* args) {
  const size_t last = last_channels<VECTORS>(args);
  const Segment* const end = args->segments + args->segment_count;
  const Segment* const ahead = args->segments + args->ahead;
  const float* const* added = args->added;
  float* out = args->out;
  for (size_t tile = 0; tile < args->tiles; ++tile) {
    Vec sum[SITES][VECTORS];
    start(args, out, last, sum);
    const float* weights = args->panel;
    const auto first = static_cast<ptrdiff_t>(tile * SITES);
    if (ahead != end) {
      prefetch_ahead(ahead->base + args->offset + first * ahead->stride, SITES, ahead->stride, ahead->inputs);
    }
    for (const Segment* segment = args->segments; segment != end; ++segment) {
      const ptrdiff_t stride = segment->stride;
      const float* base = segment->base + args->offset + first * stride;
      const float* row[SITES];
      PERFONNX_UNROLL
      for (size_t p = 0; p < SITES; ++p) row[p] = base + static_cast<ptrdiff_t>(p) * stride;
      multiply(row, segment->inputs, &weights, sum);
    }
    finish(args, added, out, last, sum);
    out += SITES * args->out_stride;
    if (added != nullptr) added += SITES;
  }
}

// Sites anywhere.
template <int SITES, int VECTORS>
void direct_tile(const TileArgs* args) {
  const size_t last = last_channels<VECTORS>(args);
  Vec sum[SITES][VECTORS];
  start(args, args->out, last, sum);
  const float* weights = args->panel;
  const float* const* rows = args->rows;
  const float* const* next_rows = args->next_rows;
  for (size_t t = 0; t < args->taps; ++t, rows += SITES) {
    if (next_rows != nullptr) {
      for (size_t p = 0; p < SITES; ++p) {
        for (size_t c = 0; c < args->inputs; c += kLine) prefetch(next_rows[t * SITES + p] + args->offset + c);
      }
    }
    const float* row[SITES];
    PERFONNX_UNROLL
    for (size_t p = 0; p < SITES; ++p) row[p] = rows[p] + args->offset;
    multiply(row, args->inputs, &weights, sum);
  }
  finish(args, args->added, args->out, last, sum);
}

// Adds the products of one input of each site, which was copied, with the weights.
template <int SITES, int VECTORS>
PERFONNX_INLINE void multiply_gathered(const float* x, const float* weights, Vec (&sum)[SITES][VECTORS]) {
  Vec w[VECTORS];
  PERFONNX_UNROLL
  for (size_t v = 0; v < VECTORS; ++v) w[v] = load(weights + v * kVector);
  PERFONNX_UNROLL
  for (size_t p = 0; p < SITES; ++p) {
    PERFONNX_UNROLL
    for (size_t v = 0; v < VECTORS; ++v) sum[p][v] += x[p * kGatherStride] * w[v];
  }
}

// Inputs that were copied.
template <int SITES, int VECTORS>
void gathered_tile(const TileArgs* args) {
  const size_t last = last_channels<VECTORS>(args);
  Vec sum[SITES][VECTORS];
  start(args, args->out, last, sum);
  const float* weights = args->panel;
  const float* x = args->gathered;
  for (size_t k = 0; k < args->inputs; ++k, ++x, weights += kPanel) multiply_gathered(x, weights, sum);
  finish(args, args->added, args->out, last, sum);
}

// The same of those that are listed.
constexpr size_t kListedWidth = kPanel < size_t{kListedPanel} ? kPanel : size_t{kListedPanel};
template <int SITES, int VECTORS>
void listed_tile(const TileArgs* args) {
  const size_t last = last_channels<VECTORS>(args);
  Vec sum[SITES][VECTORS];
  start(args, args->out, last, sum);
  const float* weights = args->panel;
  for (size_t k = 0; k < args->inputs; ++k, weights += kListedWidth) {
    multiply_gathered(args->gathered + args->listed[k], weights, sum);
  }
  finish(args, args->added, args->out, last, sum);
}

// Adds TAPS taps, of which each reads what the one before reads at the next site.
template <int TAPS, int SITES, bool WHOLE>
PERFONNX_INLINE void depthwise_line(const float* from, ptrdiff_t stride, const float* weights, size_t weight_stride,
                                    size_t count, Vec (&sum)[SITES]) {
  Vec w[TAPS];
  PERFONNX_UNROLL
  for (size_t t = 0; t < TAPS; ++t) w[t] = load(weights + t * weight_stride);
  PERFONNX_UNROLL
  for (size_t i = 0; i < SITES + TAPS - 1; ++i, from += stride) {
    const Vec x = WHOLE ? load(from) : load_some(from, count);
    PERFONNX_UNROLL
    for (size_t t = 0; t < TAPS; ++t) {
      if (i >= t && i - t < SITES) sum[i - t] += x * w[t];
    }
  }
}

// Channels lie side by side in the rows and in the weights, so one vector is that many independent convolutions. SITES
// of them share each load of the weights. `count` channels are there.
template <int SITES, bool WHOLE>
PERFONNX_INLINE void depthwise_vector(const DepthwiseArgs* args, size_t site, size_t channel, size_t count) {
  Vec sum[SITES];
  const Vec bias = load(args->bias + channel);
  PERFONNX_UNROLL
  for (size_t p = 0; p < SITES; ++p) sum[p] = bias;
  const float* weights = args->weights + channel;
  for (size_t t = 0; t < args->taps; ++t, weights += args->weight_stride) {
    const ptrdiff_t stride = args->segments[t].stride;
    const float* from = args->segments[t].base + static_cast<ptrdiff_t>(site) * stride + channel;
    const int line = SITES > 1 ? args->segments[t].line : 0;
    if (line != 0) {
      if (line == 3) {
        depthwise_line<3, SITES, WHOLE>(from, stride, weights, args->weight_stride, count, sum);
      } else {
        depthwise_line<5, SITES, WHOLE>(from, stride, weights, args->weight_stride, count, sum);
      }
      const auto more = static_cast<size_t>(line - 1);
      t += more;
      weights += more * args->weight_stride;
      continue;
    }
    const Vec w = load(weights);
    PERFONNX_UNROLL
    for (size_t p = 0; p < SITES; ++p, from += stride) sum[p] += (WHOLE ? load(from) : load_some(from, count)) * w;
  }
  if (args->added != nullptr) {
    PERFONNX_UNROLL
    for (size_t p = 0; p < SITES; ++p) sum[p] += load_some(args->added[site + p] + channel, count);
  }
  if (args->act.on != 0) {
    if (args->act.slopes == nullptr) {
      PERFONNX_UNROLL
      for (size_t p = 0; p < SITES; ++p) sum[p] = apply(sum[p], args->act);
    } else {
      const Vec slope = load_some(args->act.slopes + channel, count);
      PERFONNX_UNROLL
      for (size_t p = 0; p < SITES; ++p) sum[p] = apply(sum[p], slope, args->act);
    }
  }
  float* out = args->out + site * args->out_stride + channel;
  PERFONNX_UNROLL
  for (size_t p = 0; p < SITES; ++p, out += args->out_stride) {
    if constexpr (WHOLE) {
      store(out, sum[p]);
    } else {
      store_some(out, sum[p], count);
    }
  }
}

template <int SITES>
PERFONNX_INLINE void depthwise_sites(const DepthwiseArgs* args, size_t site) {
  size_t c = 0;
  for (; c + kVector <= args->channels; c += kVector) depthwise_vector<SITES, true>(args, site, c, kVector);
  if (c < args->channels) depthwise_vector<SITES, false>(args, site, c, args->channels - c);
}

void depthwise(const DepthwiseArgs* args) {
  const Segment* const ahead = args->ahead < args->taps ? args->segments + args->ahead : nullptr;
  size_t p = 0;
  for (; p + 8 <= args->sites; p += 8) {
    if (ahead != nullptr) {
      const float* row = ahead->base + static_cast<ptrdiff_t>(p) * ahead->stride;
      prefetch_ahead(row, 8, ahead->stride, args->channels);
    }
    depthwise_sites<8>(args, p);
  }
  if (p + 4 <= args->sites) {
    depthwise_sites<4>(args, p);
    p += 4;
  }
  for (; p < args->sites; ++p) depthwise_sites<1>(args, p);
}

// Pooling of VECTORS vectors of channels, of which `count` channels each are there.
struct Max {
  // A NaN has to be the result, and no comparison finds it; but it stays in a sum, which takes less time than to ask
  // each value. A sum is also NaN where infinities of both signs meet.
  template <int VECTORS>
  static PERFONNX_INLINE void pool(const PoolArgs* args, size_t channel, size_t count) {
    const Vec zero = {};
    Vec best[VECTORS];
    Vec sum[VECTORS] = {};
    PERFONNX_UNROLL
    for (size_t v = 0; v < VECTORS; ++v) best[v] = zero - __builtin_inff();
    for (size_t k = 0; k < args->count; ++k) {
      const float* row = args->rows[k] + args->offset + channel;
      PERFONNX_UNROLL
      for (size_t v = 0; v < VECTORS; ++v) {
        const Vec x = load_some(row + v * kVector, count);
        best[v] = x > best[v] ? x : best[v];
        sum[v] += x;
      }
    }
    PERFONNX_UNROLL
    for (size_t v = 1; v < VECTORS; ++v) sum[0] += sum[v];
    const bool suspect = any_nan(sum[0]);
    PERFONNX_UNROLL
    for (size_t v = 0; v < VECTORS; ++v) {
      if (suspect) best[v] = careful(args, channel + v * kVector, count);
      store_some(args->out + channel + v * kVector, best[v], count);
    }
  }

 private:
  // A NaN, once met, stays: nothing is greater than it.
  static __attribute__((noinline)) Vec careful(const PoolArgs* args, size_t channel, size_t count) {
    const Vec zero = {};
    Vec best = zero - __builtin_inff();
    for (size_t k = 0; k < args->count; ++k) {
      const Vec x = load_some(args->rows[k] + args->offset + channel, count);
      best = (x > best) | (x != x) ? x : best;
    }
    return best;
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
  if (args->act.on == 0) return sum;
  return args->act.slopes == nullptr ? apply(sum, args->act)
                                     : apply(sum, load_some(args->act.slopes + channel, count), args->act);
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

}  // namespace
}  // namespace perfonnx

#include "cpu/kernels/f32_winograd_body.h"

namespace perfonnx {
namespace {

// Tiles that the instruction set does not use have no function.
#define PERFONNX_TILE_OR_NULL(kind, function, width)                           \
  template <int SITES, int VECTORS>                                            \
  constexpr function kind##_or_null() {                                        \
    if constexpr (SITES <= PERFONNX_SITE_TILE && VECTORS * kVector <= width) { \
      return kind<SITES, VECTORS>;                                             \
    } else {                                                                   \
      return nullptr;                                                          \
    }                                                                          \
  }
PERFONNX_TILE_OR_NULL(strided_tiles, TileFunction, kPanel)
PERFONNX_TILE_OR_NULL(direct_tile, TileFunction, kPanel)
PERFONNX_TILE_OR_NULL(gathered_tile, TileFunction, kPanel)
PERFONNX_TILE_OR_NULL(listed_tile, TileFunction, kListedWidth)
PERFONNX_TILE_OR_NULL(winograd_product, WinogradProductFunction, kPanel)

#define PERFONNX_TILES(kind, v)                                                                        \
  {kind##_or_null<1, v>(),  kind##_or_null<2, v>(),  kind##_or_null<3, v>(),  kind##_or_null<4, v>(),  \
   kind##_or_null<5, v>(),  kind##_or_null<6, v>(),  kind##_or_null<7, v>(),  kind##_or_null<8, v>(),  \
   kind##_or_null<9, v>(),  kind##_or_null<10, v>(), kind##_or_null<11, v>(), kind##_or_null<12, v>(), \
   kind##_or_null<13, v>(), kind##_or_null<14, v>(), kind##_or_null<15, v>(), kind##_or_null<16, v>()}

}  // namespace

// Constant initialisation: no code of this file runs before it is chosen.
extern constexpr F32Kernels PERFONNX_KERNELS = {
    kVector,
    kPanel,
    PERFONNX_SITE_TILE,
    {PERFONNX_TILES(strided_tiles, 1), PERFONNX_TILES(strided_tiles, 2)},
    {PERFONNX_TILES(direct_tile, 1), PERFONNX_TILES(direct_tile, 2)},
    {PERFONNX_TILES(gathered_tile, 1), PERFONNX_TILES(gathered_tile, 2)},
    {PERFONNX_TILES(listed_tile, 1), PERFONNX_TILES(listed_tile, 2)},
    depthwise,
    pool<Max>,
    pool<Average>,
    turn,
    gate,
    radius_sum,
    {winograd_input<6>, winograd_input<4>, winograd_input<6>, winograd_input<4>, winograd_input<6>,
     winograd_input<6, 1>, winograd_input<8, 1>, winograd_input<10, 1>},
    {winograd_output<6, 5>, winograd_output<4, 3>, winograd_output<6, 4>, winograd_output<4, 2>, winograd_output<6, 2>,
     winograd_output<6, 4, 1>, winograd_output<8, 4, 1>, winograd_output<10, 4, 1>},
    {PERFONNX_TILES(winograd_product, 1), PERFONNX_TILES(winograd_product, 2)}};

}  // namespace perfonnx
