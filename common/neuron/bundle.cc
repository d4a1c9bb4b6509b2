#include "common/neuron/bundle.h"

#include <cmath>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"
#include "common/neuron/transpose.h"

namespace isotherm::neuron {
namespace {

using kernels::WeightType;

// A line of its own, so that the row behind it stays aligned.
constexpr int64_t kBiasBytes = 64;

bool TransposesExactly(WeightType type) {
  return type == WeightType::kF32 || type == WeightType::kF16 || type == WeightType::kBF16;
}

absl::Status CheckColumns(WeightType type, int64_t columns, const std::string& tensor) {
  if (columns % kernels::BlockColumns(type) == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s: a neuron has %d weights, not a multiple of the %d of a %s block", tensor, columns,
                      kernels::BlockColumns(type), kernels::WeightTypeName(type)));
}

absl::Status CheckNeurons(const std::vector<int32_t>& neurons, int64_t ffn) {
  int64_t previous = -1;
  for (int32_t neuron : neurons) {
    if (neuron <= previous || neuron >= ffn) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "neurons to pack must be ascending and below %d: %d after %d", ffn, neuron, previous));
    }
    previous = neuron;
  }
  return absl::OkStatus();
}

// Packs a tensor whose rows are neurons.
class RowPacker {
 public:
  RowPacker(const gguf::File& file, const std::vector<int32_t>& neurons, int64_t bundle_bytes,
            base::ThreadPool& pool)
      : file_(file), neurons_(neurons), bundle_bytes_(bundle_bytes), pool_(pool) {}

  void Pack(const model::TensorRef& tensor, WeightType type, uint8_t* out) const {
    // Rows handed out at a time: enough to hide the ticket, few enough that all members finish together.
    constexpr int64_t kGrain = 16;
    const uint8_t* data = file_.Data(*tensor.info).data();
    const int64_t file_row_bytes = kernels::FileRowBytes(type, tensor.columns);
    pool_.ParallelFor(static_cast<int64_t>(neurons_.size()), kGrain, [&](int64_t begin, int64_t end, int) {
      for (int64_t k = begin; k < end; ++k) {
        kernels::PackRow(type, data + neurons_[k] * file_row_bytes, tensor.columns, out + k * bundle_bytes_);
      }
    });
    file_.ReleasePages(*tensor.info);
  }

  // One value a neuron, as F32.
  void PackVector(const model::TensorRef& vector, WeightType type, uint8_t* out) const {
    std::vector<float> values(vector.columns);
    kernels::UnpackFileRow(type, file_.Data(*vector.info).data(), vector.columns, values.data());
    for (const int32_t neuron : neurons_) {
      std::memset(out, 0, kBiasBytes);
      std::memcpy(out, &values[neuron], sizeof(float));
      out += bundle_bytes_;
    }
  }

 private:
  const gguf::File& file_;
  const std::vector<int32_t>& neurons_;
  int64_t bundle_bytes_;
  base::ThreadPool& pool_;
};

absl::StatusOr<PackReport> PackTransposed(const model::Model& model, const model::TensorRef& down,
                                          const BundleLayout& layout, const internal::NeuronRows& rows,
                                          base::ThreadPool& pool) {
  ISOTHERM_ASSIGN_OR_RETURN(const WeightType type, PackedWeightType(*down.info));
  const internal::DownMatrix matrix{model.file().Data(*down.info).data(), type, down.rows, down.columns};
  PackReport report;
  if (layout.down_type == type && TransposesExactly(type)) {
    internal::TransposeExact(matrix, rows, pool);
  } else {
    const internal::SquareSums sums = internal::TransposeToQ8(matrix, rows, pool);
    if (sums.weight > 0) report.down_requantization_error = std::sqrt(sums.error / sums.weight);
  }
  model.file().ReleasePages(*down.info);
  return report;
}

}  // namespace

absl::StatusOr<WeightType> PackedWeightType(const gguf::TensorInfo& tensor) {
  switch (tensor.type) {
    case gguf::TensorType::kF32:
      return WeightType::kF32;
    case gguf::TensorType::kF16:
      return WeightType::kF16;
    case gguf::TensorType::kBF16:
      return WeightType::kBF16;
    case gguf::TensorType::kQ8_0:
      return WeightType::kQ8_0;
    case gguf::TensorType::kQ4_0:
      return WeightType::kQ4_0;
    case gguf::TensorType::kQ4_1:
      return WeightType::kQ4_1;
    case gguf::TensorType::kQ5_0:
      return WeightType::kQ5_0;
    case gguf::TensorType::kQ5_1:
      return WeightType::kQ5_1;
    case gguf::TensorType::kQ4_K:
      return WeightType::kQ4_K;
    case gguf::TensorType::kQ5_K:
      return WeightType::kQ5_K;
    case gguf::TensorType::kQ6_K:
      return WeightType::kQ6_K;
    default:
      return absl::UnimplementedError(
          absl::StrCat(tensor.name, " has type ", gguf::TensorTypeName(tensor.type),
                       "; weights may be F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K"));
  }
}

absl::StatusOr<BundleLayout> MakeBundleLayout(const model::Model& model, int64_t layer) {
  const model::Layer& tensors = model.layers()[layer];
  BundleLayout layout;
  layout.hidden = model.hyperparameters().hidden;
  layout.gated = tensors.gate.present();
  ISOTHERM_ASSIGN_OR_RETURN(layout.gate_type, PackedWeightType(*tensors.activated().info));
  ISOTHERM_ASSIGN_OR_RETURN(layout.up_type, PackedWeightType(*tensors.up.info));
  ISOTHERM_ASSIGN_OR_RETURN(layout.down_type, PackedWeightType(*tensors.down.info));
  if (!tensors.down_transposed && !TransposesExactly(layout.down_type)) layout.down_type = WeightType::kQ8_0;
  ISOTHERM_RETURN_IF_ERROR(CheckColumns(layout.gate_type, layout.hidden, tensors.activated().info->name));
  ISOTHERM_RETURN_IF_ERROR(CheckColumns(layout.up_type, layout.hidden, tensors.up.info->name));
  ISOTHERM_RETURN_IF_ERROR(CheckColumns(layout.down_type, layout.hidden, tensors.down.info->name));
  const int64_t first_row = kernels::PackedRowBytes(layout.gate_type, layout.hidden);
  if (layout.gated) {
    layout.up_offset = first_row;
    layout.down_offset = layout.up_offset + kernels::PackedRowBytes(layout.up_type, layout.hidden);
  } else {
    if (tensors.up_bias.present()) layout.bias_offset = first_row;
    layout.down_offset = first_row + (tensors.up_bias.present() ? kBiasBytes : 0);
  }
  layout.bundle_bytes = layout.down_offset + kernels::PackedRowBytes(layout.down_type, layout.hidden);
  return layout;
}

absl::StatusOr<PackReport> PackBundles(const model::Model& model, int64_t layer, const BundleLayout& layout,
                                       bool all, const std::vector<int32_t>& neurons, base::ThreadPool& pool,
                                       uint8_t* out) {
  const model::Layer& tensors = model.layers()[layer];
  const gguf::File& file = model.file();
  const int64_t ffn = model.hyperparameters().ffn;
  std::vector<int32_t> everything;
  if (all) {
    everything.resize(ffn);
    std::iota(everything.begin(), everything.end(), 0);
  } else {
    ISOTHERM_RETURN_IF_ERROR(CheckNeurons(neurons, ffn));
  }
  const std::vector<int32_t>& wanted = all ? everything : neurons;
  if (wanted.empty()) return PackReport{};

  const RowPacker packer(file, wanted, layout.bundle_bytes, pool);
  if (layer == 0) file.PrefetchPages(*tensors.activated().info);
  if (layout.gated) {
    file.PrefetchPages(*tensors.up.info);
    packer.Pack(tensors.gate, layout.gate_type, out);
  }
  file.PrefetchPages(*tensors.down.info);
  packer.Pack(tensors.up, layout.up_type, out + layout.up_offset);
  if (layout.bias_offset != 0) {
    ISOTHERM_ASSIGN_OR_RETURN(const WeightType bias_type, PackedWeightType(*tensors.up_bias.info));
    packer.PackVector(tensors.up_bias, bias_type, out + layout.bias_offset);
  }
  if (layer + 1 < static_cast<int64_t>(model.layers().size())) {
    file.PrefetchPages(*model.layers()[layer + 1].activated().info);
  }
  uint8_t* down_out = out + layout.down_offset;
  if (tensors.down_transposed) {
    packer.Pack(tensors.down, layout.down_type, down_out);
    return PackReport{};
  }
  return PackTransposed(model, tensors.down, layout, {&wanted, down_out, layout.bundle_bytes}, pool);
}

}  // namespace isotherm::neuron
