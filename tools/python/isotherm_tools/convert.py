"""isotherm-convert: a Hugging Face checkpoint as GGUF, with its predictors and firing counts if there are any.

    isotherm-convert ReluLLaMA-7B --out relullama-7b.gguf
    isotherm-convert ReluLLaMA-7B ReluLLaMA-7B-Predictor --activations activation --out relullama-7b-sparse.gguf
    isotherm-convert ReluLLaMA-7B ReluLLaMA-7B-Predictor --powerinfer --out relullama-7b.powerinfer.gguf

Without predictors and counts the file is what llama.cpp's converter writes. With them its down projection is transposed, so
that a row belongs to one neuron, and the predictors go in as Isotherm's own ("What Isotherm adds to GGUF" in
tools/python/README.md). --powerinfer writes PowerInfer's form instead, which Isotherm reads just as well.

Supported: LlamaForCausalLM and SparseLlamaForCausalLM (SiLU, ReLU, FATReLU), Mistral, Bamboo and TurboSparse, MiniCPM, Falcon (7B
and 40B forms), OPT, Nemotron, Arcee, Qwen2. Weights are read from model*.safetensors or pytorch_model*.bin a few rows at a time,
without torch; a file that cannot be finished is removed.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from isotherm_tools import gguf_llama as gl
from isotherm_tools.checkpoint import Checkpoint
from isotherm_tools.conversion_plan import Form, PlannedTensor, Planner, computed
from isotherm_tools.errors import UserError, run_command
from isotherm_tools.families import family_of, write_activation
from isotherm_tools.gguf_output import GgufOutput
from isotherm_tools.hf_config import HfConfig
from isotherm_tools.hf_vocabulary import load_vocabulary
from isotherm_tools.powerinfer_inputs import PredictorFolder, load_counts
from isotherm_tools.progress import Progress
from isotherm_tools.stored_tensor import to_f32

SLAB = 1 << 19
"""Elements a thread converts at once: 2 MiB as F32, in a few copies, so that memory does not grow with the model."""

MOST_THREADS = 4
"""Reading and writing keep up with no more."""

LARGEST_F16 = 65504.0

_PREDICTOR_NAMES = {False: ("pred_a", "pred_b"), True: ("fc1", "fc2")}
"""By --powerinfer."""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="isotherm-convert", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="HF_DIR", type=Path,
                        help="folder with config.json, the weights and the tokenizer")
    parser.add_argument("predictors", metavar="PREDICTOR_DIR", type=Path, nargs="?",
                        help="folder with model_0.pt to model_{layers-1}.pt, each with fc1.weight [rank, hidden] and "
                        "fc2.weight [ffn, rank]; a config.json there may hold sparse_threshold")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the GGUF file to write")
    parser.add_argument("--type", choices=["f16", "bf16", "f32", "q8_0"], default="f16",
                        help="of the matrices (default f16); norms and biases are always F32. 'isotherm quantize' makes further "
                        "types from such a file")
    parser.add_argument("--powerinfer", action="store_true",
                        help="write PowerInfer's form (magic PWRI): needs PREDICTOR_DIR. PowerInfer itself runs only --type f16")
    parser.add_argument("--activations", metavar="DIR", type=Path,
                        help="folder with activation_0.pt to activation_{layers-1}.pt: how often each neuron fired, which "
                        "decides the neurons kept on the GPU")
    parser.add_argument("--activation-tokens", metavar="N", type=int,
                        help="tokens over which --activations counted (default: the largest count)")
    parser.add_argument("--name", help="general.name (default: the folder's name)")
    return parser.parse_intermixed_args(arguments)


class Converter:
    """One conversion: everything that can be wrong with the input is found before the output is begun."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._checkpoint = Checkpoint(options.model)
        self._config = HfConfig(self._checkpoint.config, options.model / "config.json")
        self._family = family_of(self._config)
        self._check_options(options)
        own_form = options.predictors is not None or options.activations is not None
        planner = Planner(self._checkpoint, self._config, self._family,
                          Form(options.type, options.powerinfer, transpose_down=own_form))
        self._tensors = planner.plan()
        self._vocabulary = load_vocabulary(options.model, self._config.integer("vocab_size"))
        ffn = next(t.shape[0] for t in self._tensors if t.name == "blk.0.ffn_up.weight")
        layers, hidden = self._config.layers, self._config.hidden
        self._predictors = (PredictorFolder(options.predictors, layers, hidden, ffn)
                            if options.predictors is not None else None)
        self._counts = load_counts(options.activations, layers, ffn) if options.activations is not None else None
        self._tensors += self._sidecar_tensors()

    def run(self) -> None:
        """Writes the file."""
        options = self._options
        name = options.name if options.name is not None else options.model.resolve().name
        with GgufOutput(options.out, self._family.architecture, options.type, name, options.powerinfer) as output:
            self._write_metadata(output.metadata)
            for tensor in self._tensors:
                output.declare(tensor.name, tensor.shape, tensor.type_name)
            output.begin()
            self._write_tensors(output)
            output.finish()

    def _check_options(self, options: argparse.Namespace) -> None:
        if options.powerinfer and options.predictors is None:
            raise UserError("--powerinfer needs PREDICTOR_DIR: PowerInfer runs no model without predictors")
        if options.powerinfer and not self._family.powerinfer:
            raise UserError(f"PowerInfer does not run {self._family.architecture} models; leave --powerinfer out for "
                            "Isotherm's form")
        if options.powerinfer and options.type == "bf16":
            raise UserError("PowerInfer's readers know no BF16; take --type f16")
        if options.powerinfer and options.activations is not None:
            raise UserError("PowerInfer's form has no room for firing counts: leave --activations out and keep that folder "
                            "beside the file, or leave --powerinfer out")
        if options.activation_tokens is not None and options.activation_tokens <= 0:
            raise UserError(f"--activation-tokens is {options.activation_tokens} where a positive number is expected")

    def _sidecar_tensors(self) -> list[PlannedTensor]:
        """Predictors and counts, by layer, behind the model's own tensors."""
        type_name = "f32" if self._options.type == "f32" else "f16"
        first, second = _PREDICTOR_NAMES[self._options.powerinfer]
        tensors = []
        for layer in range(self._config.layers):
            if self._predictors is not None:
                predictor = self._predictors.layers[layer]
                tensors += [PlannedTensor(f"blk.{layer}.{first}.weight", predictor.fc1, type_name),
                            PlannedTensor(f"blk.{layer}.{second}.weight", predictor.fc2, type_name)]
            if self._counts is not None:
                tensors.append(computed(f"blk.{layer}.ffn_act_counts", self._counts[layer]))
        return tensors

    def _write_metadata(self, writer: GGUFWriter) -> None:
        self._family.write_keys(writer, self._config)
        write_activation(writer, self._config, self._family)
        self._vocabulary.write(writer)
        if self._predictors is not None and self._options.powerinfer:
            writer.add_float32(gl.KEY_POWERINFER_THRESHOLD, self._predictors.threshold)
        elif self._predictors is not None:
            writer.add_string(gl.KEY_PREDICTOR_FORM, "relu")
            writer.add_string(gl.KEY_PREDICTOR_INPUT, "residual")
            writer.add_float32(gl.KEY_PREDICTOR_THRESHOLD, self._predictors.threshold)
        if self._counts is not None:
            tokens = self._options.activation_tokens
            writer.add_uint64(gl.KEY_PROFILE_TOKENS, tokens if tokens is not None else max(int(self._counts.max()), 1))

    def _write_tensors(self, output: GgufOutput) -> None:
        progress = Progress("convert", len(self._tensors))
        with ThreadPoolExecutor(min(MOST_THREADS, cpu_count() or 1)) as pool:
            for done, tensor in enumerate(self._tensors):
                for _ in pool.map(lambda slab, tensor=tensor: write_slab(output, tensor, slab), slabs(tensor)):
                    pass
                self._checkpoint.release()
                if self._predictors is not None:
                    self._predictors.release()
                progress.update(done + 1, tensor.name)


def slabs(tensor: PlannedTensor) -> Iterator[slice]:
    """Ranges of output rows, each of about SLAB elements; a vector is one row."""
    if len(tensor.shape) == 1:
        yield slice(0, 1)
        return
    rows, columns = tensor.shape
    step = max(1, SLAB // max(columns, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def write_slab(output: GgufOutput, tensor: PlannedTensor, rows: slice) -> None:
    """Reads, converts and writes some rows of a tensor."""
    output.write(tensor.name, encode_rows(tensor, rows), rows.start)


def encode_rows(tensor: PlannedTensor, rows: slice) -> np.ndarray:
    """Some output rows of a tensor in its type. UserError for values that the type cannot hold."""
    source = tensor.stored.data
    if len(tensor.shape) == 1:
        raw = source if tensor.row_order is None else source[tensor.row_order]
    elif tensor.transposed:
        raw = np.ascontiguousarray(source[:, rows].T)
    else:
        raw = source[rows] if tensor.row_order is None else source[tensor.row_order[rows]]
    values = to_f32(raw, tensor.stored.kind)
    largest = float(np.abs(values).max(initial=0.0))
    if not np.isfinite(largest):
        raise UserError(f"{tensor.stored.origin} holds a value that is not finite; is the checkpoint damaged?")
    if tensor.type_name == "f16" and largest > LARGEST_F16:
        raise UserError(f"{tensor.stored.origin} holds {largest:g}, which F16 cannot; take --type bf16 or f32")
    if tensor.type_name == tensor.stored.kind and tensor.add == 0:
        return raw
    return gl.encode(values + np.float32(tensor.add), tensor.type_name)


def convert(arguments: list[str] | None = None) -> None:
    """The command line. UserError or OSError for what its user can mend."""
    options = parse_arguments(arguments)
    started = time.monotonic()
    Converter(options).run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{options.out}: {options.out.stat().st_size} bytes in {time.monotonic() - started:.0f} s, peak memory {peak:.0f} MiB")


def main() -> None:
    sys.exit(run_command("isotherm-convert", convert))


if __name__ == "__main__":
    main()
