"""isotherm-synthesize: writes a ReLU model of any architecture and size whose neurons fire as often as asked, as GGUF.

Such a model says nothing sensible, but costs what a real one of its shape and sparsity costs.

    isotherm-synthesize --layers 16 --hidden 2048 --ffn 5632 --heads 16 --active 0.10 --type f16 --out synthetic.gguf

    # Llama 2 13B's shape with a low-rank gate, deeper layers denser, as Isotherm's file and as PowerInfer's with the same weights
    isotherm-synthesize --layers 40 --hidden 5120 --ffn 13824 --heads 40 --active 0.05,0.15 --rank 256 --locality 0.3 \\
        --out synthetic-13b.gguf --powerinfer-out synthetic-13b.powerinfer.gguf

    # Llama 2 70B's
    isotherm-synthesize --layers 80 --hidden 8192 --ffn 28672 --heads 64 --kv-heads 8 --type q4_0 --out synthetic-70b.gguf

It runs on torch where that is installed (pip install 'isotherm-tools[torch]'), on CUDA where there is a GPU, and else on numpy.
How it is done is told in isotherm_tools/synthetic_model.py.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np

from isotherm_tools import gguf_llama as gl
from isotherm_tools.arrays import arrays_on
from isotherm_tools.errors import UserError, run_command
from isotherm_tools.synthetic_model import Synthesizer
from isotherm_tools.synthetic_recipe import BLUEPRINTS, Measured, Recipe


def by_depth(text: str) -> float | tuple[float, ...]:
    """`0.1`, or `0.05,0.2`: from the first layer to the last."""
    values = tuple(float(part) for part in text.split(","))
    return values if len(values) > 1 else values[0]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="isotherm-synthesize", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=list(BLUEPRINTS), default="llama", help="default llama, with a ReLU gate")
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--hidden", type=int, required=True)
    parser.add_argument("--ffn", type=int, required=True)
    parser.add_argument("--heads", type=int, required=True)
    parser.add_argument("--kv-heads", type=int, help="default: as many as heads")
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--context", type=int, default=4096, help="tokens")
    parser.add_argument("--type", choices=["f16", "q8_0", "q4_0", "f32"], default="f16")
    parser.add_argument("--active", type=by_depth, default=0.10, metavar="SHARE[,SHARE...]",
                        help="share of neurons that fire for a token (default 0.10); several: from the first layer to the last")
    parser.add_argument("--popularity-exponent", type=by_depth, default=0.75, metavar="X[,X...]",
                        help="the neuron of rank r fires in proportion to r^-X (default 0.75); several: as for --active")
    parser.add_argument("--locality", type=float, default=0.0, metavar="SHARE",
                        help="share of a token's embedding that its topic decides (default 0): the higher, the more of the "
                        "neurons that fired for a token fire for the next one too")
    parser.add_argument("--rank", type=int, default=0,
                        help="rank of the gate (of up where there is none); stores an exact predictor (0: full rank, none)")
    parser.add_argument("--predictor-type", choices=["f16", "q8_0"], default="f16",
                        help="of the stored predictor; --powerinfer-out has f16 (default f16)")
    parser.add_argument("--predictor-margin", type=float, default=3.0, metavar="X",
                        help="neurons are kept up to X standard deviations of what quantising does to scores below firing (default 3: "
                        "hardly any that fires is missed; 1.5: 0.4 %% of them beside weights of Q4_0, and a sixth fewer kept)")
    parser.add_argument("--calibration-tokens", type=int, default=512)
    parser.add_argument("--measured-tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", help="numpy, cpu or cuda (default: the fastest there is)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--powerinfer-out", type=Path, metavar="FILE",
                        help="the same weights in PowerInfer's form, too; needs --rank")
    return parser.parse_args(arguments)


def print_table(measured: Measured) -> None:
    """What came out, a line a layer."""
    with_predictor = bool(measured.recall_by_layer)
    print("layer  active %  again %" + ("  recall %  kept %" if with_predictor else ""))
    for layer, (active, again) in enumerate(zip(measured.active_by_layer, measured.again_by_layer, strict=True)):
        line = f"{layer:5d}  {100 * active:8.2f}  {100 * again:7.2f}"
        if with_predictor:
            line += f"  {100 * measured.recall_by_layer[layer]:8.2f}  {100 * measured.kept_by_layer[layer]:6.2f}"
        print(line)
    print(f" mean  {100 * float(np.mean(measured.active_by_layer)):8.2f}  {100 * float(np.mean(measured.again_by_layer)):7.2f}")


def synthesize(arguments: list[str] | None = None) -> None:
    """The command line. UserError or OSError for what its user can mend."""
    options = parse_arguments(arguments)
    started = time.monotonic()
    try:
        shape = gl.LlamaShape(layers=options.layers, hidden=options.hidden, ffn=options.ffn, heads=options.heads,
                              kv_heads=options.kv_heads if options.kv_heads is not None else options.heads,
                              vocab=options.vocab, context=options.context)
        recipe = Recipe(shape, options.type, options.active, options.popularity_exponent, options.rank,
                        options.calibration_tokens, options.measured_tokens, options.seed, options.arch, options.predictor_type,
                        options.predictor_margin, options.locality)
        measured = Synthesizer(recipe, options.out, options.powerinfer_out, arrays_on(options.device)).run()
    except ValueError as error:
        raise UserError(str(error)) from error
    print_table(measured)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for path in (options.out, options.powerinfer_out):
        if path is not None:
            print(f"{path}: {path.stat().st_size} bytes")
    print(f"{time.monotonic() - started:.0f} s, peak memory {peak:.0f} MiB")


def main() -> None:
    sys.exit(run_command("isotherm-synthesize", synthesize))


if __name__ == "__main__":
    main()
