#include "common/exchange/shared_bundles.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace isotherm::exchange {
namespace {

constexpr int64_t kBundleAlignment = 64;

// Without these another process could cut the file short under the reader.
constexpr int kNeededSeals = F_SEAL_SHRINK | F_SEAL_GROW;

absl::Status CheckFile(int fd, const worker::v1::SharedBundles& offer) {
  struct stat info;
  if (fstat(fd, &info) != 0) return absl::ErrnoToStatus(errno, "cannot stat the CPU worker's memory");
  if (info.st_dev != offer.device() || info.st_ino != offer.inode()) {
    return absl::FailedPreconditionError("what came is another file than the CPU worker's memory");
  }
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & kNeededSeals) != kNeededSeals) {
    return absl::FailedPreconditionError("the CPU worker's memory is not sealed");
  }
  if (offer.bytes() == 0 || static_cast<uint64_t>(info.st_size) != offer.bytes()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the CPU worker's memory has ", info.st_size, " bytes, announced were ", offer.bytes()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<worker::v1::SharedBundles> OfferBundles(const BundleFile& file) {
  struct stat info;
  if (fstat(file.fd, &info) != 0) return absl::ErrnoToStatus(errno, "cannot stat the neurons' memory");
  worker::v1::SharedBundles offer;
  offer.set_device(info.st_dev);
  offer.set_inode(info.st_ino);
  offer.set_bytes(static_cast<uint64_t>(file.bytes));
  offer.mutable_layer_offsets()->Add(file.layer_offsets.begin(), file.layer_offsets.end());
  return offer;
}

absl::StatusOr<std::unique_ptr<SharedBundles>> SharedBundles::Map(int file,
                                                                  const worker::v1::SharedBundles& offer,
                                                                  int64_t layers) {
  if (offer.layer_offsets_size() != layers) {
    return absl::FailedPreconditionError(absl::StrCat("the CPU worker shares ", offer.layer_offsets_size(),
                                                      " layers, the model has ", layers));
  }
  ISOTHERM_RETURN_IF_ERROR(CheckFile(file, offer));
  void* const data = mmap(nullptr, offer.bytes(), PROT_READ, MAP_SHARED, file, 0);
  if (data == MAP_FAILED) return absl::ErrnoToStatus(errno, "cannot map the CPU worker's memory");
  return std::unique_ptr<SharedBundles>(
      new SharedBundles(static_cast<const uint8_t*>(data), static_cast<int64_t>(offer.bytes()),
                        {offer.layer_offsets().begin(), offer.layer_offsets().end()}));
}

SharedBundles::~SharedBundles() { munmap(const_cast<uint8_t*>(data_), static_cast<size_t>(bytes_)); }

const uint8_t* SharedBundles::Layer(int64_t layer, int64_t layer_bytes) const {
  const int64_t offset = layer_offsets_[layer];
  const bool inside =
      offset >= 0 && offset % kBundleAlignment == 0 && offset <= bytes_ && layer_bytes <= bytes_ - offset;
  return inside ? data_ + offset : nullptr;
}

}  // namespace isotherm::exchange
