#include "gpu_worker/cuda/cublas.h"

#include <dlfcn.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace isotherm::gpu_worker::cuda {

// The functions used, with the types that the header gives them.
struct Cublas::Library {
  decltype(&cublasCreate) create;
  decltype(&cublasDestroy) destroy;
  decltype(&cublasSetStream) set_stream;
  decltype(&cublasSetWorkspace) set_workspace;
  decltype(&cublasSgemm) sgemm;

  static const absl::StatusOr<Library>& Get() {
    static const absl::StatusOr<Library> library = Open();
    return library;
  }

 private:
  static absl::StatusOr<Library> Open() {
    const std::string name = absl::StrCat("libcublas.so.", CUBLAS_VER_MAJOR);
    // Never closed: the library keeps threads and state of its own until the process ends.
    void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      return absl::FailedPreconditionError(absl::StrCat("device cuda needs ", name,
                                                        " of the CUDA toolkit: ", dlerror(),
                                                        ". Install it or add its folder to LD_LIBRARY_PATH"));
    }
    Library library;
    const auto find = [&](auto& function, const char* symbol) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(handle, symbol));
      return function != nullptr;
    };
    // The header's names are macros for these.
    if (find(library.create, "cublasCreate_v2") && find(library.destroy, "cublasDestroy_v2") &&
        find(library.set_stream, "cublasSetStream_v2") &&
        find(library.set_workspace, "cublasSetWorkspace_v2") && find(library.sgemm, "cublasSgemm_v2")) {
      return library;
    }
    return absl::FailedPreconditionError(absl::StrCat(name, " lacks a function: ", dlerror()));
  }
};

namespace {

absl::Status Check(cublasStatus_t status, const char* doing) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("cuBLAS, ", doing, ": status ", static_cast<int>(status)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Cublas>> Cublas::Load(cudaStream_t stream) {
  const absl::StatusOr<Library>& library = Library::Get();
  ISOTHERM_RETURN_IF_ERROR(library.status());
  ISOTHERM_ASSIGN_OR_RETURN(DeviceMemory workspace, AllocateDevice(kWorkspaceBytes));
  cublasHandle_t handle = nullptr;
  ISOTHERM_RETURN_IF_ERROR(Check(library->create(&handle), "making a handle"));
  std::unique_ptr<Cublas> cublas(new Cublas(&*library, handle, std::move(workspace)));
  ISOTHERM_RETURN_IF_ERROR(Check(library->set_stream(handle, stream), "setting the stream"));
  ISOTHERM_RETURN_IF_ERROR(Check(library->set_workspace(handle, cublas->workspace_.get(), kWorkspaceBytes),
                                 "setting the workspace"));
  return cublas;
}

Cublas::~Cublas() { library_->destroy(handle_); }

// cuBLAS is column-major: a row-major matrix is its transpose there, so the operands change places.
absl::Status Cublas::ProductNT(int64_t m, int64_t n, int64_t k, const float* a, const float* b, float* out,
                               int64_t out_stride) const {
  const float one = 1, zero = 0;
  return Check(library_->sgemm(handle_, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(n), static_cast<int>(m),
                               static_cast<int>(k), &one, b, static_cast<int>(k), a, static_cast<int>(k),
                               &zero, out, static_cast<int>(out_stride)),
               "a matrix product");
}

absl::Status Cublas::ProductNN(int64_t m, int64_t n, int64_t k, const float* a, const float* b,
                               bool accumulate, float* out) const {
  const float one = 1, beta = accumulate ? 1 : 0;
  return Check(library_->sgemm(handle_, CUBLAS_OP_N, CUBLAS_OP_N, static_cast<int>(n), static_cast<int>(m),
                               static_cast<int>(k), &one, b, static_cast<int>(n), a, static_cast<int>(k),
                               &beta, out, static_cast<int>(n)),
               "a matrix product");
}

}  // namespace isotherm::gpu_worker::cuda
