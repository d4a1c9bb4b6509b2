#include "tests/gguf/shards.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "common/gguf/file.h"
#include "common/gguf/writer.h"

namespace isotherm::testing {
namespace {

void CheckOk(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "WriteShards: %s\n", status.ToString().c_str());
  std::abort();
}

}  // namespace

std::string ShardPath(const std::string& prefix, int64_t number, int64_t count) {
  return absl::StrFormat("%s-%05d-of-%05d.gguf", prefix, number + 1, count);
}

std::string WriteShards(const std::string& prefix, const Bytes& bytes, int64_t count,
                        const std::function<void(int64_t number, gguf::Header& header)>& change) {
  const auto file = gguf::File::Parse(bytes, prefix);
  CheckOk(file.status());
  const auto tensors = (*file)->tensors();
  const int64_t total = static_cast<int64_t>(tensors.size());
  for (int64_t number = 0; number < count; ++number) {
    gguf::Header header((*file)->is_powerinfer() ? gguf::Header::Form::kPowerInfer
                                                 : gguf::Header::Form::kGguf);
    if (number == 0) header.CopyMetadata(**file);
    header.Set("split.no", static_cast<uint16_t>(number));
    header.Set("split.count", static_cast<uint16_t>(count));
    header.Set("split.tensors.count", static_cast<int32_t>(total));
    const auto part =
        tensors.subspan(total * number / count, total * (number + 1) / count - total * number / count);
    for (const gguf::TensorInfo& tensor : part) {
      header.AddTensor(tensor.name, tensor.type, {tensor.dims.begin(), tensor.dims.begin() + tensor.rank});
    }
    change(number, header);
    const auto writer = gguf::Writer::Create(ShardPath(prefix, number, count), header);
    CheckOk(writer.status());
    for (const gguf::TensorInfo& tensor : part) CheckOk((*writer)->Append((*file)->Data(tensor)));
    CheckOk((*writer)->Commit());
  }
  return ShardPath(prefix, 0, count);
}

}  // namespace isotherm::testing
