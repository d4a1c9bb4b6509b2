#include "tools/cli/coverage.h"

#include <langinfo.h>
#include <locale.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"

namespace isotherm::cli {
namespace {

constexpr int kMostGroups = 4;
constexpr int kColumns = 60, kRows = 15;  // of the plot in a terminal
constexpr char kLetters[] = "*abcd";
constexpr const char* kAnsiColors[] = {"1", "31", "33", "32", "36"};
constexpr const char* kSvgColors[] = {"#222222", "#d62728", "#e0a100", "#2ca02c", "#1f77b4"};

double At(const std::vector<double>& covered, double percent) {
  const auto below = std::min<size_t>(static_cast<size_t>(percent), covered.size() - 2);
  return covered[below] + (percent - below) * (covered[below + 1] - covered[below]);
}

// Character cells that hold the dots of some curve; Braille has two by four of them.
class Canvas {
 public:
  explicit Canvas(PlotStyle style)
      : style_(style),
        width_(kColumns * (style == PlotStyle::kBraille ? 2 : 1)),
        height_(kRows * (style == PlotStyle::kBraille ? 4 : 1)),
        cells_(kColumns * kRows) {}

  void Draw(size_t curve, const std::vector<double>& covered) {
    int last = height_ - 1;
    for (int x = 0; x < width_; ++x) {
      const double share = At(covered, 100.0 * x / (width_ - 1));
      const int y = static_cast<int>(std::lround((1 - share) * (height_ - 1)));
      // A steep curve leaves no gaps.
      for (int dot = std::min(y, last); dot <= std::max(y, last); ++dot) Set(x, dot, curve);
      last = y;
    }
  }

  std::string Row(int row) const {
    std::string text;
    for (int column = 0; column < kColumns; ++column) text += Glyph(cells_[row * kColumns + column]);
    return text;
  }

 private:
  struct Cell {
    int dots = 0;
    size_t curve = 0;  // drawn last
  };

  void Set(int x, int y, size_t curve) {
    // U+2800: bits of the dots, by column and row.
    constexpr int kBits[2][4] = {{0x01, 0x02, 0x04, 0x40}, {0x08, 0x10, 0x20, 0x80}};
    const bool braille = style_ == PlotStyle::kBraille;
    Cell& cell = cells_[(braille ? y / 4 : y) * kColumns + (braille ? x / 2 : x)];
    cell.dots |= braille ? kBits[x % 2][y % 4] : 1;
    cell.curve = curve;
  }

  std::string Glyph(const Cell& cell) const {
    if (cell.dots == 0) return " ";
    if (style_ == PlotStyle::kAscii) return std::string(1, kLetters[cell.curve]);
    const char utf8[] = {'\xe2', static_cast<char>(0xa0 | cell.dots >> 6),
                         static_cast<char>(0x80 | (cell.dots & 0x3f)), '\0'};
    return absl::StrCat("\x1b[", kAnsiColors[cell.curve], "m", utf8, "\x1b[0m");
  }

  const PlotStyle style_;
  const int width_, height_;  // in dots
  std::vector<Cell> cells_;
};

std::string Mark(PlotStyle style, size_t curve) {
  if (style == PlotStyle::kAscii) return std::string(1, kLetters[curve]);
  return absl::StrCat("\x1b[", kAnsiColors[curve], "m\xe2\x94\x81\x1b[0m");
}

// The parts of an SVG plot, in a box of 480 by 320 whose left lower corner is at (60, 350).
constexpr double kSvgLeft = 60, kSvgBottom = 350, kSvgWidth = 480, kSvgHeight = 320;

std::string SvgGrid() {
  std::string svg;
  for (int percent = 0; percent <= 100; percent += 20) {
    const double x = kSvgLeft + kSvgWidth * percent / 100;
    const double y = kSvgBottom - kSvgHeight * percent / 100;
    absl::StrAppendFormat(&svg,
                          "<path d='M%g %gV%gM%g %gH%g' stroke='#ddd'/>\n"
                          "<text x='%g' y='%g' text-anchor='middle'>%d %%</text>\n"
                          "<text x='%g' y='%g' text-anchor='end'>%d %%</text>\n",
                          x, kSvgBottom, kSvgBottom - kSvgHeight, kSvgLeft, y, kSvgLeft + kSvgWidth, x,
                          kSvgBottom + 18, percent, kSvgLeft - 6, y + 4, percent);
  }
  return svg;
}

std::string SvgCurve(const NamedCurve& curve, size_t index) {
  std::vector<std::string> points;
  for (size_t percent = 0; percent < curve.covered.size(); ++percent) {
    points.push_back(absl::StrFormat("%.1f,%.1f", kSvgLeft + kSvgWidth * percent / 100,
                                     kSvgBottom - kSvgHeight * curve.covered[percent]));
  }
  const double y = 50 + 20 * static_cast<double>(index);
  return absl::StrFormat(
      "<polyline fill='none' stroke='%s' stroke-width='%d' points='%s'/>\n"
      "<path d='M560 %gh24' stroke='%s' stroke-width='3'/><text x='590' y='%g'>%s</text>\n",
      kSvgColors[index], index == 0 ? 3 : 2, absl::StrJoin(points, " "), y, kSvgColors[index], y + 4,
      curve.name);
}

}  // namespace

std::vector<double> CoverageCurve(absl::Span<const std::vector<double>> counts) {
  std::vector<double> sorted;
  for (const std::vector<double>& layer : counts) sorted.insert(sorted.end(), layer.begin(), layer.end());
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  std::vector<double> sums = {0};  // of the first so many
  for (const double count : sorted) sums.push_back(sums.back() + count);
  std::vector<double> covered(101, 0.0);
  if (sums.back() == 0) return covered;
  for (size_t percent = 1; percent <= 100; ++percent) {
    const size_t whole = sorted.size() * percent / 100;
    const double part = static_cast<double>(sorted.size() * percent % 100) / 100;
    const double next = part == 0 ? 0 : part * sorted[whole];
    covered[percent] = (sums[whole] + next) / sums.back();
  }
  return covered;
}

std::vector<NamedCurve> CoverageCurves(const model::Profile& profile) {
  const absl::Span<const std::vector<double>> layers = profile.counts;
  std::vector<NamedCurve> curves = {{"all layers", CoverageCurve(layers)}};
  const size_t groups = std::min<size_t>(kMostGroups, layers.size());
  for (size_t group = 0; groups > 1 && group < groups; ++group) {
    const size_t begin = layers.size() * group / groups, end = layers.size() * (group + 1) / groups;
    const std::string name =
        end - begin == 1 ? absl::StrCat("layer ", begin) : absl::StrCat("layers ", begin, " to ", end - 1);
    curves.push_back({name, CoverageCurve(layers.subspan(begin, end - begin))});
  }
  return curves;
}

PlotStyle StandardOutputStyle() {
  if (isatty(STDOUT_FILENO) == 0) return PlotStyle::kAscii;
  const locale_t locale = newlocale(LC_CTYPE_MASK, "", nullptr);
  if (locale == nullptr) return PlotStyle::kAscii;
  const bool utf8 = std::string(nl_langinfo_l(CODESET, locale)) == "UTF-8";
  freelocale(locale);
  return utf8 ? PlotStyle::kBraille : PlotStyle::kAscii;
}

void PlotCoverage(const std::vector<NamedCurve>& curves, PlotStyle style, std::ostream& out) {
  Canvas canvas(style);
  // The whole model's lies on top.
  for (size_t curve = curves.size(); curve-- > 0;) canvas.Draw(curve, curves[curve].covered);
  out << "\nShare of the firings that the most used neurons make\n";
  for (int row = 0; row < kRows; ++row) {
    const int percent = 100 - 100 * row / (kRows - 1);
    const std::string label = row % 7 == 0 ? absl::StrFormat("%3d %%", percent) : "     ";
    out << "  " << label << " |" << canvas.Row(row) << "\n";
  }
  out << "        +" << std::string(kColumns, '-') << "\n"
      << "         0 %" << std::string(kColumns / 2 - 6, ' ') << "50 %" << std::string(kColumns / 2 - 8, ' ')
      << "100 % of the neurons\n\n";
  out << absl::StreamFormat("  %-20s %9s %9s %9s %9s\n", "", "top 10 %", "top 20 %", "top 30 %", "top 50 %");
  for (size_t curve = 0; curve < curves.size(); ++curve) {
    const std::vector<double>& covered = curves[curve].covered;
    out << "  " << Mark(style, curve)
        << absl::StreamFormat(" %-18s %7.1f %% %7.1f %% %7.1f %% %7.1f %%\n", curves[curve].name,
                              100 * covered[10], 100 * covered[20], 100 * covered[30], 100 * covered[50]);
  }
}

std::string CoverageSvg(const std::vector<NamedCurve>& curves, const std::string& title) {
  const std::string text =
      absl::StrReplaceAll(title, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"'", "&apos;"}});
  std::string svg = absl::StrFormat(
      "<svg xmlns='http://www.w3.org/2000/svg' width='720' height='400' font-family='sans-serif' "
      "font-size='13'>\n<rect width='720' height='400' fill='white'/>\n"
      "<text x='%g' y='20'>%s: share of the firings that the most used neurons make</text>\n",
      kSvgLeft, text);
  absl::StrAppend(&svg, SvgGrid());
  absl::StrAppendFormat(&svg, "<text x='%g' y='%g' text-anchor='middle'>neurons, most used first</text>\n",
                        kSvgLeft + kSvgWidth / 2, kSvgBottom + 38);
  for (size_t curve = curves.size(); curve-- > 0;) absl::StrAppend(&svg, SvgCurve(curves[curve], curve));
  return absl::StrCat(svg, "</svg>\n");
}

}  // namespace isotherm::cli
