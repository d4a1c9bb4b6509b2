#include <oneapi/dnnl/dnnl.h>

#include "common/kernels/ops.h"

// Of OpenMP's runtime. Declared here because its header belongs to the compiler's -fopenmp, which nothing
// else needs.
extern "C" void omp_set_num_threads(int count);

namespace isotherm::kernels {
namespace {

// The pool's members are the parallelism: oneDNN, called on one of them, must not start a team of its own.
void KeepToThisThread() {
  thread_local const bool done = (omp_set_num_threads(1), true);
  static_cast<void>(done);
}

}  // namespace

void GemmNT(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
            bool accumulate, float* out, int64_t ldo) {
  KeepToThisThread();
  dnnl_sgemm('N', 'T', m, n, k, 1.0f, a, lda, b, ldb, accumulate ? 1.0f : 0.0f, out, ldo);
}

void GemmNN(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
            bool accumulate, float* out, int64_t ldo) {
  KeepToThisThread();
  dnnl_sgemm('N', 'N', m, n, k, 1.0f, a, lda, b, ldb, accumulate ? 1.0f : 0.0f, out, ldo);
}

}  // namespace isotherm::kernels
