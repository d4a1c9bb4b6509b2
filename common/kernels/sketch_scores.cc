#include "common/kernels/sketch_layout.h"

#undef HWY_TARGET_INCLUDE
// clang-format off: foreach_target.h comes before everything that is compiled for each target.
#define HWY_TARGET_INCLUDE "common/kernels/sketch_scores.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// clang-format on
#include "common/kernels/decode-inl.h"
#include "common/kernels/lane_sums-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels {
namespace HWY_NAMESPACE {

// Vectors of one panel: one of AVX-512, two halves with AVX2.
inline constexpr int64_t kParts = sketch::kLanes / LanesF();

// Adds up sixteen lanes, by halves: the same order whether they are one vector or two.
HWY_INLINE float SumOfSixteen(const VF (&sums)[kParts]) {
#if HWY_TARGET <= HWY_AVX3
  const auto eight = hn::Add(hn::LowerHalf(sums[0]), hn::UpperHalf(hn::Half<DF>(), sums[0]));
#else
  const auto eight = hn::Add(sums[0], sums[1]);
#endif
  using D8 = hn::CappedTag<float, 8>;
  using D4 = hn::Half<D8>;
  const auto four = hn::Add(hn::LowerHalf(eight), hn::UpperHalf(D4(), eight));
  const auto two = hn::Add(four, hn::Shuffle1032(four));
  return hn::GetLane(hn::Add(two, hn::Shuffle2301(two)));
}

// Rows lie side by side and are streamed once. Two KiB ahead made 16 GB/s a core out of 15, as much as a
// plain read (Xeon, DRAM); one row or four ahead gained less.
inline constexpr int64_t kAheadBytes = 2048;

HWY_INLINE void PrefetchPanel(const uint8_t* row) {
  constexpr int64_t kLineBytes = 64;
  for (int64_t i = 0; i < sketch::kNibbleBytes + sketch::kScaleBytes; i += kLineBytes) {
    _mm_prefetch(reinterpret_cast<const char*>(row + kAheadBytes + i), _MM_HINT_T1);
  }
}

HWY_INLINE float ScoreRow(const uint8_t* row, const uint8_t* input, int64_t panels) {
  const DF d;
  const DBytes bytes;
  const auto nibble = hn::Set(bytes, 15);
  const uint8_t* scales = row + panels * sketch::kNibbleBytes;
  VF sums[kParts];
  HWY_UNROLL(2)
  for (int64_t part = 0; part < kParts; ++part) sums[part] = hn::Zero(d);
  for (int64_t panel = 0; panel < panels; ++panel) {
    PrefetchPanel(row);
    const auto* const offsets = reinterpret_cast<const int32_t*>(input + sketch::kQuantBytes);
    const auto* const input_scales =
        reinterpret_cast<const float*>(input + sketch::kQuantBytes + sketch::kOffsetBytes);
    HWY_UNROLL(2)
    for (int64_t part = 0; part < kParts; ++part) {
      const int64_t lane = part * LanesF();
      LaneSums products(hn::LoadU(DI32(), offsets + lane));
      HWY_UNROLL(4)
      for (int64_t v = 0; v < sketch::kNibbleVectors; ++v) {
        const int64_t offset = v * sketch::kVectorBytes + 4 * lane;
        const auto pairs = hn::LoadU(bytes, row + offset);
        const auto high = hn::BitCast(bytes, hn::ShiftRight<4>(hn::BitCast(DU32(), pairs)));
        products.Add(hn::And(pairs, nibble), hn::LoadU(bytes, input + offset));
        products.Add(hn::And(high, nibble), hn::LoadU(bytes, input + sketch::kNibbleBytes + offset));
      }
      const auto scaled = hn::Mul(hn::ConvertTo(d, products.Total()), hn::LoadU(d, input_scales + lane));
      sums[part] = hn::MulAdd(scaled, LoadHalf(scales + 2 * lane), sums[part]);
    }
    row += sketch::kNibbleBytes;
    scales += sketch::kScaleBytes;
    input += sketch::kInputBytes;
  }
  return SumOfSixteen(sums);
}

void ScoreEach(const uint8_t* rows, int64_t row_bytes, int64_t num_rows, const uint8_t* input, int64_t panels,
               float* scores) {
  for (int64_t r = 0; r < num_rows; ++r) scores[r] = ScoreRow(rows + r * row_bytes, input, panels);
}

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isotherm::kernels {

HWY_EXPORT(ScoreEach);

void sketch::ScoreRows(const uint8_t* rows, int64_t row_bytes, int64_t num_rows, const uint8_t* input,
                       int64_t panels, float* scores) {
  HWY_DYNAMIC_DISPATCH(ScoreEach)(rows, row_bytes, num_rows, input, panels, scores);
}

}  // namespace isotherm::kernels
#endif  // HWY_ONCE
