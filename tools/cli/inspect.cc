#include "tools/cli/inspect.h"

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/types/span.h"
#include "common/base/status_macros.h"
#include "common/gguf/file.h"
#include "common/model/model.h"
#include "common/model/profile.h"
#include "tools/cli/inspect_model.h"

namespace isotherm::cli {
namespace {

constexpr int64_t kOutsideLayers = -1;

// A tensor of a layer under its name without "blk.N.".
struct NamedTensor {
  std::string name;
  const gguf::TensorInfo* info;

  bool operator==(const NamedTensor& other) const {
    return std::tie(name, info->type, info->dims) == std::tie(other.name, other.info->type, other.info->dims);
  }
};

using TensorGroup = std::vector<NamedTensor>;

std::pair<int64_t, std::string> SplitLayer(const std::string& name) {
  constexpr size_t kPrefixBytes = 4;  // of "blk."
  const size_t dot = name.find('.', kPrefixBytes);
  int64_t layer = 0;
  if (!absl::StartsWith(name, "blk.") || dot == std::string::npos ||
      !absl::SimpleAtoi(name.substr(kPrefixBytes, dot - kPrefixBytes), &layer) || layer < 0) {
    return {kOutsideLayers, name};
  }
  return {layer, name.substr(dot + 1)};
}

std::map<int64_t, TensorGroup> GroupByLayer(const gguf::File& file) {
  std::map<int64_t, TensorGroup> groups;
  for (const gguf::TensorInfo& tensor : file.tensors()) {
    auto [layer, name] = SplitLayer(tensor.name);
    groups[layer].push_back({std::move(name), &tensor});
  }
  return groups;
}

uint64_t GroupBytes(const TensorGroup& group) {
  uint64_t bytes = 0;
  for (const NamedTensor& tensor : group) bytes += tensor.info->bytes;
  return bytes;
}

void PrintGroup(const std::string& title, const TensorGroup& group, std::ostream& out) {
  out << "  " << title << "\n";
  for (const NamedTensor& tensor : group) {
    const auto dims = absl::MakeConstSpan(tensor.info->dims).first(tensor.info->rank);
    out << absl::StreamFormat("    %-28s %-8s %-20s %12s\n", absl::Utf8SafeCHexEscape(tensor.name),
                              gguf::TensorTypeName(tensor.info->type),
                              absl::StrCat("[", absl::StrJoin(dims, ", "), "]"),
                              FormatBytes(tensor.info->bytes));
  }
}

void PrintTensors(const gguf::File& file, std::ostream& out) {
  out << "\nTensors (dimensions in ggml's order, the contiguous one first)\n";
  const std::map<int64_t, TensorGroup> groups = GroupByLayer(file);
  for (auto first = groups.begin(); first != groups.end();) {
    auto last = first;
    for (auto next = std::next(last); next != groups.end() && next->second == first->second &&
                                      next->first == last->first + 1 && first->first != kOutsideLayers;
         ++next) {
      last = next;
    }
    const std::string bytes = FormatBytes(GroupBytes(first->second));
    if (first->first == kOutsideLayers) {
      PrintGroup(absl::StrCat("outside of the layers, ", bytes), first->second, out);
    } else if (first == last) {
      PrintGroup(absl::StrCat("layer ", first->first, ", ", bytes), first->second, out);
    } else {
      PrintGroup(absl::StrCat("layers ", first->first, " to ", last->first, ", each ", bytes), first->second,
                 out);
    }
    first = std::next(last);
  }
}

void PrintMetadata(const gguf::File& file, std::ostream& out) {
  out << absl::StreamFormat("%s: %s version %d, %s, %d tensors\ndigest %s\n\nMetadata\n", file.path(),
                            file.is_powerinfer() ? "PowerInfer GGUF" : "GGUF", file.version(),
                            FormatBytes(file.size_bytes()), file.tensors().size(), file.StructureDigest());
  for (const std::string& key : file.MetadataKeys()) {
    out << absl::StreamFormat("  %-42s %s\n", absl::Utf8SafeCHexEscape(key), file.DescribeValue(key));
  }
}

absl::StatusOr<std::optional<model::Profile>> FindFirings(const std::string& path, const model::Model& model,
                                                          std::ostream& out) {
  if (!path.empty()) return model::ReadProfile(path, model);
  model::FoundProfile found = model::FindProfile(model);
  if (!found.beside.ok() && !absl::IsNotFound(found.beside)) {
    out << "\nIgnored: " << found.beside.message() << "\n";
  }
  return std::move(found.profile);
}

absl::Status WriteText(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text << std::flush;
  if (file.good()) return absl::OkStatus();
  return absl::ErrnoToStatus(errno, absl::StrCat("writing ", path));
}

absl::Status Plot(const std::optional<model::Profile>& profile, const model::Model& model,
                  const InspectOptions& options, std::ostream& out) {
  if (profile.has_value()) PlotCoverage(CoverageCurves(*profile), options.plot_style, out);
  if (options.plot_path.empty()) return absl::OkStatus();
  if (!profile.has_value()) {
    return absl::FailedPreconditionError(absl::StrCat("nothing to plot: '", model.DisplayName(),
                                                      "' has no firing counts; 'isotherm profile' collects "
                                                      "them"));
  }
  return WriteText(options.plot_path, CoverageSvg(CoverageCurves(*profile), model.DisplayName()));
}

}  // namespace

absl::Status Inspect(const InspectOptions& options, std::ostream& out) {
  ISOTHERM_ASSIGN_OR_RETURN(std::unique_ptr<gguf::File> file, gguf::File::Open(options.path));
  PrintMetadata(*file, out);
  PrintTensors(*file, out);
  const auto model = model::Model::FromFile(std::move(file));
  if (!model.ok()) {
    if (options.vram_budget_bytes) return model.status();
    out << "\nIsotherm cannot run this file: " << model.status().message() << "\n";
    return absl::OkStatus();
  }
  PrintHyperparameters(**model, out);
  PrintBytesByPurpose(**model, out);
  ISOTHERM_ASSIGN_OR_RETURN(const std::optional<model::Profile> profile,
                            FindFirings(options.profile_path, **model, out));
  PrintFirings(**model, profile, out);
  ISOTHERM_RETURN_IF_ERROR(Plot(profile, **model, options, out));
  if (!options.vram_budget_bytes) return absl::OkStatus();
  return PrintPlacement(**model, profile, *options.vram_budget_bytes, options.kv_tokens, out);
}

}  // namespace isotherm::cli
