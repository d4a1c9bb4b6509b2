#include "gpu_worker/graph/decoder.h"

#include <spdlog/spdlog.h>

#include <cmath>
#include <cstring>

#include "common/base/status_macros.h"
#include "common/neuron/mask.h"

namespace isotherm::gpu_worker {

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Load(const model::Model& model,
                                                       const RunnerOptions& options,
                                                       const neuron::Placement& placement,
                                                       std::unique_ptr<Predictor> predictor, Device& device,
                                                       const std::function<absl::Status()>& progress) {
  std::unique_ptr<Decoder> decoder(new Decoder(model.hyperparameters(), device));
  decoder->predictor_ = std::move(predictor);
  device.Configure(MakeFfnParameters(model.hyperparameters()), model.hyperparameters().layers,
                   options.max_rows());
  ISOTHERM_RETURN_IF_ERROR(decoder->LoadHead(model));
  for (int64_t l = 0; l < model.hyperparameters().layers; ++l) {
    ISOTHERM_RETURN_IF_ERROR(decoder->LoadLayer(model, l, options, placement));
    ISOTHERM_RETURN_IF_ERROR(progress());
  }
  ISOTHERM_RETURN_IF_ERROR(decoder->AllocateWorkspace(options));
  return decoder;
}

absl::Status Decoder::LoadHead(const model::Model& model) {
  constexpr MemoryPurpose kPurpose = MemoryPurpose::kHead;
  ISOTHERM_ASSIGN_OR_RETURN(embedding_, LoadMatrix(model, model.token_embedding(), kPurpose, device_));
  if (model.output().info == model.token_embedding().info) {
    output_ = embedding_;
  } else {
    ISOTHERM_ASSIGN_OR_RETURN(output_, LoadMatrix(model, model.output(), kPurpose, device_));
  }
  ISOTHERM_ASSIGN_OR_RETURN(output_norm_, LoadVector(model, model.output_norm(), kPurpose, device_));
  return absl::OkStatus();
}

absl::Status Decoder::LoadLayer(const model::Model& model, int64_t index, const RunnerOptions& options,
                                const neuron::Placement& placement) {
  constexpr MemoryPurpose kPurpose = MemoryPurpose::kAttention;
  const model::Layer& source = model.layers()[index];
  LayerWeights layer;
  ISOTHERM_ASSIGN_OR_RETURN(layer.attention_norm,
                            LoadVector(model, source.attention_norm, kPurpose, device_));
  ISOTHERM_ASSIGN_OR_RETURN(layer.ffn_norm, LoadVector(model, source.ffn_norm, kPurpose, device_));
  ISOTHERM_ASSIGN_OR_RETURN(layer.q, LoadMatrix(model, source.q, kPurpose, device_));
  ISOTHERM_ASSIGN_OR_RETURN(layer.k, LoadMatrix(model, source.k, kPurpose, device_));
  ISOTHERM_ASSIGN_OR_RETURN(layer.v, LoadMatrix(model, source.v, kPurpose, device_));
  ISOTHERM_ASSIGN_OR_RETURN(layer.attention_output,
                            LoadMatrix(model, source.attention_output, kPurpose, device_));

  kernels::PagedKv& kv = layer.kv_view;
  kv.type = options.kv_type;
  kv.kv_heads = h_.kv_heads;
  kv.head_dim = h_.head_dim;
  kv.block_size = options.kv_block_size;
  kv.block_bytes = h_.kv_heads * options.kv_block_size * kernels::KvRowBytes(options.kv_type, h_.head_dim);
  const int64_t half = options.kv_blocks() * kv.block_bytes;
  ISOTHERM_ASSIGN_OR_RETURN(layer.kv, device_.Allocate(2 * half, MemoryPurpose::kKvCache));
  kv.k = layer.kv.data();
  kv.v = layer.kv.data() + half;

  ISOTHERM_RETURN_IF_ERROR(LoadHotNeurons(model, index, placement, layer));
  layers_.push_back(std::move(layer));
  return absl::OkStatus();
}

absl::Status Decoder::LoadHotNeurons(const model::Model& model, int64_t index,
                                     const neuron::Placement& placement, LayerWeights& layer) {
  constexpr MemoryPurpose kPurpose = MemoryPurpose::kHotNeurons;
  const std::vector<int32_t> ids = placement.HotNeurons(index);
  const std::vector<uint64_t>& mask = placement.hot[index];
  HotLayer& hot = layer.hot;
  ISOTHERM_ASSIGN_OR_RETURN(hot.layout, neuron::MakeBundleLayout(model, index));
  hot.count = static_cast<int64_t>(ids.size());

  const int64_t mask_bytes = static_cast<int64_t>(mask.size() * sizeof(uint64_t));
  ISOTHERM_ASSIGN_OR_RETURN(layer.hot_mask, device_.Allocate(mask_bytes, MemoryPurpose::kWorkspace));
  ISOTHERM_RETURN_IF_ERROR(device_.Write(layer.hot_mask, 0, mask_bytes,
                                         [&](uint8_t* out) { std::memcpy(out, mask.data(), mask_bytes); }));
  hot.hot_mask = layer.hot_mask.as<uint64_t>();
  if (ids.empty()) return absl::OkStatus();

  const int64_t id_bytes = static_cast<int64_t>(ids.size() * sizeof(int32_t));
  ISOTHERM_ASSIGN_OR_RETURN(layer.neuron_ids, device_.Allocate(id_bytes, kPurpose));
  ISOTHERM_RETURN_IF_ERROR(device_.Write(layer.neuron_ids, 0, id_bytes,
                                         [&](uint8_t* out) { std::memcpy(out, ids.data(), id_bytes); }));
  const int64_t bundle_bytes = hot.count * hot.layout.bundle_bytes;
  ISOTHERM_ASSIGN_OR_RETURN(layer.bundles, device_.Allocate(bundle_bytes, kPurpose));
  absl::StatusOr<neuron::PackReport> report;
  ISOTHERM_RETURN_IF_ERROR(device_.Write(layer.bundles, 0, bundle_bytes, [&](uint8_t* out) {
    report = neuron::PackBundles(model, index, hot.layout, /*all=*/hot.count == h_.ffn, ids,
                                 device_.loader_pool(), out);
  }));
  ISOTHERM_RETURN_IF_ERROR(report.status());
  if (report->down_requantization_error > 0 && index == 0) {
    spdlog::info("ffn_down is requantised to Q8_0 by neuron: relative error {:.2e} in layer 0",
                 report->down_requantization_error);
  }
  hot.bundles = layer.bundles.data();
  hot.neuron_ids = layer.neuron_ids.as<int32_t>();
  return absl::OkStatus();
}

absl::Status Decoder::AllocateWorkspace(const RunnerOptions& options) {
  const int64_t rows = options.max_rows();
  const int64_t query = h_.heads * h_.head_dim;
  const int64_t key = h_.kv_heads * h_.head_dim;
  const struct {
    Buffer* buffer;
    int64_t floats;
  } wanted[] = {
      {&residual_, rows * h_.hidden},
      {&normed_, rows * h_.hidden},
      {&ffn_, rows * h_.hidden},
      {&gathered_, rows * h_.hidden},
      {&q_, rows * query},
      {&attention_, rows * query},
      {&k_, rows * key},
      {&v_, rows * key},
      {&scores_, rows * h_.ffn},
      {&logits_, (options.max_decode_rows + kScoreRows) * h_.vocabulary},
      {&log_probabilities_, rows},
      {&masks_, rows * neuron::MaskWords(h_.ffn) * 2},
      {&inverse_frequency_, h_.rope_dims / 2},
  };
  for (const auto& [buffer, floats] : wanted) {
    ISOTHERM_ASSIGN_OR_RETURN(
        *buffer, device_.Allocate(floats * static_cast<int64_t>(sizeof(float)), MemoryPurpose::kWorkspace));
  }
  return device_.Write(
      inverse_frequency_, 0, h_.rope_dims / 2 * static_cast<int64_t>(sizeof(float)), [&](uint8_t* out) {
        auto* frequency = reinterpret_cast<float*>(out);
        for (int64_t i = 0; i < h_.rope_dims / 2; ++i) {
          // Linear scaling divides positions, which is the same as dividing frequencies.
          const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(h_.rope_dims);
          frequency[i] = static_cast<float>(std::pow(h_.rope_base, exponent) / h_.rope_scale);
        }
      });
}

void Decoder::Enqueue(const Pass& pass) {
  const int64_t rows = pass.input.rows();
  device_.Embed(embedding_.view, residual_.as<float>());
  for (int64_t l = 0; l < h_.layers; ++l) {
    EnqueueAttention(layers_[l], rows);
    EnqueueFfn(l, layers_[l], rows);
  }
  if (!pass.input.output_rows.empty()) EnqueueHead(pass);
}

void Decoder::EnqueueAttention(const LayerWeights& layer, int64_t rows) {
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(h_.head_dim)));
  device_.RmsNorm(residual_.as<float>(), layer.attention_norm.as<float>(), h_.rms_epsilon, rows, h_.hidden,
                  normed_.as<float>());
  device_.MatMul(layer.q.view, normed_.as<float>(), rows, q_.as<float>());
  device_.MatMul(layer.k.view, normed_.as<float>(), rows, k_.as<float>());
  device_.MatMul(layer.v.view, normed_.as<float>(), rows, v_.as<float>());
  device_.RopeAndWriteKv({inverse_frequency_.as<float>(), h_.rope_dims}, layer.kv_view, h_.heads,
                         q_.as<float>(), k_.as<float>(), v_.as<float>());
  device_.Attention(layer.kv_view, q_.as<float>(), h_.heads, scale, attention_.as<float>());
  device_.MatMul(layer.attention_output.view, attention_.as<float>(), rows, normed_.as<float>());
  device_.Add(normed_.as<float>(), rows * h_.hidden, residual_.as<float>());
}

void Decoder::EnqueueFfn(int64_t index, const LayerWeights& layer, int64_t rows) {
  device_.RmsNorm(residual_.as<float>(), layer.ffn_norm.as<float>(), h_.rms_epsilon, rows, h_.hidden,
                  normed_.as<float>());
  const Prediction prediction{masks_.as<uint64_t>(), scores_.as<float>()};
  predictor_->Enqueue(device_, index, residual_.as<float>(), normed_.as<float>(), rows, prediction);

  FfnCall call;
  call.layer = index;
  call.rows = rows;
  call.x = normed_.as<float>();
  call.masks = masks_.as<uint64_t>();
  call.gate = predictor_->yields_gate() ? scores_.as<float>() : nullptr;
  call.dense = predictor_->dense();
  device_.SendCold(call, layer.hot);
  device_.HotFfn(call, layer.hot, ffn_.as<float>());
  device_.MergeCold(call, layer.hot, ffn_.as<float>());
  device_.Add(ffn_.as<float>(), rows * h_.hidden, residual_.as<float>());
}

void Decoder::EnqueueHead(const Pass& pass) {
  const auto outputs = static_cast<int64_t>(pass.input.output_rows.size());
  float* gathered = gathered_.as<float>();
  device_.GatherOutputRows(residual_.as<float>(), h_.hidden, gathered);
  device_.RmsNorm(gathered, output_norm_.as<float>(), h_.rms_epsilon, outputs, h_.hidden, gathered);
  if (pass.logit_rows > 0) device_.MatMul(output_.view, gathered, pass.logit_rows, logits_.as<float>());

  // Scored rows share a buffer of kScoreRows rows behind the logits that the caller reads.
  const absl::Span<const uint32_t> targets(pass.targets);
  float* scored = logits_.as<float>() + pass.logit_rows * h_.vocabulary;
  for (int64_t first = pass.logit_rows; first < outputs; first += kScoreRows) {
    const int64_t rows = std::min(kScoreRows, outputs - first);
    device_.MatMul(output_.view, gathered + first * h_.hidden, rows, scored);
    device_.LogProbabilities(scored, h_.vocabulary, targets.subspan(first - pass.logit_rows, rows),
                             log_probabilities_.as<float>() + (first - pass.logit_rows));
  }
}

}  // namespace isotherm::gpu_worker
