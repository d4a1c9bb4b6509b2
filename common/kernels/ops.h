#ifndef ISOTHERM_COMMON_KERNELS_OPS_H_
#define ISOTHERM_COMMON_KERNELS_OPS_H_

#include <cstdint>

#include "common/base/thread_pool.h"
#include "common/kernels/packed_row.h"

// The dense operators of a transformer on the CPU. Pointers, extents and strides; strides are in elements
// unless a name says bytes. Results for a token row never depend on the other rows.
namespace isotherm::kernels {

// A matrix of packed rows.
struct WeightMatrix {
  const uint8_t* data = nullptr;
  WeightType type = WeightType::kF32;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t stride_bytes = 0;  // PackedRowBytes(type, columns)
};

// y[b, r] = weight[r, :] . x[b, :]. Up to kGemmRows token rows with the row kernels (bit-equal to batch 1),
// beyond with oneDNN on dequantised tiles of weights. Uses every member of the pool.
inline constexpr int64_t kGemmRows = 16;
void MatMul(base::ThreadPool& pool, const WeightMatrix& weight, const float* x, int64_t ldx, int64_t batch,
            float* y, int64_t ldy);

// out[m, n] (+)= a[m, k] . b[n, k]^T in F32 by oneDNN on the calling thread alone. Strides in elements.
void GemmNT(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
            bool accumulate, float* out, int64_t ldo);
// out[m, n] (+)= a[m, k] . b[k, n].
void GemmNN(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
            bool accumulate, float* out, int64_t ldo);

// out = x / sqrt(mean(x^2) + epsilon) * weight (Zhang and Sennrich 2019). May run in place.
void RmsNorm(const float* x, const float* weight, float epsilon, int64_t n, float* out);

// out = (x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias (Ba et al. 2016), bias null for none. May
// run in place.
void LayerNorm(const float* x, const float* weight, const float* bias, float epsilon, int64_t n, float* out);

// Rotary embedding (Su et al. 2021): which dimensions of a head are rotated together, and how fast.
struct RopeTable {
  const float* inverse_frequency = nullptr;  // [pairs]
  int64_t pairs = 0;
  // Pair i is dimensions (i * step, i * step + gap): step 2 and gap 1 for adjacent ones, step 1 and gap
  // `pairs` for GPT-NeoX's halves.
  int64_t step = 2;
  int64_t gap = 1;
};
// Rotates pair i of every head by position * inverse_frequency[i]. vectors: [heads, head_dim].
void Rope(const RopeTable& table, float position, int64_t heads, int64_t head_dim, float* vectors);

// y = rows[0] + rows[1] + ..., added in this order; zeros for no rows. y may be one of the rows. All are read
// side by side, as sums that other cores have just written arrive late.
void Sum(const float* const* rows, int64_t num_rows, int64_t n, float* y);
// y += x.
void Add(const float* x, float* y, int64_t n);
// y += scale * (x + bias), bias null for none.
void AddScaled(const float* x, const float* bias, float scale, float* y, int64_t n);
// gate = silu(gate) * up.
void SiluMul(float* gate, const float* up, int64_t n);

// log(sum_i exp(x[i])), and the index of the largest value (the lowest on a tie).
double LogSumExp(const float* x, int64_t n);
int64_t ArgMax(const float* x, int64_t n);

enum class KvType : uint8_t { kF16, kQ8_0, kF32 };
// Bytes of one head's row: F16 or F32 values, or int8 quants [head_dim] then F16 scales [head_dim / 32].
int64_t KvRowBytes(KvType type, int64_t head_dim);

// One layer's cache. Row t of a sequence for head h lies at
//   base + block_table[t / block_size] * block_bytes + (h * block_size + t % block_size) * KvRowBytes
struct PagedKv {
  uint8_t* k = nullptr;
  uint8_t* v = nullptr;
  KvType type = KvType::kF16;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t block_size = 0;
  int64_t block_bytes = 0;  // kv_heads * block_size * KvRowBytes
};

// Stores k and v [kv_heads, head_dim] as row `position`.
void WriteKv(const PagedKv& kv, const uint32_t* block_table, int64_t position, const float* k,
             const float* v);

// out[h, :] = softmax(q[h, :] . K^T * scale) . V for the query heads [first_head, last_head) over rows
// 0..length-1, with `heads / kv_heads` query heads sharing a KV head. q and out: [heads, head_dim] (all
// heads); scratch: F32 [64] owned by the calling thread. A head's result does not depend on which others are
// computed.
void Attend(const PagedKv& kv, const uint32_t* block_table, int64_t length, const float* q, int64_t heads,
            int64_t first_head, int64_t last_head, float scale, float* scratch, float* out);

}  // namespace isotherm::kernels

#endif  // ISOTHERM_COMMON_KERNELS_OPS_H_
