#ifndef ISOTHERM_GPU_WORKER_KERNELS_TILE_DOTS_CUH_
#define ISOTHERM_GPU_WORKER_KERNELS_TILE_DOTS_CUH_

#include "gpu_worker/kernels/tile_input.cuh"

namespace isotherm::gpu_worker::cuda {

// Warps that share a tile, each a part of its columns: as many as leave each enough to have in flight. A
// function of the type and width alone, as a row's sum must not depend on what is computed beside it.
inline constexpr int kMostTileSharing = 8;
template <typename D>
int TileSharing(int64_t columns) {
  constexpr int64_t kLeastSteps = 4;
  int sharing = 1;
  while (sharing < kMostTileSharing && TileSteps<D>(columns) >= 2 * kLeastSteps * sharing) sharing *= 2;
  return sharing;
}

// Dot products of tiles of weight rows with token rows by the warps of a block of kThreads together.
//   Rows rows(tile, i)              where row i of the tile is; past the last one any row
//   Done done(tile, i, b, product)  is called by one thread for every row and token row, those past the last
//                                   too
// Loads are always some steps ahead, from one tile into the next. All is inlined, so that they go to
// registers.
template <typename D, int kBatch, int kThreads>
class TileDots {
 public:
  using Input = TileInput<D, kBatch>;
  // Tiles begin, begin + step * n, ... and the sharing groups' neighbours of each.
  struct Tiles {
    int begin, end, step;
  };

  __device__ TileDots(const Input& input, int64_t columns, int sharing)
      : input_(input),
        columns_(columns),
        chunks_(static_cast<int>(Chunks<D>(columns))),
        sharing_(sharing),
        part_(static_cast<int>(threadIdx.x) / kWarp % sharing),
        group_(static_cast<int>(threadIdx.x) / kWarp / sharing) {}

  // Tiles that the block has at a time.
  __device__ int groups() const { return kThreads / kWarp / sharing_; }

  // Begins to load the first tiles; input is not looked at.
  template <typename Rows>
  __device__ __forceinline__ void Start(const Tiles& tiles, const Rows& rows) {
    next_ = Find(tiles, tiles.begin, rows);
#pragma unroll
    for (int a = 0; a < kAhead; ++a) Load(raw_[a], next_, part_ + a * sharing_);
  }

  // By all threads of the block, after Start with the same arguments; ends with a barrier.
  template <typename Rows, typename Done>
  __device__ __forceinline__ void Run(const Tiles& tiles, const Rows& rows, const Done& done) {
    for (int first = tiles.begin; first < tiles.end; first += tiles.step) {
      typename Input::Sums sums;
      const LaneRows current = next_;
      next_ = Find(tiles, first + tiles.step, rows);
      AddSteps(current, sums);
      input_.Store(sums, Parts() + threadIdx.x / kWarp * kSums);
      __syncthreads();
      AddParts(tiles, first, done);
      __syncthreads();
    }
  }

 private:
  static constexpr int kAhead = 4;  // steps on their way at once
  static constexpr int kSums = kTileRows * kBatch;

  // Where a tile's rows lie that this lane reads, and how many chunks of them there are: none past the last
  // tile.
  struct LaneRows {
    const uint8_t* row[2];
    int chunks;
  };
  template <typename Rows>
  __device__ __forceinline__ LaneRows Find(const Tiles& tiles, int first, const Rows& rows) const {
    const int tile = first + group_;
    if (tile >= tiles.end) return {{nullptr, nullptr}, 0};
    return {{rows(tile, LaneRow()), rows(tile, LaneRow() + 8)}, chunks_};
  }

  __device__ __forceinline__ void Load(typename D::Raw (&raw)[2], const LaneRows& from, int step) const {
    const int chunk = step * kStepChunks + LaneChunk();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      raw[r] = chunk < from.chunks ? D::Load(from.row[r], columns_, chunk) : typename D::Raw{};
    }
  }

  // This warp's steps of the current tile; what it has loaded afterwards are the first of the next.
  __device__ __forceinline__ void AddSteps(const LaneRows& current, typename Input::Sums& sums) {
    const int round = kAhead * sharing_;
    for (int base = part_; base < input_.steps(); base += round) {
      const bool last = base + round >= input_.steps();
      const LaneRows from = last ? next_ : current;
      const int next_base = last ? part_ : base + round;
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int step = base + a * sharing_;
        if (step < input_.steps()) input_.MultiplyAdd(raw_[a], step, sums);
        Load(raw_[a], from, next_base + a * sharing_);
      }
    }
  }

  // In the order of the parts.
  template <typename Done>
  __device__ void AddParts(const Tiles& tiles, int first, const Done& done) const {
    for (int i = static_cast<int>(threadIdx.x); i < groups() * kSums; i += kThreads) {
      const int tile = first + i / kSums;
      const float* const parts = Parts() + i / kSums * sharing_ * kSums + i % kSums;
      float sum = parts[0];
      for (int part = 1; part < sharing_; ++part) sum += parts[part * kSums];
      if (tile < tiles.end) done(tile, i % kSums / kBatch, i % kBatch, sum);
    }
  }

  static __device__ float* Parts() {
    __shared__ float parts[kThreads / kWarp * kSums];
    return parts;
  }

  Input input_;  // by value: a reference would keep its object out of registers
  int64_t columns_;
  int chunks_, sharing_, part_, group_;
  LaneRows next_;  // what is read when the current tile is over
  typename D::Raw raw_[kAhead][2];
};

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_TILE_DOTS_CUH_
