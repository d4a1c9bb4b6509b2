#ifndef ISOTHERM_TOOLS_CLI_COVERAGE_H_
#define ISOTHERM_TOOLS_CLI_COVERAGE_H_

#include <ostream>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "common/model/profile.h"

// What share of all firings the most used neurons make: how much a small hot set can do.
namespace isotherm::cli {

// covered[p]: share of the firings that the most used p % of the neurons of all these layers make, p from 0
// to 100. Between two neurons the curve is straight. All zero where nothing fired.
std::vector<double> CoverageCurve(absl::Span<const std::vector<double>> counts);

struct NamedCurve {
  std::string name;
  std::vector<double> covered;  // as CoverageCurve
};
// The whole model's, then those of at most four groups of layers.
std::vector<NamedCurve> CoverageCurves(const model::Profile& profile);

enum class PlotStyle { kBraille, kAscii };
// Braille in colours for a terminal that shows them, letters for anything else.
PlotStyle StandardOutputStyle();
void PlotCoverage(const std::vector<NamedCurve>& curves, PlotStyle style, std::ostream& out);
std::string CoverageSvg(const std::vector<NamedCurve>& curves, const std::string& title);

}  // namespace isotherm::cli

#endif  // ISOTHERM_TOOLS_CLI_COVERAGE_H_
