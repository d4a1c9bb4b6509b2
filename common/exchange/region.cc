#include "common/exchange/region.h"

#include <sys/mman.h>

#include <cstring>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/base/random_id.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"
#include "common/exchange/doorbell.h"

namespace isotherm::exchange {
namespace {

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
  ISOTHERM_ASSIGN_OR_RETURN(region->file_, CreateRegionFile(directory));
  const int fd = region->file_.fd.get();
  ISOTHERM_RETURN_IF_ERROR(AllocateRegionFile(fd, region->bytes(), directory, "the exchange region"));
  ISOTHERM_ASSIGN_OR_RETURN(region->base_, MapRegionFile(fd, region->bytes()));
  region->WriteHeader();
  return region;
}

absl::StatusOr<std::unique_ptr<Region>> Region::Attach(const std::string& directory, const std::string& name,
                                                       int64_t bytes, const Geometry& geometry) {
  ISOTHERM_RETURN_IF_ERROR(CheckGeometry(geometry));
  std::unique_ptr<Region> region(new Region(geometry));
  if (bytes != region->bytes()) {
    return absl::FailedPreconditionError(absl::StrCat("the CPU worker announced an exchange region of ",
                                                      bytes, " bytes, this geometry needs ",
                                                      region->bytes()));
  }
  ISOTHERM_ASSIGN_OR_RETURN(const base::UniqueFd fd, OpenRegionFile(directory, name, bytes));
  ISOTHERM_ASSIGN_OR_RETURN(region->base_, MapRegionFile(fd.get(), bytes));
  ISOTHERM_RETURN_IF_ERROR(region->CheckHeader());
  return region;
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

Region::Slot Region::slot(uint32_t sequence) const {
  std::byte* slot = base_ + kRegionHeaderBytes + static_cast<int64_t>(sequence % kSlots) * layout_.slot_bytes;
  return {
      .request = reinterpret_cast<Descriptor*>(slot),
      .x = reinterpret_cast<float*>(slot + layout_.x),
      .masks = reinterpret_cast<uint64_t*>(slot + layout_.masks),
      .gate_values = geometry_.gate_values ? reinterpret_cast<float*>(slot + layout_.gate_values) : nullptr,
      .answer = reinterpret_cast<Descriptor*>(slot + layout_.answer),
      .y = reinterpret_cast<float*>(slot + layout_.y),
      .expected = reinterpret_cast<Expectation*>(slot + layout_.expected),
      .expected_mask = reinterpret_cast<uint64_t*>(slot + layout_.expected + sizeof(Expectation))};
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
