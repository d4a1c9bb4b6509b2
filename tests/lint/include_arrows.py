"""Which room may include which: arrows point down, never up or sideways.

    gateway    gpu_worker    cpu_worker    tools
       +------------+-------------+----------+
       v
    common/rpc        base, observe
    common/exchange   neuron, kernels and below
    common/neuron     kernels, model and below
    common/kernels    base alone
    common/model      gguf and below
    common/gguf       observe, base
    common/observe    base
    common/base
"""

import pathlib
import re

import source_tree

COMMON_ARROWS = {
    "common/base": set(),
    "common/observe": {"common/base"},
    "common/gguf": {"common/base", "common/observe"},
    "common/model": {"common/base", "common/observe", "common/gguf"},
    "common/kernels": {"common/base"},
    "common/neuron": {"common/base", "common/observe", "common/gguf", "common/model", "common/kernels"},
    "common/exchange": {"common/base", "common/observe", "common/kernels", "common/neuron", "proto/worker"},
    "common/rpc": {"common/base", "common/observe"},
}
ALL_OF_COMMON = set(COMMON_ARROWS)
ARROWS = {
    **COMMON_ARROWS,
    "gateway": ALL_OF_COMMON | {"proto/public", "proto/worker"},
    "gpu_worker": ALL_OF_COMMON | {"proto/public", "proto/worker"},
    "cpu_worker": ALL_OF_COMMON | {"proto/public", "proto/worker"},
    # Tools are clients like any other: they see the public protocol alone.
    "tools": ALL_OF_COMMON | {"proto/public"},
}
# Rooms with folders of their own, whose arrows may point any way but not in a circle.
ROOMS_WITH_FOLDERS = ("gateway", "gpu_worker", "cpu_worker", "tools")
# Two implementations of one seam.
STRANGERS = {("gpu_worker/host", "gpu_worker/cuda"), ("gpu_worker/cuda", "gpu_worker/host")}

INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]')
SUFFIXES = (".h", ".cc", ".cpp", ".hpp", ".cu", ".cuh", ".inc")


def room_of(path):
    """The room a path below the repository (or a generated header) belongs to; None for what is not ours."""
    parts = path.split("/")
    if parts[:2] == ["isotherm", "worker"]:
        return "proto/worker"
    if parts[0] == "isotherm":
        return "proto/public"
    if parts[0] == "common":
        return "/".join(parts[:2])
    return parts[0] if parts[0] in (*ROOMS_WITH_FOLDERS, "tests") else None


def folder_of(path):
    """The folder of a room with folders, "gateway/text"; the room itself for files at its top."""
    parts = path.split("/")
    return "/".join(parts[:2]) if len(parts) > 2 else parts[0]


def includes(root):
    """Yields (file, line number, included path) for every include of the tree outside tests/, paths below `root`."""
    for top in ("common", *ROOMS_WITH_FOLDERS):
        for path in source_tree.files(root / top, *SUFFIXES):
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                if match := INCLUDE.match(line):
                    yield str(path.relative_to(root)), number, match.group(1)


def find_cycle(graph):
    """Some circle in {node: successors} as a list that ends where it begins, or None."""
    finished = set()

    def visit(node, path):
        if node in path:
            return path[path.index(node):] + [node]
        if node in finished:
            return None
        for successor in sorted(graph.get(node, ())):
            if cycle := visit(successor, path + [node]):
                return cycle
        finished.add(node)
        return None

    for node in sorted(graph):
        if cycle := visit(node, []):
            return cycle
    return None


def violations(root):
    """What is wrong with the includes of the tree, a line each."""
    root = pathlib.Path(root)
    problems = []
    folder_graph = {}
    for file, number, included in includes(root):
        where = f"{file}:{number}: "
        if ".." in included.split("/") or (root / file).parent.joinpath(included).exists():
            problems.append(f"{where}'{included}' is relative; write the path from the top of the repository")
            continue
        source, target = room_of(file), room_of(included)
        if source not in ARROWS:
            problems.append(f"{where}room {source} has no place in the order; add it to include_arrows.py")
        elif target is None:
            continue
        elif target != source:
            if target not in ARROWS[source]:
                problems.append(f"{where}{source} may not include {target} ('{included}')")
        elif source in ROOMS_WITH_FOLDERS:
            arrow = (folder_of(file), folder_of(included))
            if arrow in STRANGERS:
                problems.append(f"{where}{arrow[0]} and {arrow[1]} never include each other ('{included}')")
            elif arrow[0] != arrow[1]:
                folder_graph.setdefault(arrow[0], set()).add(arrow[1])
    if cycle := find_cycle(folder_graph):
        problems.append("folders include each other in a circle: " + " -> ".join(cycle))
    return problems
