#include "gateway/schedule/kv_block_pool.h"

#include <utility>

namespace isotherm::gateway {

KvBlockPool::KvBlockPool(int64_t blocks, int64_t block_size) : total_(blocks), block_size_(block_size) {
  // Taken from the back: low numbers first.
  free_.reserve(blocks);
  for (int64_t block = blocks - 1; block >= 0; --block) free_.push_back(static_cast<uint32_t>(block));
}

KvLease KvBlockPool::NewLease() { return KvLease(this); }

KvLease::KvLease(KvLease&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)), blocks_(std::exchange(other.blocks_, {})) {}

KvLease& KvLease::operator=(KvLease&& other) noexcept {
  if (this != &other) {
    Release();
    pool_ = std::exchange(other.pool_, nullptr);
    blocks_ = std::exchange(other.blocks_, {});
  }
  return *this;
}

bool KvLease::GrowTo(int64_t rows) {
  if (pool_ == nullptr) return false;
  const int64_t missing = pool_->BlocksFor(rows) - static_cast<int64_t>(blocks_.size());
  if (missing > pool_->free_blocks()) return false;
  for (int64_t i = 0; i < missing; ++i) {
    blocks_.push_back(pool_->free_.back());
    pool_->free_.pop_back();
  }
  return true;
}

void KvLease::Release() {
  if (pool_ != nullptr) pool_->free_.insert(pool_->free_.end(), blocks_.rbegin(), blocks_.rend());
  blocks_.clear();
}

}  // namespace isotherm::gateway
