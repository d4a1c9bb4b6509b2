"""Checks the repository against house_rules.py, and house_rules.py against trees that break each rule."""

import unittest

import house_rules
import source_tree

GOOD_HEADER = "#ifndef ISOTHERM_COMMON_A_H_\n#define ISOTHERM_COMMON_A_H_\n\nint a;\n\n#endif  // ISOTHERM_COMMON_A_H_\n"


class HouseRulesTest(source_tree.TreeTestCase):

    def problems(self, contents):
        return house_rules.violations(self.make_tree(contents))

    def assert_one_problem(self, path, text, words):
        problems = self.problems({path: text})
        self.assertEqual(1, len(problems), problems)
        self.assertIn(path, problems[0])
        self.assertIn(words, problems[0])

    def test_the_repository_keeps_the_rules(self):
        root = source_tree.source_root()
        self.assertGreater(len(source_tree.files(root, ".h")), 20, "the headers were not found")
        problems = house_rules.violations(root)
        self.assertFalse(problems, "\n" + "\n".join(problems))

    def test_good_files_pass(self):
        self.assertEqual([], self.problems({
            "common/a.h": GOOD_HEADER,
            "common/b.cc": "int b;\n" * 500,
            "common/c-inl.h": "#if defined(ISOTHERM_COMMON_C_INL_H_) == defined(HWY_TARGET_TOGGLE)\n#endif\n",
            "docs/d.md": "Any number of lines.\n" * 2000,
            "models/e.bin": b"\0/wo" b"rk/",
        }))

    def test_long_files_need_a_reason(self):
        self.assert_one_problem("a.cc", "int a;\n" * 501, "has 501 lines")
        self.assert_one_problem("b.py", "b = 1\n" * 501, "has 501 lines")
        self.assertEqual([], self.problems({"a.cc": "// Long because the table is.\n" + "int a;\n" * 501}))
        self.assert_one_problem("c.cc", "int a;\n" * 501 + "// Long because of an afterthought.\n", "lines")
        self.assert_one_problem("common/a.h", GOOD_HEADER.replace("int a;", "int a;\n" * 300), "above 300")

    def test_header_guards_follow_the_path(self):
        self.assert_one_problem("common/a.h", "int a;\n", "ISOTHERM_COMMON_A_H_")
        self.assert_one_problem("common/a.h", "#pragma once\nint a;\n", "ISOTHERM_COMMON_A_H_")
        self.assert_one_problem("common/b.h", GOOD_HEADER, "ISOTHERM_COMMON_B_H_")
        self.assert_one_problem("common/a.h", GOOD_HEADER.replace("#endif  //", "#endif //"), "does not end")
        self.assert_one_problem("common/c-inl.h", "int c;\n", "ISOTHERM_COMMON_C_INL_H_")

    def test_nothing_is_left_unfinished(self):
        self.assert_one_problem("a.cc", "int a;  // TO" "DO: more\n", "line 1")
        self.assert_one_problem("b.py", "\n# FIX" "ME\n", "line 2")

    def test_paths_of_one_machine_are_found_in_any_text(self):
        self.assert_one_problem("docs/a.md", "See /wo" "rk/notes.\n", "docs/a.md:1")
        self.assert_one_problem("Makefile", "x:\n\tcd /tm" "p/build-me\n", "Makefile:2")
        self.assertEqual([], self.problems({"a.md": "gpu/wo" "rk/x and https://example.org/wo" "rk/ and ./wo" "rk/\n"}))

    def test_what_building_leaves_behind_is_not_read(self):
        self.assertEqual([], self.problems({
            "build/dev/x.h": "int x;\n",
            "tools/__pycache__/x.py": "# TO" "DO\n",
            ".git/x": "/wo" "rk/\n",
        }))


if __name__ == "__main__":
    unittest.main()
