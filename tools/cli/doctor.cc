#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <memory>
#include <system_error>

#include "absl/flags/flag.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/base/file.h"
#include "common/base/host.h"
#include "common/base/listen.h"
#include "common/base/thread_pool.h"
#include "common/kernels/row_kernels.h"
#include "common/neuron/bandwidth.h"
#include "tools/cli/commands.h"

ABSL_FLAG(std::string, shm_directory, "/dev/shm", "Where the workers will put exchange regions.");
ABSL_FLAG(std::vector<std::string>, ports,
          std::vector<std::string>({"7070", "7071", "7072", "9401", "9402", "9403"}),
          "Loopback ports that should be free before the processes start.");

namespace isotherm::cli {
namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;
// Two slots for 512 rows of a model with hidden size 8192 and FFN 28672 are 68 MiB, logits of 64 rows and 128
// thousand tokens 31 MiB.
constexpr int64_t kComfortableShm = int64_t{100} << 20;

// One line for each finding; `problems` counts those that would keep Isotherm from working.
class Report {
 public:
  void Good(const std::string& what, const std::string& finding) { Line("ok  ", what, finding); }
  void Note(const std::string& what, const std::string& finding) { Line("note", what, finding); }
  void Bad(const std::string& what, const std::string& finding) {
    ++problems_;
    Line("BAD ", what, finding);
  }
  int problems() const { return problems_; }

 private:
  static void Line(const char* verdict, const std::string& what, const std::string& finding) {
    std::cout << absl::StrFormat("%s  %-16s %s\n", verdict, what, finding);
  }
  int problems_ = 0;
};

void CheckCpu(Report& report) {
  const std::vector<std::string> targets = kernels::SupportedTargets();
  if (targets.empty()) {
    report.Bad("CPU", "no AVX2: the kernels need it");
    return;
  }
  report.Good("CPU", absl::StrCat(base::PhysicalCores(), " cores, kernels run on ", targets.front(),
                                  " (also ", absl::StrJoin(targets.begin() + 1, targets.end(), ", "), ")"));
}

void CheckMemory(Report& report) {
  const absl::StatusOr<int64_t> available = base::AvailableMemory();
  if (!available.ok()) return report.Bad("memory", std::string(available.status().message()));
  report.Good("memory", absl::StrFormat("%.1f GiB available", *available / kGiB));
}

void MeasureMemory(Report& report) {
  base::ThreadPool pool({.threads = base::PhysicalCores()});
  // Larger than the last-level caches of all but the largest servers; in huge pages, as the workers hold
  // weights.
  constexpr int64_t kBytes = int64_t{512} << 20;
  constexpr int64_t kHugePage = int64_t{2} << 20;
  const std::unique_ptr<uint8_t, decltype(&std::free)> memory(
      static_cast<uint8_t*>(std::aligned_alloc(kHugePage, kBytes)), &std::free);
  if (memory == nullptr) return report.Bad("memory bandwidth", "cannot allocate 512 MiB to measure it");
  madvise(memory.get(), kBytes, MADV_HUGEPAGE);
  std::memset(memory.get(), 1, kBytes);
  const double bandwidth = neuron::MeasureReadBandwidth(pool, memory.get(), kBytes, absl::Milliseconds(500));
  report.Note("memory bandwidth",
              absl::StrFormat("%.1f GB/s read with %d threads: the limit of decoding on the CPU",
                              bandwidth / 1e9, pool.threads()));
}

void CheckShm(Report& report) {
  const std::string directory = absl::GetFlag(FLAGS_shm_directory);
  const absl::StatusOr<int64_t> space = base::FreeSpace(directory);
  if (!space.ok()) {
    return report.Bad(
        "shared memory",
        absl::StrCat(space.status().message(), "; the exchange would fall back to the inline transport"));
  }
  const std::string finding = absl::StrFormat("%s has %.2f GiB free", directory, *space / kGiB);
  if (*space < kComfortableShm) {
    return report.Bad("shared memory",
                      finding + "; containers: raise shm_size or mount a tmpfs and use --shm-directory");
  }
  report.Good("shared memory", finding);
}

void CheckLockedMemory(Report& report) {
  const int64_t limit = base::LockedMemoryLimit();
  if (limit < 0 || limit == std::numeric_limits<int64_t>::max()) {
    return report.Good("locked memory", "unlimited");
  }
  report.Note("locked memory",
              absl::StrFormat("%.2f GiB (ulimit -l); only a GPU that registers the bundles needs more",
                              limit / kGiB));
}

void CheckPort(Report& report, const std::string& port) {
  const absl::Status free = base::CheckCanListen("127.0.0.1:" + port);
  if (free.ok()) return report.Good("port " + port, "free");
  if (absl::IsInvalidArgument(free)) return report.Bad("port " + port, "not a port number");
  report.Note("port " + port,
              absl::StrCat(std::string(free.message()), "; a running Isotherm, or something else"));
}

// As the NVIDIA driver names them.
std::vector<std::string> GpuModels() {
  std::vector<std::string> models;
  std::error_code none;
  for (const auto& gpu : std::filesystem::directory_iterator("/proc/driver/nvidia/gpus", none)) {
    const absl::StatusOr<std::string> facts = base::ReadSmallFile(gpu.path() / "information");
    if (!facts.ok()) continue;
    for (absl::string_view line : absl::StrSplit(*facts, '\n')) {
      if (absl::ConsumePrefix(&line, "Model:")) models.emplace_back(absl::StripAsciiWhitespace(line));
    }
  }
  return models;
}

void CheckGpu(Report& report) {
  const std::vector<std::string> models = GpuModels();
  if (models.empty()) {
    return report.Note("GPU", "none with an NVIDIA driver: gpu_worker runs --device=host on the CPU");
  }
  report.Good("GPU",
              absl::StrCat(absl::StrJoin(models, ", "),
                           ": for gpu_worker --device=cuda, if it was built where the CUDA toolkit is"));
}

absl::Status Run(const std::vector<std::string>&) {
  Report report;
  CheckCpu(report);
  CheckMemory(report);
  MeasureMemory(report);
  CheckShm(report);
  CheckLockedMemory(report);
  for (const std::string& port : absl::GetFlag(FLAGS_ports)) CheckPort(report, port);
  CheckGpu(report);
  std::cout << std::flush;
  if (report.problems() == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      report.problems(), report.problems() == 1 ? " problem" : " problems", " found, marked BAD above"));
}

}  // namespace

Command DoctorCommand() {
  base::Program program;
  program.name = "isotherm doctor";
  program.summary =
      "Checks whether this machine has what Isotherm needs. Looks at instruction sets, memory, shared-memory "
      "space, locked-memory limit, ports and GPU. Exit code 1 if something would keep it from working.";
  program.examples = "isotherm doctor\nisotherm doctor --shm-directory=/run/isotherm";
  program.groups = {{"Checks", {"shm_directory", "ports"}}};
  return {program, Run};
}

}  // namespace isotherm::cli
