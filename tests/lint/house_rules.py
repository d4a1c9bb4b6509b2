"""Rules of the house that a machine can check: sizes, header guards, no unfinished ends, no paths of one machine."""

import pathlib
import re

import source_tree

CODE_SUFFIXES = (".h", ".cc", ".cu", ".cuh", ".py", ".proto", ".cmake", ".sh", "CMakeLists.txt")
HEADER_SUFFIXES = (".h", ".cuh")
MOST_LINES = 500
MOST_HEADER_LINES = 300
# Where the reason for a longer file must stand.
REASON_LINES = 30
REASON = "Long because"

# Put together so that this file does not hold what it looks for.
UNFINISHED = re.compile(r"\b(?:TO" r"DO|FIX" r"ME)\b")
# Only at the start of a path: "gpu/work/" is none of them.
LOCAL_PATH = re.compile(r"(?<![\w.-])(?:/wo" r"rk/|/tm" r"p/build)")
LARGEST_TEXT_BYTES = 1 << 20


def expected_guard(relative_path):
    """"common/base/host.h" is guarded by ISOTHERM_COMMON_BASE_HOST_H_."""
    return "ISOTHERM_" + re.sub(r"\W", "_", relative_path).upper() + "_"


def guard_problem(relative_path, text):
    guard = expected_guard(relative_path)
    lines = [line.strip() for line in text.splitlines() if line.startswith("#")]
    if relative_path.endswith("-inl.h"):
        # Highway includes these once for each target and toggles the guard itself.
        return None if any(guard in line for line in lines) else f"guard {guard} is missing"
    if lines[:2] != [f"#ifndef {guard}", f"#define {guard}"]:
        return f"does not begin with the guard {guard}"
    if not text.rstrip().endswith(f"#endif  // {guard}"):
        return f"does not end with '#endif  // {guard}'"
    return None


def length_problem(relative_path, text):
    lines = text.splitlines()
    most = MOST_HEADER_LINES if relative_path.endswith(HEADER_SUFFIXES) else MOST_LINES
    if len(lines) <= most or any(REASON in line for line in lines[:REASON_LINES]):
        return None
    return f"has {len(lines)} lines; above {most} a comment near the top says '{REASON} ...'"


def code_problems(relative_path, text):
    """What is wrong with one file of code."""
    problems = [length_problem(relative_path, text)]
    if relative_path.endswith(HEADER_SUFFIXES):
        problems.append(guard_problem(relative_path, text))
    for number, line in enumerate(text.splitlines(), 1):
        if UNFINISHED.search(line):
            problems.append(f"line {number} leaves something unfinished: {line.strip()}")
    return [problem for problem in problems if problem]


def read_text(path):
    """The text of a file; None for binary and very large files."""
    if path.is_symlink() or path.stat().st_size > LARGEST_TEXT_BYTES:
        return None
    content = path.read_bytes()
    return None if b"\0" in content else content.decode(errors="replace")


def violations(root):
    """What is wrong with the tree, a line each."""
    root = pathlib.Path(root)
    problems = []
    for path in source_tree.files(root):
        relative_path = path.relative_to(root).as_posix()
        text = read_text(path)
        if text is None:
            continue
        if relative_path.endswith(CODE_SUFFIXES):
            problems += [f"{relative_path}: {problem}" for problem in code_problems(relative_path, text)]
        for number, line in enumerate(text.splitlines(), 1):
            if LOCAL_PATH.search(line):
                problems.append(f"{relative_path}:{number}: names a path of one machine: {line.strip()}")
    return problems
