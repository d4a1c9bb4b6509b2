#ifndef ISOTHERM_GATEWAY_SCHEDULE_KV_BLOCK_POOL_H_
#define ISOTHERM_GATEWAY_SCHEDULE_KV_BLOCK_POOL_H_

#include <cstdint>
#include <vector>

namespace isotherm::gateway {

class KvLease;

// Which KV blocks of one worker instance are free. Thread-compatible; outlives its leases.
class KvBlockPool {
 public:
  // `blocks` blocks of `block_size` token rows each, numbered from 0.
  KvBlockPool(int64_t blocks, int64_t block_size);
  KvBlockPool(const KvBlockPool&) = delete;
  KvBlockPool& operator=(const KvBlockPool&) = delete;

  KvLease NewLease();
  int64_t total_blocks() const { return total_; }
  int64_t free_blocks() const { return static_cast<int64_t>(free_.size()); }
  int64_t block_size() const { return block_size_; }
  int64_t BlocksFor(int64_t rows) const { return (rows + block_size_ - 1) / block_size_; }

 private:
  friend class KvLease;
  const int64_t total_;
  const int64_t block_size_;
  std::vector<uint32_t> free_;
};

// The blocks of one sequence, in the order of its rows. They return to the pool when the lease ends.
class KvLease {
 public:
  KvLease() = default;  // holds nothing and cannot grow
  KvLease(KvLease&& other) noexcept;
  KvLease& operator=(KvLease&& other) noexcept;
  ~KvLease() { Release(); }

  // Makes room for `rows` rows in total. False, with nothing changed, if the pool has too few free blocks.
  bool GrowTo(int64_t rows);
  void Release();
  const std::vector<uint32_t>& blocks() const { return blocks_; }

 private:
  friend class KvBlockPool;
  explicit KvLease(KvBlockPool* pool) : pool_(pool) {}

  KvBlockPool* pool_ = nullptr;
  std::vector<uint32_t> blocks_;
};

}  // namespace isotherm::gateway

#endif  // ISOTHERM_GATEWAY_SCHEDULE_KV_BLOCK_POOL_H_
