#include "gpu_worker/cuda/memory_use.h"

#include <cuda_runtime.h>
#include <dlfcn.h>

namespace isotherm::gpu_worker::cuda {
namespace {

// The part of NVML's stable interface that is needed, so that neither its header nor the library has to be
// there.
struct NvmlMemory {
  unsigned long long total, free, used;
};
using NvmlDevice = void*;

class Nvml {
 public:
  Nvml() : library_(dlopen("libnvidia-ml.so.1", RTLD_NOW)) {
    if (library_ == nullptr) return;
    found_ = Find(init_, "nvmlInit_v2") && Find(shutdown_, "nvmlShutdown") &&
             Find(by_bus_id_, "nvmlDeviceGetHandleByPciBusId_v2") &&
             Find(memory_, "nvmlDeviceGetMemoryInfo") && init_() == 0;
  }
  ~Nvml() {
    if (found_) shutdown_();
    if (library_ != nullptr) dlclose(library_);
  }
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  std::optional<int64_t> Used(const char* bus_id) const {
    NvmlDevice device = nullptr;
    NvmlMemory memory = {};
    if (!found_ || by_bus_id_(bus_id, &device) != 0 || memory_(device, &memory) != 0) return std::nullopt;
    return static_cast<int64_t>(memory.used);
  }

 private:
  template <typename Function>
  bool Find(Function& function, const char* symbol) {
    function = reinterpret_cast<Function>(dlsym(library_, symbol));
    return function != nullptr;
  }

  void* library_;
  bool found_ = false;
  int (*init_)() = nullptr;
  int (*shutdown_)() = nullptr;
  int (*by_bus_id_)(const char*, NvmlDevice*) = nullptr;
  int (*memory_)(NvmlDevice, NvmlMemory*) = nullptr;
};

}  // namespace

std::optional<int64_t> UsedDeviceMemory(int device) {
  constexpr int kBusIdBytes = 32;
  char bus_id[kBusIdBytes];
  if (cudaDeviceGetPCIBusId(bus_id, kBusIdBytes, device) != cudaSuccess) return std::nullopt;
  return Nvml().Used(bus_id);
}

}  // namespace isotherm::gpu_worker::cuda
