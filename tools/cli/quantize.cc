#include "tools/cli/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/command_line.h"
#include "common/base/status_macros.h"
#include "common/base/thread_pool.h"
#include "common/gguf/writer.h"
#include "common/neuron/bundle.h"
#include "common/observe/progress.h"
#include "tools/cli/inspect_model.h"

namespace isotherm::cli {
namespace {

using kernels::WeightType;

// llama.cpp's number for files whose matrices are mostly of a type (enum llama_ftype).
uint32_t FileTypeNumber(gguf::TensorType type) {
  switch (type) {
    case gguf::TensorType::kF16:
      return 1;
    case gguf::TensorType::kQ4_0:
      return 2;
    case gguf::TensorType::kQ8_0:
      return 7;
    case gguf::TensorType::kQ4_K:
      return 14;
    case gguf::TensorType::kBF16:
      return 32;
    default:
      return 0;
  }
}
// Of the blocks' layout: llama.cpp's GGML_QNT_VERSION.
constexpr uint32_t kQuantizationVersion = 2;

// The rows of a tensor as they will be written, in F32.
class RowReader {
 public:
  // Rows to ask for together: of a transposed matrix as many as the largest block has columns, as one read of
  // a block gives a weight to each of them; else enough to be worth a task.
  static constexpr int64_t kRows = 256;

  RowReader(const gguf::File& file, const TensorPlan& plan, WeightType type)
      : data_(file.Data(*plan.source).data()),
        type_(type),
        source_columns_(plan.source->dims[0]),
        columns_(plan.dims[0]),
        transposed_(plan.transposed) {}

  // Rows [first, first + count), count at most kRows and `first` a multiple of it.
  void Read(int64_t first, int64_t count, float* out) const {
    if (transposed_) return ReadColumns(first, count, out);
    const int64_t row_bytes = kernels::FileRowBytes(type_, columns_);
    for (int64_t r = 0; r < count; ++r) {
      kernels::UnpackFileRow(type_, data_ + (first + r) * row_bytes, columns_, out + r * columns_);
    }
  }

 private:
  void ReadColumns(int64_t first, int64_t count, float* out) const {
    // Rows of the source that are turned together: a cache line of the result.
    constexpr int64_t kLine = 16;
    float segments[kLine][kRows];
    const int64_t row_bytes = kernels::FileRowBytes(type_, source_columns_);
    const uint8_t* const begin = data_ + kernels::FileRowBytes(type_, first);
    for (int64_t c = 0; c < columns_; c += kLine) {
      const int64_t lines = std::min(kLine, columns_ - c);
      for (int64_t i = 0; i < lines; ++i) {
        kernels::UnpackFileRow(type_, begin + (c + i) * row_bytes, count, segments[i]);
      }
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t i = 0; i < lines; ++i) out[r * columns_ + c + i] = segments[i][r];
      }
    }
  }

  const uint8_t* const data_;
  const WeightType type_;
  const int64_t source_columns_, columns_;
  const bool transposed_;
};

struct SquareSums {
  double error = 0;
  double weight = 0;
};

// Rounds the rows of one tensor, a piece of it at a time.
class Rounder {
 public:
  Rounder(const gguf::File& file, const TensorPlan& plan, WeightType from, WeightType to,
          base::ThreadPool& pool)
      : reader_(file, plan, from), to_(to), columns_(plan.dims[0]), rows_(plan.dims[1]), pool_(pool) {}

  // Calls write(bytes) for all of it, in order, and returns the relative error.
  template <typename Write>
  absl::StatusOr<double> Run(const Write& write) {
    const int64_t row_bytes = kernels::FileRowBytes(to_, columns_);
    const int64_t piece_rows = RowReader::kRows * pool_.threads();
    std::vector<uint8_t> piece(std::min(piece_rows, rows_) * row_bytes);
    SquareSums total;
    for (int64_t first = 0; first < rows_; first += piece_rows) {
      const int64_t rows = std::min(piece_rows, rows_ - first);
      std::vector<SquareSums> sums((rows + RowReader::kRows - 1) / RowReader::kRows);
      pool_.ParallelFor(rows, RowReader::kRows, [&](int64_t begin, int64_t end, int) {
        sums[begin / RowReader::kRows] = Round(first + begin, end - begin, piece.data() + begin * row_bytes);
      });
      for (const SquareSums& part : sums) {
        total.error += part.error;
        total.weight += part.weight;
      }
      ISOTHERM_RETURN_IF_ERROR(write(absl::MakeConstSpan(piece).first(rows * row_bytes)));
    }
    return total.weight > 0 ? std::sqrt(total.error / total.weight) : total.error;
  }

 private:
  SquareSums Round(int64_t first, int64_t rows, uint8_t* out) const {
    std::vector<float> values(rows * columns_), rounded(columns_);
    reader_.Read(first, rows, values.data());
    const int64_t row_bytes = kernels::FileRowBytes(to_, columns_);
    SquareSums sums;
    for (int64_t r = 0; r < rows; ++r) {
      const float* const row = values.data() + r * columns_;
      kernels::EncodeFileRow(to_, row, columns_, out + r * row_bytes);
      kernels::UnpackFileRow(to_, out + r * row_bytes, columns_, rounded.data());
      for (int64_t c = 0; c < columns_; ++c) {
        const double error = static_cast<double>(rounded[c]) - row[c];
        sums.error += error * error;
        sums.weight += static_cast<double>(row[c]) * row[c];
      }
    }
    return sums;
  }

  const RowReader reader_;
  const WeightType to_;
  const int64_t columns_, rows_;
  base::ThreadPool& pool_;
};

gguf::TensorInfo Target(const TensorPlan& plan) {
  gguf::TensorInfo info = *plan.source;
  info.name = plan.name;
  info.type = plan.type;
  return info;
}

class Quantizer {
 public:
  Quantizer(const gguf::File& file, gguf::Writer& writer, int threads)
      : file_(file),
        writer_(writer),
        pool_({.threads = threads}),
        progress_("quantizing", static_cast<int64_t>(file.size_bytes()), "bytes") {}

  // The relative error; 0 where the bytes were copied.
  absl::StatusOr<double> Write(const TensorPlan& plan) {
    absl::StatusOr<double> error = plan.copied() ? Copy(plan) : Round(plan);
    ISOTHERM_RETURN_IF_ERROR(error.status());
    file_.ReleasePages(*plan.source);
    progress_.Advance(static_cast<int64_t>(plan.source->bytes));
    return error;
  }
  void Finish() { progress_.Finish(); }

 private:
  absl::StatusOr<double> Copy(const TensorPlan& plan) {
    ISOTHERM_RETURN_IF_ERROR(writer_.Append(file_.Data(*plan.source)));
    return 0.0;
  }

  absl::StatusOr<double> Round(const TensorPlan& plan) {
    ISOTHERM_ASSIGN_OR_RETURN(const WeightType from, neuron::PackedWeightType(*plan.source));
    ISOTHERM_ASSIGN_OR_RETURN(const WeightType to, neuron::PackedWeightType(Target(plan)));
    Rounder rounder(file_, plan, from, to, pool_);
    ISOTHERM_ASSIGN_OR_RETURN(const double error, rounder.Run([&](absl::Span<const uint8_t> bytes) {
      return writer_.Append(bytes);
    }));
    if (std::isfinite(error)) return error;
    return absl::InvalidArgumentError(absl::StrCat(file_.path(), ": tensor '", plan.source->name,
                                                   "' has weights that ", gguf::TensorTypeName(plan.type),
                                                   " cannot hold: NaN, infinite or of more than 65504"));
  }

  const gguf::File& file_;
  gguf::Writer& writer_;
  base::ThreadPool pool_;
  observe::Progress progress_;
};

gguf::Header MakeHeader(const gguf::File& file, const std::vector<TensorPlan>& plans, gguf::TensorType type) {
  gguf::Header header(file.is_powerinfer() ? gguf::Header::Form::kPowerInfer : gguf::Header::Form::kGguf);
  header.CopyMetadata(file);
  header.Set("general.file_type", FileTypeNumber(type));
  header.Set("general.quantization_version", kQuantizationVersion);
  for (const TensorPlan& plan : plans) header.AddTensor(plan.name, plan.type, plan.dims);
  return header;
}

void Report(const std::vector<TensorPlan>& plans, const std::vector<double>& errors, std::ostream& out) {
  size_t width = 0;
  for (const TensorPlan& plan : plans) width = std::max(width, plan.name.size());
  for (size_t i = 0; i < plans.size(); ++i) {
    const TensorPlan& plan = plans[i];
    out << absl::StreamFormat("%-*s  %5s", width, plan.name, gguf::TensorTypeName(plan.source->type));
    if (plan.copied()) {
      out << " kept\n";
    } else {
      out << absl::StreamFormat(" -> %-5s  error %.3g %%%s\n", gguf::TensorTypeName(plan.type),
                                100 * errors[i], plan.transposed ? ", transposed" : "");
    }
  }
}

absl::Status CheckDifferentFiles(const QuantizeOptions& options) {
  std::error_code ignored;
  if (!std::filesystem::equivalent(options.in, options.out, ignored)) return absl::OkStatus();
  return base::UsageError(
      absl::StrCat("IN and OUT are the same file, ", options.in, "; name another to write"));
}

}  // namespace

absl::Status Quantize(const QuantizeOptions& options, std::ostream& report) {
  ISOTHERM_RETURN_IF_ERROR(CheckDifferentFiles(options));
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<gguf::File> file, gguf::File::Open(options.in));
  ISOTHERM_ASSIGN_OR_RETURN(const std::vector<TensorPlan> plans, PlanTensors(*file, options.rules));
  const gguf::Header header = MakeHeader(*file, plans, options.rules.type);
  ISOTHERM_ASSIGN_OR_RETURN(const std::unique_ptr<gguf::Writer> writer,
                            gguf::Writer::Create(options.out, header));
  Quantizer quantizer(*file, *writer, options.threads);
  std::vector<double> errors;
  for (const TensorPlan& plan : plans) {
    ISOTHERM_ASSIGN_OR_RETURN(const double error, quantizer.Write(plan));
    errors.push_back(error);
  }
  ISOTHERM_RETURN_IF_ERROR(writer->Commit());
  quantizer.Finish();
  Report(plans, errors, report);
  report << absl::StreamFormat("\n%s: %s -> %s: %s\n", options.in, FormatBytes(file->size_bytes()),
                               options.out, FormatBytes(std::filesystem::file_size(options.out)));
  return absl::OkStatus();
}

}  // namespace isotherm::cli
