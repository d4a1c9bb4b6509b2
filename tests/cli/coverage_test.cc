#include "tools/cli/coverage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

namespace isotherm::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

using Counts = std::vector<std::vector<double>>;

std::vector<std::string> Names(const std::vector<NamedCurve>& curves) {
  std::vector<std::string> names;
  for (const NamedCurve& curve : curves) names.push_back(curve.name);
  return names;
}

TEST(CoverageTest, TheMostUsedNeuronsOfAllLayersComeFirst) {
  // 16 firings: 8, 4, 3, 1 and six neurons that never fired.
  const Counts counts = {{0, 4, 0, 8, 0}, {1, 0, 0, 3, 0}};
  const std::vector<double> covered = CoverageCurve(counts);
  ASSERT_EQ(covered.size(), 101u);
  EXPECT_EQ(covered[0], 0);
  EXPECT_DOUBLE_EQ(covered[5], 4.0 / 16) << "half a neuron";
  EXPECT_DOUBLE_EQ(covered[10], 8.0 / 16);
  EXPECT_DOUBLE_EQ(covered[15], 10.0 / 16);
  EXPECT_DOUBLE_EQ(covered[20], 12.0 / 16);
  EXPECT_DOUBLE_EQ(covered[40], 1);
  EXPECT_DOUBLE_EQ(covered[100], 1);
  for (size_t percent = 1; percent <= 100; ++percent) EXPECT_GE(covered[percent], covered[percent - 1]);
}

TEST(CoverageTest, NeuronsThatFireAlikeGiveADiagonal) {
  const std::vector<double> covered = CoverageCurve(Counts{std::vector<double>(7, 3.0)});
  for (int percent = 0; percent <= 100; ++percent) EXPECT_NEAR(covered[percent], percent / 100.0, 1e-12);
}

TEST(CoverageTest, WhereNothingFiredNothingIsCovered) {
  EXPECT_EQ(CoverageCurve(Counts{{0, 0}}), std::vector<double>(101, 0.0));
  EXPECT_EQ(CoverageCurve({}), std::vector<double>(101, 0.0));
}

TEST(CoverageTest, LayersInAtMostFourGroups) {
  model::Profile profile;
  profile.counts = Counts(1, {1, 2});
  EXPECT_THAT(Names(CoverageCurves(profile)), ElementsAre("all layers"));
  profile.counts = Counts(3, {1, 2});
  EXPECT_THAT(Names(CoverageCurves(profile)), ElementsAre("all layers", "layer 0", "layer 1", "layer 2"));
  profile.counts = Counts(10, {1, 2});
  EXPECT_THAT(Names(CoverageCurves(profile)),
              ElementsAre("all layers", "layers 0 to 1", "layers 2 to 4", "layers 5 to 6", "layers 7 to 9"));
}

std::string Plot(const std::vector<NamedCurve>& curves, PlotStyle style) {
  std::ostringstream out;
  PlotCoverage(curves, style, out);
  return out.str();
}

TEST(CoverageTest, PlotsInLettersAndInBraille) {
  model::Profile profile;
  profile.counts = {{9, 1, 0, 0}, {5, 5, 0, 0}};
  const std::vector<NamedCurve> curves = CoverageCurves(profile);
  const std::string ascii = Plot(curves, PlotStyle::kAscii);
  // From nothing at the lower left to everything at the upper right.
  EXPECT_THAT(ascii, HasSubstr("  100 % |"));
  EXPECT_THAT(ascii, HasSubstr("    0 % |*"));
  EXPECT_THAT(ascii, HasSubstr("  * all layers "));
  EXPECT_THAT(ascii, HasSubstr("  b layer 1 "));
  for (const char c : ascii) EXPECT_TRUE(c == '\n' || (c >= ' ' && c <= '~')) << static_cast<int>(c);
  const std::string braille = Plot(curves, PlotStyle::kBraille);
  EXPECT_THAT(braille, HasSubstr("\xe2\xa0"));
  EXPECT_THAT(braille, HasSubstr("\x1b["));
}

TEST(CoverageTest, SvgHasACurveForEachNameAndNoMarkupFromTitles) {
  model::Profile profile;
  profile.counts = {{9, 1, 0, 0}, {5, 5, 0, 0}};
  const std::string svg = CoverageSvg(CoverageCurves(profile), "a<b>&'c'");
  EXPECT_THAT(svg, HasSubstr("<svg xmlns='http://www.w3.org/2000/svg'"));
  EXPECT_THAT(svg, HasSubstr("a&lt;b&gt;&amp;&apos;c&apos;: share"));
  EXPECT_THAT(svg, Not(HasSubstr("a<b>")));
  size_t curves = 0;
  for (size_t at = svg.find("<polyline"); at != std::string::npos; at = svg.find("<polyline", at + 1))
    ++curves;
  EXPECT_EQ(curves, 3u);
  // The corners of the box.
  EXPECT_THAT(svg, HasSubstr("points='60.0,350.0 "));
  EXPECT_THAT(svg, HasSubstr(" 540.0,30.0'"));
}

}  // namespace
}  // namespace isotherm::cli
