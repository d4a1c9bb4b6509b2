"""The files of a source tree that the checks of this folder read."""

import os
import pathlib
import tempfile
import unittest

# What building, testing and running leave behind, and what git keeps.
SKIPPED_FOLDERS = {".git", ".venv", "__pycache__", "node_modules"}
SKIPPED_TOP_FOLDERS = {"build", "run"}


def files(root, *suffixes):
    """Yields the path of every file below `root` with one of the suffixes (none: every file), sorted."""
    root = pathlib.Path(root)
    found = []
    for folder, folders, names in os.walk(root):
        skipped = SKIPPED_FOLDERS | (SKIPPED_TOP_FOLDERS if pathlib.Path(folder) == root else set())
        folders[:] = [name for name in folders if name not in skipped and not name.endswith(".egg-info")]
        found += [pathlib.Path(folder, name) for name in names if not suffixes or name.endswith(suffixes)]
    return sorted(found)


def source_root():
    """The repository: from CTest, or the one this file is in."""
    default = pathlib.Path(__file__).resolve().parents[2]
    return pathlib.Path(os.environ.get("ISOTHERM_SOURCE_DIR", default))


class TreeTestCase(unittest.TestCase):
    """Makes small trees to show that a check finds what it is for."""

    def make_tree(self, contents):
        """Writes {path: text} into a temporary folder and returns it."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        for path, text in contents.items():
            full = pathlib.Path(folder.name, path)
            full.parent.mkdir(parents=True, exist_ok=True)
            full.write_bytes(text if isinstance(text, bytes) else text.encode())
        return pathlib.Path(folder.name)
