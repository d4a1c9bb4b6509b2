// Asks for weights before they are computed with.

#if defined(ISOTHERM_COMMON_KERNELS_READ_AHEAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ISOTHERM_COMMON_KERNELS_READ_AHEAD_INL_H_
#undef ISOTHERM_COMMON_KERNELS_READ_AHEAD_INL_H_
#else
#define ISOTHERM_COMMON_KERNELS_READ_AHEAD_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "common/kernels/decode-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace isotherm::kernels {
namespace HWY_NAMESPACE {

// Where columns of a row lie: quants (or whole floats), and behind all of them the scales where a type keeps
// them apart.
template <WeightType kType>
struct ColumnBytes {
  static constexpr int64_t Scales(int64_t columns) {
    return RowDecoder<kType>::kScalesApart ? columns / kBlockColumns * 2 : 0;
  }
  static constexpr int64_t Quants(int64_t columns) {
    return RowDecoder<kType>::AheadBytes(columns) - Scales(columns);
  }
};

inline constexpr int64_t kLine = 64;

HWY_INLINE void Prefetch(const uint8_t* from) {
  _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T1);
}

HWY_INLINE void PrefetchBytes(const uint8_t* begin, const uint8_t* end) {
  const uint8_t* line = begin - reinterpret_cast<uintptr_t>(begin) % kLine;
  for (; line < end; line += kLine) Prefetch(line);
}

// Asks for memory while kRows rows are being computed with, into the second level: the first would lose lines
// it needs. Rows are asked for side by side, shortly before they are read, as the hardware's prefetchers then
// see as many streams and keep more lines on their way than a core may ask for itself (16): 768 bytes ahead
// gave 30.4 GB/s where none gave 27.7 and a plain read 31.8 (four rows of F16 on 2 cores of a Xeon with
// AVX-512; 512 to 1024 are as good). Fewer rows pass sooner and are asked for further ahead: Q8_0 for eight
// tokens, one row at a time, went from 8.7 to 10.5 GB/s a core, Q4_0 from 7.1 to 7.3.
template <WeightType kType, int kRows>
class ReadAhead {
 public:
  HWY_INLINE ReadAhead(const uint8_t* const* rows, const uint8_t* const* next, int64_t n)
      : rows_(rows), next_(next), row_bytes_(Bytes::Quants(n)), position_(std::min(kDistance, row_bytes_)) {}

  // The group from column `begin` on comes next.
  HWY_INLINE void Enter(int64_t begin) {
    if constexpr (Bytes::Scales(kGroupColumns) > 0) {
      HWY_UNROLL(8)
      for (int r = 0; r < kRows; ++r) Prefetch(next_[r] + row_bytes_ + Bytes::Scales(begin));
    }
  }

  // Once for each step of kColumns columns.
  template <int64_t kColumns>
  HWY_INLINE void Advance() {
    constexpr int64_t kStepBytes = Bytes::Quants(kColumns);
    if (position_ >= row_bytes_) {
      rows_ = next_;
      position_ = 0;
    }
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(4)
      for (int64_t i = 0; i < kStepBytes; i += kLine) Prefetch(rows_[r] + position_ + i);
    }
    position_ += kStepBytes;
  }

 private:
  using Bytes = ColumnBytes<kType>;
  static constexpr int64_t kDistance = 768 * (kRows < 4 ? 4 / kRows : 1);

  const uint8_t* const* rows_;
  const uint8_t* const* next_;
  const int64_t row_bytes_;  // without scales that lie behind
  int64_t position_;
};

}  // namespace HWY_NAMESPACE
}  // namespace isotherm::kernels
HWY_AFTER_NAMESPACE();

#endif  // ISOTHERM_COMMON_KERNELS_READ_AHEAD_INL_H_
