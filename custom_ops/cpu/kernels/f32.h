// The boundary between common code and the code compiled per instruction set.
//
// Plain data and function pointers only. The files compiled per instruction set include this header and nothing else:
// an inline function or a template of the standard library, compiled there with AVX-512, could be the copy that the
// linker keeps for the whole library, and then a machine without AVX-512 would crash in it.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace perfonnx {

// Gathered inputs: at most kGatherDepth floats a site. Their distance is a constant, so that a kernel needs one pointer
// for all sites of a tile, and no multiple of 4096 bytes, so that the sites use different sets of the first cache.
enum { kGatherDepth = 512, kGatherStride = kGatherDepth + 16 };

// Most output channels of a panel that has a list of the inputs that it reads.
enum { kListedPanel = 16 };

// Inputs of sites that lie a constant distance apart: site p reads `inputs` floats from base + p * stride on.
struct Segment {
  const float* base;
  ptrdiff_t stride;
  size_t inputs;
  int line;  // depthwise: so many segments from this one on each read what the one before reads at the next site; or 0
};

// An activation: min(max(v < 0 ? slope * v : v, clip_min), clip_max).
struct Act {
  int on;  // 0: none, and nothing else is read
  float negative_slope;
  const float* slopes;  // of all output channels, instead of negative_slope; null: none
  float clip_min;
  float clip_max;
};

// One tile of the sampled product: `sites` rows of output times one panel of `channels` output channels, over a slice
// of the sum over taps and input channels. The inputs are read where they are (`segments`, or `rows` where the sites do
// not lie in a line) or were copied (`gathered`).
struct TileArgs {
  const Segment* segments;  // [segment_count]: together the taps and channels of the slice, in their order
  size_t segment_count;
  size_t tiles;              // of segments: so many tiles, each where the last one ends
  size_t ahead;              // number of the segment of which to bring later sites near meanwhile, or segment_count
  const float* const* rows;  // [taps][sites]: first input channel of the tap, for each tap and site
  const float* gathered;     // [sites][kGatherStride], of which `inputs` floats each are used:
  const uint16_t* listed;    // [inputs] those at these places, or, where there is no list, the first ones
  size_t taps;
  size_t offset;                  // added to every row pointer and base: first input channel of the group
  size_t inputs;                  // input channels in the block
  const float* panel;             // weights [taps][inputs][panel width], at the first tap and channel of the block;
                                  // of listed inputs [inputs][width of such a panel]
  const float* bias;              // [panel width]
  float* out;                     // [sites][out_stride]
  size_t out_stride;              // floats
  size_t channels;                // output channels to store, at most the panel width
  const float* const* added;      // [sites] rows to add to the finished sums, before the activation; null: none
  size_t column;                  // first output channel of the panel, added to every such pointer and to slopes
  const float* const* next_rows;  // like rows, of a tile to bring near meanwhile; null: none
  int accumulate;                 // start from out instead of bias
  Act act;
};

// Depthwise: out[p, c] = bias[c] + sum over taps of (base[t] + p * stride[t])[c] * weights[t][c].
struct DepthwiseArgs {
  const Segment* segments;  // [taps]
  size_t taps;
  size_t ahead;  // number of the segment of which to bring later sites near meanwhile, or taps
  size_t sites;
  const float* weights;  // [taps][weight_stride], padded to a whole number of vectors
  size_t weight_stride;
  const float* bias;  // [weight_stride]
  float* out;
  size_t out_stride;
  size_t channels;
  const float* const* added;  // [sites] rows to add before the activation; null: none
  Act act;
};

// One pooled row: out[c] = max over k of rows[k][offset + c], or sum over k of repeats[k] * rows[k][offset + c],
// divided.
struct PoolArgs {
  const float* const* rows;  // [count]
  const float* repeats;      // [count], of averages; null: all ones
  size_t count;
  size_t offset;  // added to every row pointer: first channel
  size_t channels;
  float divisor;  // of averages
  float* out;     // [channels]
};

// Lines turned into columns: to[j * to_stride + i] = from[i][offset + j] for i < lines and j < length.
struct TurnArgs {
  const float* const* from;  // [lines]
  size_t offset;
  size_t lines;
  size_t length;
  float* to;
  size_t to_stride;
};

// Gates: out[p] = bias + sum over channels of rows[p][c] * weights[c], clipped to 0 and 1; NaN stays.
struct GateArgs {
  const float* const* rows;  // [sites]
  size_t sites;
  const float* weights;  // [channels], padded with zeros to a whole number of vectors
  size_t channels;
  float bias;
  float* out;  // [sites]
};

// Winograd's algorithm. Points, and the sums over their channels, lie in pieces of kPiece channels: the piece of
// channels c to c + kPiece of point i of tile t is at i * point_stride + c / kPiece * piece_stride + t * kPiece. What a
// product reads of several tiles is thus one piece of memory.
enum { kPiece = 16 };

// What it makes of inputs are the values of polynomials at 0, at infinity and at these numbers with both signs: four
// points, six, eight and ten. The errors of six are a quarter of those with the usual 1 and 2, for two more operations.
constexpr double kWinogradPoints[][4] = {
    {1}, {0.70710678118654752440, 1.41421356237309504880}, {.5, 1, 2}, {.4, .8, 1.25, 2.5}};

// Tiles of 5 x 5 and of 3 x 3 outputs of 2x2 kernels, of 4 x 4 and of 2 x 2 of 3x3 ones, of 2 x 2 of 5x5 ones; of 4 in
// a line of kernels of 3, 5 and 7 taps in a line.
enum WinogradForm {
  kSquare5Of2,
  kSquare3Of2,
  kSquare4Of3,
  kSquare2Of3,
  kSquare2Of5,
  kLine4Of3,
  kLine4Of5,
  kLine4Of7,
  kWinogradForms
};

// The inputs of tiles, each turned into as many points.
struct WinogradInputArgs {
  const float* const* rows;  // [tiles][points]
  size_t tiles;
  size_t begin;  // first channel, that of a piece
  size_t end;
  float* points;        // of the first tile and channel 0
  size_t point_stride;  // floats
  size_t piece_stride;
};

// The sums of all points of tiles turned into their outputs: plus bias, plus what is added, activated.
struct WinogradOutputArgs {
  const float* sums;  // of the first tile and channel 0
  size_t point_stride;
  size_t piece_stride;
  size_t tiles;
  size_t begin;  // first channel, that of a piece
  size_t end;
  const float* bias;          // [outputs], padded to whole vectors
  float* const* out;          // [tiles][outputs of a tile] rows; null: nobody wants it
  const float* const* added;  // [tiles][outputs of a tile] rows; null: none
  Act act;
};

// One point of some tiles times a panel of weights.
struct WinogradProductArgs {
  const float* points;  // of the first tile
  size_t piece_stride;
  size_t inputs;
  const float* panel;  // [inputs][panel width]
  float* sums;         // of the first tile and channel
  size_t sum_piece_stride;
  const float* next;  // to bring near meanwhile, next_step floats on for each input
  size_t next_step;
};

// The sum of the radius-adaptive convolution, row by row:
//   out[p] = act((1 + center_gain * alpha[p]) * centre[p] + bias + alpha[p] * ring[ring_row[p]])
// without its last term where ring_row[p] is -1.
struct RadiusSumArgs {
  const float* centre;  // [sites][channels]
  const float* ring;    // [*][channels]
  const int* ring_row;  // [sites]
  const float* alpha;   // [sites]
  const float* bias;    // [channels]; null: none, and center_gain is taken for 0
  size_t sites;
  size_t channels;
  float center_gain;
  float* out;  // [sites][channels]
  Act act;
};

typedef void (*TileFunction)(const TileArgs*);
typedef void (*DepthwiseFunction)(const DepthwiseArgs*);
typedef void (*PoolFunction)(const PoolArgs*);
typedef void (*TurnFunction)(const TurnArgs*);
typedef void (*GateFunction)(const GateArgs*);
typedef void (*RadiusSumFunction)(const RadiusSumArgs*);
typedef void (*WinogradInputFunction)(const WinogradInputArgs*);
typedef void (*WinogradOutputFunction)(const WinogradOutputArgs*);
typedef void (*WinogradProductFunction)(const WinogradProductArgs*);

enum { kMaxSiteTile = 16 };

// The kernels of one instruction set, in float.
struct F32Kernels {
  size_t vector;     // floats in a vector
  size_t panel;      // output channels of a panel: two vectors
  size_t site_tile;  // most sites in a tile
  // [v - 1][p - 1]: p sites and v vectors of output channels
  TileFunction strided[2][kMaxSiteTile];
  TileFunction direct[2][kMaxSiteTile];
  TileFunction gathered[2][kMaxSiteTile];
  TileFunction listed[2][kMaxSiteTile];  // panels are at most kListedPanel wide
  DepthwiseFunction depthwise;
  PoolFunction max_pool;
  PoolFunction average_pool;
  TurnFunction turn;
  GateFunction gate;
  RadiusSumFunction radius_sum;
  WinogradInputFunction winograd_input[kWinogradForms];
  WinogradOutputFunction winograd_output[kWinogradForms];
  WinogradProductFunction winograd_product[2]
                                          [kMaxSiteTile];  // [v - 1][t - 1]: t tiles and v vectors of output channels
};

}  // namespace perfonnx
