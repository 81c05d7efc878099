#include "plan.h"

#include <atomic>

#include "cpu/fold.h"
#include "cpu/winograd.h"
#include "cuda/conv_depthwise.h"
#include "cuda/conv_grad_params.h"
#include "cuda/conv_stem.h"
#include "error.h"

namespace fastconv {

namespace {

const char* refuse_conv1x1(const ConvProblem& p, const Capabilities&, Direction direction) {
  if (p.R != 1 || p.S != 1) return "the kernel is larger than 1x1";
  if (p.pad_t || p.pad_l || p.pad_b || p.pad_r) return "a padded 1x1 reads outside the input";
  if (p.G != 1) return "groups split the GEMM";
  if (direction == Direction::input_grad && (p.stride_h > 1 || p.stride_w > 1))
    return "the gradient of a strided 1x1 is written by stride phase";
  return nullptr;
}

const char* refuse_depthwise(const ConvProblem& p, const Capabilities&, Direction direction) {
  if (p.C != p.G) return "more than one input channel per group";
  if (p.G == 1) return "a single group has no channels to run side by side";
  if (direction == Direction::input_grad && p.K != p.G)
    return "several output channels per group are summed: the direct kernel does that";
  return nullptr;
}

// What was measured. bench/thresholds.py runs both sides of every rule; what it found is in
// bench/results/thresholds_*.json: `bench/thresholds.py --show FILE` prints a table of each.
constexpr int64_t kWinogradChannels = 12;      // rule "winograd channels": or those of a vector
constexpr int64_t kWeightGradChannels = 4;     // rule "winograd channels, weight gradient"
constexpr int64_t kStridedChannels = 24;       // rule "strided winograd channels"
constexpr int64_t kStridedGradChannels = 16;   // rule "strided winograd channels, input gradient"
constexpr int64_t kLeastPixels = 16;           // rule "winograd pixels": of a batch
constexpr int64_t kWeightGrad5x5Pixels = 512;  // rule "5x5 weight gradient error": of a batch
constexpr int64_t kStridedGradPercent = 88;    // rule "strided input gradient products"
constexpr int64_t kVectorGroups = 2048;        // rule "groups of a vector"
constexpr int64_t kFoldedOutputs = 24;         // rule "folded strides, outputs"
constexpr int64_t kFoldedDotOutputs = 48;      // rule "folded strides, dot products"
constexpr int64_t kFoldedChannels = 4, kFoldedSide = 12;
constexpr int64_t kDotPixels = 36;          // rule "dot products, outputs": of a batch
constexpr int64_t kDotStridedPixels = 256;  // rule "dot products, strided input gradient"
constexpr int64_t kDot5x5Channels = 24;     // rule "dot products, 5x5 channels"
// Terms of a sum in one register: longer ones err up to 1.14 times what is allowed, 7x7 of 16.
constexpr int64_t kGroupedTerms = 256;

const char* refuse_grouped(const ConvProblem& p, const Capabilities& caps, Direction) {
  const int64_t width = p.C / p.G;
  if (p.G == 1) return "a single group";
  if (p.dtype == DType::f64) return "float64 has no permutation for it";
  if (p.C != p.K || p.C == p.G)
    return "a group has other than as many outputs as inputs, 2 or more";
  if (width > caps.lanes || caps.lanes % width) return "a vector holds no whole groups";
  if (caps.lanes < 8) return "this instruction set has no permutation for it";
  if (!caps.measured_rules) return nullptr;
  if (width * p.R * p.S > kGroupedTerms) return "its sums are too long for one register";
  const bool large = p.N * p.P * p.Q * caps.lanes >= kVectorGroups;
  return width == caps.lanes && p.stride_w == 1 && large ? "a group fills tiles of its own"
                                                         : nullptr;
}

// Of the input gradient of a 3x3 of stride 2: along an axis Winograd takes 5 products of a tile of
// two pairs of inputs and 4 of a brief one, a direct kernel 3 of a pair and 1 of an input left
// over.
const char* avoid_strided_grad(const ConvProblem& p) {
  auto tiled = [](int64_t inputs) {
    const TileAxis tiles = tile_axis(ceil_div(inputs, 2), 2);
    return 5 * tiles.full + 4 * tiles.brief;
  };
  auto direct = [](int64_t inputs) { return inputs / 2 * 3 + inputs % 2; };
  if (100 * tiled(p.H) * tiled(p.W) > kStridedGradPercent * direct(p.H) * direct(p.W))
    return "on a map of this size its input gradient spares too few products";
  return nullptr;
}

// Per group, in and out, to pay the transforms.
int64_t fewest_channels(bool strided, const Capabilities& caps, Direction direction) {
  if (strided) return direction == Direction::input_grad ? kStridedGradChannels : kStridedChannels;
  if (direction == Direction::weight_grad) return kWeightGradChannels;
  return min64(kWinogradChannels, caps.lanes);
}

// A direct kernel that takes two products of bfloat16 at once is faster than Winograd of stride 2
// (64->128 @56 on Zen 4 733 -> 556 us, 256->512 @14 908 -> 528), and than Winograd of few outputs,
// which streams its weights.
const char* prefer_dots(const ConvProblem& p, Direction direction) {
  const int64_t pixels = p.N * p.P * p.Q;
  const char* reason = "two products of bfloat16 at once are faster";
  if (p.stride_h > 1)
    return direction == Direction::forward || pixels >= kDotStridedPixels ? reason : nullptr;
  if (pixels < kDotPixels) return reason;
  return p.R == 5 && min64(p.C, p.K) / p.G < kDot5x5Channels ? reason : nullptr;
}

const char* avoid_winograd(const ConvProblem& p, bool dilated, const Capabilities& caps,
                           Direction direction) {
  if (caps.bf16_dots && p.dtype == DType::bf16 && direction != Direction::weight_grad)
    if (const char* reason = prefer_dots(p, direction)) return reason;
  const bool strided = p.stride_h > 1;
  const int64_t fewest = fewest_channels(strided, caps, direction);
  if (p.C / p.G < fewest || p.K / p.G < fewest)
    return "too few channels per group to pay its transforms";
  if (p.N * p.P * p.Q < kLeastPixels || p.N * p.H * p.W < kLeastPixels)
    return "too few pixels to pay for its weights";
  if (direction == Direction::weight_grad && p.R == 5 &&
      (p.N * p.P * p.Q < kWeightGrad5x5Pixels || dilated))
    return "its 5x5 weight gradient is too coarse for so short a sum";
  return strided && direction == Direction::input_grad ? avoid_strided_grad(p) : nullptr;
}

// A dilated problem as one without dilation, of images that lie between each other, of the sizes of
// the largest. Of the weight gradient, which sums over all, of the mean: 3x3 of 4,000 random ones
// erred up to 1.3 times what is allowed where phases of two rows or columns outnumbered those of 3.
ConvProblem by_phases(ConvProblem p, Direction direction) {
  const bool mean = direction == Direction::weight_grad;
  auto size = [&](int64_t all, int64_t dil) {
    return mean ? (2 * all + dil) / (2 * dil) : ceil_div(all, dil);
  };
  p.N *= p.dil_h * p.dil_w;
  p.H = size(p.H, p.dil_h), p.P = size(p.P, p.dil_h);
  p.W = size(p.W, p.dil_w), p.Q = size(p.Q, p.dil_w);
  p.pad_t = ceil_div(p.pad_t, p.dil_h), p.pad_b = ceil_div(p.pad_b, p.dil_h);
  p.pad_l = ceil_div(p.pad_l, p.dil_w), p.pad_r = ceil_div(p.pad_r, p.dil_w);
  p.dil_h = p.dil_w = 1;
  return p;
}

// The first layers of networks: strided, of few channels (fold.h).
const char* refuse_folded(const ConvProblem& p, bool dilated, const Capabilities& caps,
                          Direction direction) {
  if (p.G > 1 || p.C > kFoldedChannels) return "of strides beyond 3x3/2 it has few channels only";
  if (dilated) return "the kernel is dilated and strided";
  if (direction == Direction::input_grad) return "of strides beyond 3x3/2 it has no input gradient";
  if (p.pad_t >= p.R || p.pad_b >= p.R || p.pad_l >= p.S || p.pad_r >= p.S)
    return "outputs that read padding only would round away the others";
  if (p.P < kFoldedSide || p.Q < kFoldedSide)
    return "on so small a map most taps read padding, which its rounding does not know";
  if (!caps.measured_rules) return nullptr;
  const bool dots = caps.bf16_dots && p.dtype == DType::bf16;
  if (dots && direction == Direction::forward && p.K < kFoldedDotOutputs)
    return "two products of bfloat16 at once are faster";
  return p.K < kFoldedOutputs ? "too few channels to pay its transforms" : nullptr;
}

const char* refuse_winograd(const ConvProblem& given, const Capabilities& caps,
                            Direction direction) {
  const ConvProblem p = by_phases(given, direction);
  if (p.dtype == DType::f64) return "its rounding is too coarse for float64";
  if (folds(p.R, p.S, p.stride_h, p.stride_w))
    return refuse_folded(p, given.dil_h > 1 || given.dil_w > 1, caps, direction);
  if (p.R != p.S || (p.R != 3 && p.R != 5)) return "the kernel is neither 3x3 nor 5x5";
  const bool strided = p.stride_h == 2 && p.stride_w == 2;
  if (!strided && (p.stride_h != 1 || p.stride_w != 1)) return "the stride is neither 1 nor 2";
  if (strided && p.R != 3) return "of stride 2 it has 3x3 only";
  const bool dilated = given.dil_h > 1 || given.dil_w > 1;
  if (dilated && strided) return "the kernel is dilated and strided";
  if (given.pad_t % given.dil_h || given.pad_l % given.dil_w)
    return "of a dilated kernel it takes a padding that is a multiple of the dilation";
  if (p.pad_t >= p.R || p.pad_b >= p.R || p.pad_l >= p.S || p.pad_r >= p.S)
    return "outputs that read padding only would round away the others";
  if (p.H < p.R || p.W < p.S || p.P < p.R || p.Q < p.S)
    return "on so small a map most taps read padding, which its rounding does not know";
  if (strided && direction == Direction::input_grad && (p.pad_t != 1 || p.pad_l != 1))
    return "of stride 2 its input gradient begins with an input of one tap: padding 1 only";
  return caps.measured_rules ? avoid_winograd(p, dilated, caps, direction) : nullptr;
}

const char* refuse_direct(const ConvProblem&, const Capabilities&, Direction) { return nullptr; }

constexpr char kNoFloat64[] = "tensor cores multiply float64 no faster";

const char* refuse_cuda_conv1x1(const ConvProblem& p, const Capabilities& caps, Direction d) {
  if (p.dtype == DType::f64) return kNoFloat64;
  const cuda::Math math = cuda::math_of(p.dtype, caps.tf32);
  return d == Direction::forward ? cuda::conv1x1_refusal(p, math)
                                 : cuda::grad1x1_refusal(p, math, d);
}

const char* refuse_stem(const ConvProblem& p, const Capabilities& caps, Direction d) {
  if (p.dtype == DType::f64) return kNoFloat64;
  const cuda::Math math = cuda::math_of(p.dtype, caps.tf32);
  return d == Direction::forward ? cuda::stem_refusal(p, math)
                                 : cuda::stem_grad_refusal(p, math, d);
}

const char* refuse_cuda_depthwise(const ConvProblem& p, const Capabilities&, Direction d) {
  if (p.G == 1) return "a single group";
  return d == Direction::forward ? cuda::depthwise_refusal(p) : cuda::depthwise_grad_refusal(p, d);
}

const char* refuse_implicit_gemm(const ConvProblem& p, const Capabilities& caps, Direction d) {
  if (p.dtype == DType::f64) return kNoFloat64;
  const cuda::Math math = cuda::math_of(p.dtype, caps.tf32);
  return d == Direction::forward ? cuda::implicit_gemm_refusal(p, math)
                                 : cuda::gemm_grad_refusal(p, math, d);
}

}  // namespace

// Ordered: a backend's first row that does not refuse is the plan. Its last takes everything.
const std::vector<PlanRow>& plan_table() {
  static const std::vector<PlanRow> table = {
      {"conv1x1", Backend::cpu, Algorithm::conv1x1, refuse_conv1x1},
      {"depthwise", Backend::cpu, Algorithm::depthwise, refuse_depthwise},
      {"grouped", Backend::cpu, Algorithm::grouped, refuse_grouped},
      {"winograd", Backend::cpu, Algorithm::winograd, refuse_winograd},
      {"direct", Backend::cpu, Algorithm::direct, refuse_direct},
      {"conv1x1", Backend::cuda, Algorithm::conv1x1, refuse_cuda_conv1x1},
      {"stem", Backend::cuda, Algorithm::stem, refuse_stem},
      {"depthwise", Backend::cuda, Algorithm::depthwise, refuse_cuda_depthwise},
      {"implicit_gemm", Backend::cuda, Algorithm::implicit_gemm, refuse_implicit_gemm},
      {"direct", Backend::cuda, Algorithm::direct, refuse_direct},
  };
  return table;
}

namespace {

std::atomic<uint64_t> rows_ran{0};

uint64_t bit_of(const PlanRow& row, Direction direction) {
  return uint64_t{1} << (3 * (&row - plan_table().data()) + static_cast<int>(direction));
}

}  // namespace

void mark_ran(const PlanRow& row, Direction direction) { rows_ran |= bit_of(row, direction); }
bool has_run(const PlanRow& row, Direction direction) { return rows_ran & bit_of(row, direction); }

const PlanRow& plan(const ConvProblem& problem, const Capabilities& caps, Direction direction) {
  for (const PlanRow& row : plan_table())
    if (row.backend == caps.backend && !row.refuse(problem, caps, direction)) return row;
  fail("fastconv: no algorithm of this backend takes the problem");
}

std::vector<Candidate> explain(const ConvProblem& problem, const Capabilities& caps,
                               Direction direction) {
  std::vector<Candidate> rows;
  for (const PlanRow& row : plan_table())
    if (row.backend == caps.backend) rows.push_back({&row, row.refuse(problem, caps, direction)});
  return rows;
}

}  // namespace fastconv
