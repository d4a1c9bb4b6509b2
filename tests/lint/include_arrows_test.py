"""Reads every include of the repository and fails when an arrow points up or sideways."""

import unittest

import include_arrows
import source_tree


class IncludeArrowsTest(source_tree.TreeTestCase):

    def problems(self, contents):
        return include_arrows.violations(self.make_tree(contents))

    def test_the_repository_has_no_arrow_up_or_sideways(self):
        root = source_tree.source_root()
        self.assertGreater(len(list(include_arrows.includes(root))), 100, "the includes were not found")
        problems = include_arrows.violations(root)
        self.assertFalse(problems, "\n" + "\n".join(problems))

    def test_arrows_down_are_fine(self):
        self.assertEqual([], self.problems({
            "common/base/a.h": '#include <string>\n#include "absl/status/status.h"\n',
            "common/neuron/b.h": '#include "common/kernels/k.h"\n#include "common/neuron/c.h"\n',
            "common/exchange/d.cc": '#include "isotherm/worker/v1/neuron.pb.h"\n',
            "gateway/api/e.cc": '#include "common/rpc/server.h"\n#include "gateway/text/t.h"\n',
            "tools/cli/f.cc": '#include "isotherm/v1/model.pb.h"\n',
        }))

    def test_every_forbidden_arrow_is_found(self):
        for file, included in [
                ("common/base/a.h", "common/observe/log.h"),
                ("common/gguf/a.cc", "common/model/model.h"),
                ("common/kernels/a.cc", "common/gguf/file.h"),
                ("common/kernels/a.cc", "common/observe/log.h"),
                ("common/model/a.cc", "common/kernels/ops.h"),
                ("common/neuron/a.cc", "common/exchange/channel.h"),
                ("common/exchange/a.cc", "common/rpc/server.h"),
                ("common/rpc/a.cc", "common/exchange/channel.h"),
                ("common/rpc/a.cc", "isotherm/v1/model.pb.h"),
                ("common/rpc/a.cc", "gateway/api/handler.h"),
                ("gateway/api/a.cc", "gpu_worker/graph/llama.h"),
                ("gpu_worker/graph/a.cu", "cpu_worker/store/store.h"),
                ("cpu_worker/main.cc", "gateway/api/handler.h"),
                ("tools/cli/a.cc", "isotherm/worker/v1/neuron.grpc.pb.h"),
                ("tools/cli/a.cc", "gateway/text/tokenizer.h"),
                ("gateway/api/a.cc", "tests/rpc/test_service.h"),
                ("gpu_worker/host/a.cc", "gpu_worker/cuda/stream.h"),
        ]:
            for left, right in ('""', "<>"):
                problems = self.problems({file: f"// A comment.\n  # include {left}{included}{right}\n"})
                self.assertEqual(1, len(problems), (file, included, problems))
                self.assertIn(f"{file}:2: ", problems[0])
                self.assertIn(included, problems[0])

    def test_a_new_room_must_be_given_its_place(self):
        problems = self.problems({"common/helpers/a.h": "#include <string>\n"})
        self.assertIn("common/helpers", problems[0])

    def test_a_relative_include_cannot_hide_an_arrow(self):
        self.assertIn("relative", self.problems({"common/rpc/a.cc": '#include "../exchange/channel.h"\n'})[0])
        self.assertIn("relative", self.problems({"common/rpc/a.cc": '#include "b.h"\n', "common/rpc/b.h": ""})[0])

    def test_folders_of_a_binary_do_not_go_in_circles(self):
        problems = self.problems({
            "gateway/a/a.h": '#include "gateway/b/b.h"\n',
            "gateway/b/b.h": '#include "gateway/c/c.h"\n',
            "gateway/c/c.h": '#include "gateway/a/a.h"\n',
        })
        self.assertEqual(["folders include each other in a circle: gateway/a -> gateway/b -> gateway/c -> gateway/a"],
                         problems)

    def test_tests_may_include_anything(self):
        self.assertEqual([], self.problems({"tests/base/a.cc": '#include "gateway/x.h"\n#include "cpu_worker/y.h"\n'}))


if __name__ == "__main__":
    unittest.main()
