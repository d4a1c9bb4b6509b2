#include "common/exchange/region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/host.h"
#include "common/base/random_id.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"
#include "common/exchange/doorbell.h"
#include "common/exchange/region_file.h"

namespace isotherm::exchange {
namespace {

absl::Status NoRoom(const std::string& directory, int64_t needed, int64_t free) {
  return absl::ResourceExhaustedError(absl::StrFormat(
      "%s has %.1f MiB free, the exchange region needs %.1f MiB: give it more room (containers: shm_size, or "
      "a memory "
      "volume with a larger sizeLimit), point --shm-directory at a larger tmpfs, or lower the rows of a step",
      directory, static_cast<double>(free) / (1 << 20), static_cast<double>(needed) / (1 << 20)));
}

uint64_t RandomGeneration() {
  uint64_t generation = 0;
  const std::string id = base::RandomId();
  if (!absl::SimpleHexAtoi(id.substr(0, 16), &generation)) return 1;
  return generation | 1;  // 0 is what untouched memory holds
}

}  // namespace

Region::Region(const Geometry& geometry) : geometry_(geometry), layout_(MakeRegionLayout(geometry, kSlots)) {}

Region::~Region() {
  RemoveName();
  if (base_ != nullptr) munmap(base_, static_cast<size_t>(bytes()));
}

absl::StatusOr<std::unique_ptr<Region>> Region::Create(const std::string& directory,
                                                       const Geometry& geometry) {
  ISOTHERM_RETURN_IF_ERROR(CheckGeometry(geometry));
  std::unique_ptr<Region> region(new Region(geometry));
  RemoveAbandonedRegionFiles(directory);
  ISOTHERM_ASSIGN_OR_RETURN(RegionFile file, CreateRegionFile(directory));
  region->directory_ = directory;
  region->name_ = std::move(file.name);
  region->file_ = std::move(file.fd);
  ISOTHERM_RETURN_IF_ERROR(region->Allocate(region->file_.get(), directory));
  ISOTHERM_RETURN_IF_ERROR(region->Map(region->file_.get()));
  region->WriteHeader();
  return region;
}

absl::StatusOr<std::unique_ptr<Region>> Region::Attach(const std::string& directory, const std::string& name,
                                                       int64_t bytes, const Geometry& geometry) {
  ISOTHERM_RETURN_IF_ERROR(CheckGeometry(geometry));
  if (!IsRegionName(name)) {
    return absl::FailedPreconditionError(absl::StrCat("the CPU worker named a region '", name, "'"));
  }
  std::unique_ptr<Region> region(new Region(geometry));
  const std::string path = directory + "/" + name;
  base::UniqueFd fd(open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open the exchange region ", path));
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot stat ", path));
  // A mapping longer than its file would end in SIGBUS.
  if (!S_ISREG(info.st_mode) || info.st_size != bytes || bytes != region->bytes()) {
    return absl::FailedPreconditionError(absl::StrCat("the exchange region ", path, " has ", info.st_size,
                                                      " bytes, the CPU worker announced ", bytes,
                                                      ", this geometry needs ", region->bytes()));
  }
  ISOTHERM_RETURN_IF_ERROR(region->Map(fd.get()));
  ISOTHERM_RETURN_IF_ERROR(region->CheckHeader());
  return region;
}

absl::Status Region::Allocate(int fd, const std::string& directory) const {
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t free, base::FreeSpace(directory));
  if (bytes() > free) return NoRoom(directory, bytes(), free);
  // ftruncate alone would leave holes, and the first touch of a hole without a page to fill it ends in
  // SIGBUS.
  const int error = posix_fallocate(fd, 0, bytes());
  if (error == ENOSPC) return NoRoom(directory, bytes(), free);
  if (error != 0)
    return absl::ErrnoToStatus(error, absl::StrCat("cannot allocate ", bytes(), " bytes in ", directory));
  return absl::OkStatus();
}

absl::Status Region::Map(int fd) {
  void* base =
      mmap(nullptr, static_cast<size_t>(bytes()), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
  if (base == MAP_FAILED)
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot map ", bytes(), " bytes of shared memory"));
  base_ = static_cast<std::byte*>(base);
  return absl::OkStatus();
}

void Region::WriteHeader() {
  generation_ = RandomGeneration();
  // The file is new: everything else is zero.
  RegionHeader* header = this->header();
  header->magic = kRegionMagic;
  header->generation = generation_;
  header->region_bytes = static_cast<uint64_t>(bytes());
  header->layout_version = kRegionLayoutVersion;
  header->slots = kSlots;
  header->layers = static_cast<uint32_t>(geometry_.layers);
  header->hidden = static_cast<uint32_t>(geometry_.hidden);
  header->ffn = static_cast<uint32_t>(geometry_.ffn);
  header->max_rows = static_cast<uint32_t>(geometry_.max_rows);
  header->gate_values = geometry_.gate_values ? 1 : 0;
}

absl::Status Region::CheckHeader() {
  RegionHeader header;
  std::memcpy(&header, base_, sizeof(header));
  const Geometry geometry{.layers = header.layers,
                          .hidden = header.hidden,
                          .ffn = header.ffn,
                          .max_rows = header.max_rows,
                          .gate_values = header.gate_values != 0};
  if (header.magic != kRegionMagic || header.layout_version != kRegionLayoutVersion ||
      header.slots != kSlots || header.region_bytes != static_cast<uint64_t>(bytes()) ||
      header.generation == 0 || geometry != geometry_) {
    return absl::FailedPreconditionError(
        absl::StrCat("the exchange region is not what was agreed: layout version ", header.layout_version,
                     " (expected ", kRegionLayoutVersion, "), ", header.slots, " slots (expected ", kSlots,
                     "), ", header.region_bytes, " bytes (expected ", bytes(), ")"));
  }
  generation_ = header.generation;
  return absl::OkStatus();
}

void Region::RemoveName() {
  if (name_.empty()) return;
  unlink((directory_ + "/" + name_).c_str());
  name_.clear();
  file_.reset();
}

Region::Slot Region::slot(uint32_t sequence) const {
  std::byte* slot = base_ + kRegionHeaderBytes + static_cast<int64_t>(sequence % kSlots) * layout_.slot_bytes;
  return {
      .request = reinterpret_cast<Descriptor*>(slot),
      .x = reinterpret_cast<float*>(slot + layout_.x),
      .masks = reinterpret_cast<uint64_t*>(slot + layout_.masks),
      .gate_values = geometry_.gate_values ? reinterpret_cast<float*>(slot + layout_.gate_values) : nullptr,
      .answer = reinterpret_cast<Descriptor*>(slot + layout_.answer),
      .y = reinterpret_cast<float*>(slot + layout_.y)};
}

void Region::Fail() {
  failed_.store(true, std::memory_order_release);
  StoreWord(&header()->failed, 1);
  WakeParked(&header()->server_parked);
  WakeParked(&header()->client_parked);
}

bool Region::failed() const {
  return failed_.load(std::memory_order_acquire) || LoadWord(&header()->failed) != 0;
}

}  // namespace isotherm::exchange
