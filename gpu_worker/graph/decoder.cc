#include "gpu_worker/graph/decoder.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/base/status_macros.h"
#include "common/neuron/mask.h"

namespace isotherm::gpu_worker {
namespace {

// Asks for a layer's attention matrices, so that the disk goes on reading while what lies before them is
// packed.
void PrefetchAttention(const model::Model& model, int64_t index) {
  if (index == model.hyperparameters().layers) return;
  const model::Layer& layer = model.layers()[index];
  for (const model::Affine* projection : {&layer.q, &layer.k, &layer.v, &layer.attention_output}) {
    model.file().PrefetchPages(*projection->weight.info);
  }
}

// `count` rows in so many groups of like size, none of them empty.
std::vector<RowRange> DivideRows(int64_t count, int64_t groups) {
  groups = std::min(groups, count);
  std::vector<RowRange> ranges;
  for (int64_t i = 0; i < groups; ++i) ranges.push_back({count * i / groups, count * (i + 1) / groups});
  return ranges;
}

// Where these rows lie in a buffer of rows of `width` values.
template <typename T = float>
T* RowsOf(const Buffer& buffer, RowRange rows, int64_t width) {
  return buffer.as<T>() + rows.begin * width;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Load(const model::Model& model,
                                                       const RunnerOptions& options,
                                                       const neuron::Placement& placement, LayerRange layers,
                                                       std::unique_ptr<Predictor> predictor, Device& device,
                                                       const std::function<absl::Status()>& progress) {
  std::unique_ptr<Decoder> decoder(new Decoder(model.hyperparameters(), layers, device));
  decoder->predictor_ = std::move(predictor);
  ISOTHERM_RETURN_IF_ERROR(device.Configure(MakeFfnParameters(model.hyperparameters()),
                                            model.hyperparameters().layers, options.max_rows()));
  if (decoder->is_first()) model.file().PrefetchPages(*model.token_embedding().info);
  if (decoder->is_last()) model.file().PrefetchPages(*model.output().info);
  PrefetchAttention(model, layers.begin);
  if (decoder->is_last()) ISOTHERM_RETURN_IF_ERROR(decoder->LoadHead(model));
  if (decoder->is_first()) ISOTHERM_RETURN_IF_ERROR(decoder->LoadEmbedding(model));
  ISOTHERM_RETURN_IF_ERROR(decoder->LoadRope(model));
  for (int64_t l = layers.begin; l < layers.end; ++l) {
    ISOTHERM_RETURN_IF_ERROR(decoder->LoadLayer(model, l, options, placement));
    ISOTHERM_RETURN_IF_ERROR(progress());
  }
  ISOTHERM_RETURN_IF_ERROR(decoder->AllocateWorkspace(options));
  return decoder;
}

absl::Status Decoder::LoadHead(const model::Model& model) {
  constexpr MemoryPurpose kPurpose = MemoryPurpose::kHead;
  ISOTHERM_ASSIGN_OR_RETURN(output_, LoadMatrix(model, model.output(), kPurpose, device_));
  // The head is linear, so that its scale may go into the norm before it.
  ISOTHERM_ASSIGN_OR_RETURN(output_norm_,
                            LoadNorm(model, model.output_norm(), kPurpose, device_, h_.logit_scale));
  return absl::OkStatus();
}

absl::Status Decoder::LoadEmbedding(const model::Model& model) {
  constexpr MemoryPurpose kPurpose = MemoryPurpose::kEmbedding;
  if (is_last() && TiesEmbedding(model)) {
    embedding_ = output_;
  } else {
    ISOTHERM_ASSIGN_OR_RETURN(embedding_, LoadMatrix(model, model.token_embedding(), kPurpose, device_));
  }
  if (model.position_embedding().present()) {
    ISOTHERM_ASSIGN_OR_RETURN(positions_, LoadMatrix(model, model.position_embedding(), kPurpose, device_));
  }
  return absl::OkStatus();
}

absl::Status Decoder::LoadRope(const model::Model& model) {
  const int64_t pairs = h_.rope_dims / 2;
  if (pairs == 0) return absl::OkStatus();
  std::vector<float> factors(pairs, 1.0f);
  if (model.rope_factors().present()) {
    std::memcpy(factors.data(), model.file().Data(*model.rope_factors().info).data(), pairs * sizeof(float));
  }
  const int64_t bytes = pairs * static_cast<int64_t>(sizeof(float));
  ISOTHERM_ASSIGN_OR_RETURN(inverse_frequency_, device_.Allocate(bytes, MemoryPurpose::kWorkspace));
  rope_.inverse_frequency = inverse_frequency_.as<float>();
  rope_.pairs = pairs;
  if (h_.rope_pairs == model::RopePairs::kHalves) {
    rope_.step = 1;
    rope_.gap = pairs;
  }
  return device_.Write(inverse_frequency_, 0, bytes, [&](uint8_t* out) {
    auto* frequency = reinterpret_cast<float*>(out);
    for (int64_t i = 0; i < pairs; ++i) {
      // Linear scaling divides positions, which is the same as dividing frequencies.
      const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(h_.rope_dims);
      frequency[i] = static_cast<float>(std::pow(h_.rope_base, exponent) / (h_.rope_scale * factors[i]));
    }
  });
}

absl::Status Decoder::LoadLayer(const model::Model& model, int64_t index, const RunnerOptions& options,
                                const neuron::Placement& placement) {
  constexpr MemoryPurpose kPurpose = MemoryPurpose::kAttention;
  const model::Layer& source = model.layers()[index];
  LayerWeights& layer = layers_[index];
  ISOTHERM_RETURN_IF_ERROR(LoadAttention(model, index, options, layer));
  ISOTHERM_ASSIGN_OR_RETURN(layer.ffn_norm, LoadNorm(model, source.ffn_norm, kPurpose, device_));
  if (source.down_bias.present()) {
    ISOTHERM_ASSIGN_OR_RETURN(layer.down_bias, LoadVector(model, source.down_bias, kPurpose, device_));
  }
  PrefetchAttention(model, index + 1);
  return LoadHotNeurons(model, index, placement, layer);
}

absl::Status Decoder::LoadAttention(const model::Model& model, int64_t index, const RunnerOptions& options,
                                    LayerWeights& layer) {
  constexpr MemoryPurpose kPurpose = MemoryPurpose::kAttention;
  const model::Layer& source = model.layers()[index];
  ISOTHERM_ASSIGN_OR_RETURN(layer.attention_norm, LoadNorm(model, source.attention_norm, kPurpose, device_));
  ISOTHERM_ASSIGN_OR_RETURN(layer.q, LoadProjection(model, source.q, kPurpose, device_));
  ISOTHERM_ASSIGN_OR_RETURN(layer.k, LoadProjection(model, source.k, kPurpose, device_));
  ISOTHERM_ASSIGN_OR_RETURN(layer.v, LoadProjection(model, source.v, kPurpose, device_));
  ISOTHERM_ASSIGN_OR_RETURN(layer.attention_output,
                            LoadProjection(model, source.attention_output, kPurpose, device_));

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
      {&ffn_input_, rows * h_.hidden},
      {&ffn_, rows * h_.hidden},
      {&gathered_, rows * h_.hidden},
      {&q_, rows * query},
      {&attention_, rows * query},
      {&k_, rows * key},
      {&v_, rows * key},
      {&scores_, rows * h_.ffn},
      {&logits_, is_last() ? (options.max_decode_rows + kScoreRows) * h_.vocabulary : 0},
      {&log_probabilities_, is_last() ? rows : 0},
      {&masks_, rows * neuron::MaskWords(h_.ffn) * 2},
      {&expected_input_, kLookAheadRows * h_.hidden},
      {&expected_masks_, kLookAheadRows * neuron::MaskWords(h_.ffn) * 2},
      {&expected_scores_, kLookAheadRows * h_.ffn},
  };
  for (const auto& [buffer, floats] : wanted) {
    ISOTHERM_ASSIGN_OR_RETURN(
        *buffer, device_.Allocate(floats * static_cast<int64_t>(sizeof(float)), MemoryPurpose::kWorkspace));
  }
  return absl::OkStatus();
}

std::vector<HotLayer> Decoder::HotLayers() const {
  std::vector<HotLayer> layers;
  for (int64_t l = range_.begin; l < range_.end; ++l) layers.push_back(layers_[l].hot);
  return layers;
}

absl::Status Decoder::Continue(const Decoder& before, int64_t rows) {
  return device_.Import(before.device_, before.residual_.as<float>(), rows * h_.hidden,
                        residual_.as<float>());
}

void Decoder::Enqueue(const Pass& pass) {
  const int64_t rows = pass.input.rows();
  if (is_first()) {
    device_.Embed({embedding_.view, h_.embedding_scale, positions_.view, h_.position_offset},
                  residual_.as<float>());
  }
  if (!h_.parallel_attention) {
    device_.Normalize(layers_[range_.begin].attention_norm.view, residual_.as<float>(), rows, h_.hidden,
                      normed_.as<float>());
  }
  EnqueueLayers(DivideRows(rows, pass.micro_batches));
  if (is_last() && !pass.input.output_rows.empty()) EnqueueHead(pass);
}

// A batch's answer is waited for when it is its turn again, so that the CPU worker has had it while the other
// batches were computed here.
void Decoder::EnqueueLayers(const std::vector<RowRange>& batches) {
  const auto begin = h_.parallel_attention ? &Decoder::BeginParallelLayer : &Decoder::BeginSequentialLayer;
  const auto end = h_.parallel_attention ? &Decoder::EndParallelLayer : &Decoder::EndSequentialLayer;
  std::vector<FfnCall> calls(batches.size());
  for (int64_t l = range_.begin; l < range_.end; ++l) {
    for (size_t i = 0; i < batches.size(); ++i) {
      if (l > range_.begin) (this->*end)(calls[i], batches[i]);
      device_.SelectRows(batches[i]);
      calls[i] = (this->*begin)(l, batches[i], batches.size() == 1);
    }
    // With several the next exchange is another batch's.
    if (batches.size() == 1) TellExpectation(l + 1, batches[0].count());
  }
  for (size_t i = 0; i < batches.size(); ++i) (this->*end)(calls[i], batches[i]);
}

// From the normed input of the layer to the hot half of its FFN; the cold half is on its way.
FfnCall Decoder::BeginSequentialLayer(int64_t index, RowRange rows, bool alone) {
  const LayerWeights& layer = layers_[index];
  EnqueueAttention(layer, rows);
  device_.AddAndNormalize({RowsOf(normed_, rows, h_.hidden), nullptr, h_.residual_scale}, layer.ffn_norm.view,
                          rows.count(), h_.hidden, RowsOf(residual_, rows, h_.hidden),
                          RowsOf(ffn_input_, rows, h_.hidden));
  const FfnCall call = EnqueueColdFfn(index, rows);
  if (alone) PredictExpectation(index + 1, rows.count());
  device_.HotFfn(call, layer.hot, RowsOf(ffn_, rows, h_.hidden));
  return call;
}

// To the normed input of the next layer.
void Decoder::EndSequentialLayer(const FfnCall& call, RowRange rows) {
  const LayerWeights& layer = layers_[call.layer];
  float* residual = RowsOf(residual_, rows, h_.hidden);
  const FfnTerm ffn{RowsOf(ffn_, rows, h_.hidden), layer.down_bias.as<float>(), h_.residual_scale};
  if (call.layer + 1 == range_.end) {
    device_.MergeCold(call, layer.hot, ffn.part);
    return device_.Add(ffn.part, ffn.bias, ffn.scale, call.rows, h_.hidden, residual);
  }
  device_.MergeAndNormalize(call, layer.hot, ffn, layers_[call.layer + 1].attention_norm.view, h_.hidden,
                            residual, RowsOf(normed_, rows, h_.hidden));
}

// Both branches read the layer's input, so that the cold half is under way while attention is computed.
FfnCall Decoder::BeginParallelLayer(int64_t index, RowRange rows, bool alone) {
  const LayerWeights& layer = layers_[index];
  const float* residual = RowsOf(residual_, rows, h_.hidden);
  device_.Normalize(layer.ffn_norm.view, residual, rows.count(), h_.hidden,
                    RowsOf(ffn_input_, rows, h_.hidden));
  const FfnCall call = EnqueueColdFfn(index, rows);
  if (alone) PredictExpectation(index + 1, rows.count());
  device_.Normalize(layer.attention_norm.view, residual, rows.count(), h_.hidden,
                    RowsOf(normed_, rows, h_.hidden));
  EnqueueAttention(layer, rows);
  device_.HotFfn(call, layer.hot, RowsOf(ffn_, rows, h_.hidden));
  return call;
}

void Decoder::EndParallelLayer(const FfnCall& call, RowRange rows) {
  const LayerWeights& layer = layers_[call.layer];
  float* residual = RowsOf(residual_, rows, h_.hidden);
  float* ffn = RowsOf(ffn_, rows, h_.hidden);
  device_.MergeCold(call, layer.hot, ffn);
  device_.Add(RowsOf(normed_, rows, h_.hidden), nullptr, h_.residual_scale, call.rows, h_.hidden, residual);
  device_.Add(ffn, layer.down_bias.as<float>(), h_.residual_scale, call.rows, h_.hidden, residual);
}

// From normed_ to normed_.
void Decoder::EnqueueAttention(const LayerWeights& layer, RowRange rows) {
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(h_.head_dim)));
  const auto product = [](const DeviceProjection& projection, float* y) {
    return Product{projection.weight.view, projection.bias.as<float>(), y};
  };
  const int64_t query = h_.heads * h_.head_dim;
  const int64_t key = h_.kv_heads * h_.head_dim;
  float* normed = RowsOf(normed_, rows, h_.hidden);
  float* q = RowsOf(q_, rows, query);
  float* k = RowsOf(k_, rows, key);
  float* v = RowsOf(v_, rows, key);
  float* attention = RowsOf(attention_, rows, query);
  device_.MatMuls({product(layer.q, q), product(layer.k, k), product(layer.v, v)}, normed, rows.count());
  device_.RopeAndWriteKv(rope_, layer.kv_view, h_.heads, q, k, v);
  device_.Attention(layer.kv_view, q, h_.heads, scale, attention);
  const DeviceProjection& output = layer.attention_output;
  device_.MatMul(output.weight.view, output.bias.as<float>(), attention, rows.count(), normed);
}

// From ffn_input_: predicts, and sends the cold half on its way.
FfnCall Decoder::EnqueueColdFfn(int64_t index, RowRange rows) {
  FfnCall call;
  call.layer = index;
  call.rows = rows.count();
  call.x = RowsOf(ffn_input_, rows, h_.hidden);
  const Prediction prediction{RowsOf<uint64_t>(masks_, rows, neuron::MaskWords(h_.ffn)),
                              RowsOf(scores_, rows, h_.ffn)};
  predictor_->Enqueue(device_, index, RowsOf(residual_, rows, h_.hidden), call.x, call.rows, prediction);
  call.masks = prediction.masks;
  call.gate = predictor_->yields_gate() ? prediction.scores : nullptr;
  call.dense = predictor_->dense();
  device_.SendCold(call, layers_[index].hot);
  return call;
}

bool Decoder::ExpectsCold(int64_t index, int64_t rows) const {
  return index < range_.end && rows <= kLookAheadRows && device_.looks_ahead(rows) &&
         predictor_->looks_ahead() && layers_[index].hot.count < h_.ffn &&
         layers_[index - 1].hot.count < h_.ffn;
}

// What the layer will probably want of the CPU worker, from the residual before the FFN of the layer before
// it: each layer changes the residual a little only. Beside that FFN, which has its scratch to itself.
void Decoder::PredictExpectation(int64_t index, int64_t rows) {
  if (!ExpectsCold(index, rows)) return;
  device_.Fork([&] {
    device_.Normalize(layers_[index].ffn_norm.view, residual_.as<float>(), rows, h_.hidden,
                      expected_input_.as<float>());
    predictor_->Enqueue(device_, index, residual_.as<float>(), expected_input_.as<float>(), rows,
                        {expected_masks_.as<uint64_t>(), expected_scores_.as<float>(), /*ahead=*/true});
  });
}

// Once the layer before has asked the CPU worker for its own.
void Decoder::TellExpectation(int64_t index, int64_t rows) {
  if (!ExpectsCold(index, rows)) return;
  device_.Join();
  FfnCall call;
  call.layer = index;
  call.rows = rows;
  call.masks = expected_masks_.as<uint64_t>();
  device_.ExpectCold(call, layers_[index].hot);
}

void Decoder::EnqueueHead(const Pass& pass) {
  const auto outputs = static_cast<int64_t>(pass.input.output_rows.size());
  float* gathered = gathered_.as<float>();
  device_.GatherOutputRows(residual_.as<float>(), h_.hidden, gathered);
  device_.Normalize(output_norm_.view, gathered, outputs, h_.hidden, gathered);
  if (pass.logit_rows > 0)
    device_.MatMul(output_.view, nullptr, gathered, pass.logit_rows, logits_.as<float>());

  // Scored rows share a buffer of kScoreRows rows behind the logits that the caller reads.
  const absl::Span<const uint32_t> targets(pass.targets);
  float* scored = logits_.as<float>() + pass.logit_rows * h_.vocabulary;
  for (int64_t first = pass.logit_rows; first < outputs; first += kScoreRows) {
    const int64_t rows = std::min(kScoreRows, outputs - first);
    device_.MatMul(output_.view, nullptr, gathered + first * h_.hidden, rows, scored);
    device_.LogProbabilities(scored, h_.vocabulary, targets.subspan(first - pass.logit_rows, rows),
                             log_probabilities_.as<float>() + (first - pass.logit_rows));
  }
}

}  // namespace isotherm::gpu_worker
