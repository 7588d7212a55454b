#include "train/plot_svg.h"

#include <fmt/format.h>
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>

#include "base/progress.h"

namespace fathom {
namespace {

constexpr double kWidth = 900, kHeight = 500, kLeft = 76, kRight = 24, kTop = 56, kBottom = 56;  // pixels
constexpr const char* kText = "#222222";
constexpr const char* kGrid = "#e4e4e4";
constexpr const char* kFrame = "#888888";

std::string escaped(std::string_view text) {
    std::string result;
    for (const char c : text) {
        if (c == '&')
            result += "&amp;";
        else if (c == '<')
            result += "&lt;";
        else if (c == '>')
            result += "&gt;";
        else
            result += c;
    }
    return result;
}

// The elements of one file.
class Canvas {
public:
    Canvas(double width, double height) {
        body_ = fmt::format(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:g}\" height=\"{1:g}\" viewBox=\"0 0 {0:g} {1:g}\" "
            "font-family=\"'DejaVu Sans', Verdana, Helvetica, Arial, sans-serif\" font-size=\"13\" fill=\"{2}\">\n"
            "<rect width=\"{0:g}\" height=\"{1:g}\" fill=\"#ffffff\"/>\n",
            width, height, kText);
    }
    void text(double x, double y, std::string_view words, const char* anchor = "start", std::string_view attributes = "") {
        body_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" {}>{}</text>\n", x, y, anchor, attributes,
                             escaped(words));
    }
    void vertical_text(double x, double y, std::string_view words) {
        text(x, y, words, "middle", fmt::format("transform=\"rotate(-90 {:.1f} {:.1f})\"", x, y));
    }
    void line(double x1, double y1, double x2, double y2, std::string_view colour, double width = 1) {
        body_ +=
            fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" stroke-width=\"{:g}\"/>\n",
                        x1, y1, x2, y2, colour, width);
    }
    void rect(double x, double y, double width, double height, std::string_view colour) {
        body_ += fmt::format("<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" fill=\"{}\"/>\n", x, y, width,
                             height, colour);
    }
    void frame(double x, double y, double width, double height) {
        body_ +=
            fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"none\" stroke=\"{}\"/>\n", x,
                        y, width, height, kFrame);
    }
    void circle(double x, double y, double radius, std::string_view colour) {
        body_ += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{:g}\" fill=\"{}\" stroke=\"#ffffff\"/>\n", x, y, radius,
                             colour);
    }
    void path(std::string_view data, std::string_view colour, double width, double opacity) {
        body_ += fmt::format(
            "<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{:g}\" stroke-opacity=\"{:g}\" "
            "stroke-linejoin=\"round\"/>\n",
            data, colour, width, opacity);
    }
    void raw(std::string_view element) { body_ += element; }
    [[nodiscard]] std::string finish() && { return std::move(body_) + "</svg>\n"; }

private:
    std::string body_;
};

// Maps values to pixels.
struct Axis {
    double low = 0, high = 1, pixel_low = 0, pixel_high = 1;
    bool logarithmic = false;
    std::vector<double> ticks;

    [[nodiscard]] bool shows(double value) const { return std::isfinite(value) && (!logarithmic || value > 0); }
    [[nodiscard]] double operator()(double value) const {
        const auto scale = [&](double v) { return logarithmic ? std::log10(v) : v; };
        return pixel_low + (scale(value) - scale(low)) / (scale(high) - scale(low)) * (pixel_high - pixel_low);
    }
};

Axis fit_axis(double low, double high, bool logarithmic, int count) {
    Axis axis;
    axis.logarithmic = logarithmic;
    if (!(low <= high)) low = logarithmic ? 1 : 0, high = logarithmic ? 10 : 1;
    if (logarithmic) {
        axis.low = low / 1.1, axis.high = high * 1.1;
        axis.ticks = log_ticks(axis.low, axis.high);
        return axis;
    }
    if (low == high) low -= std::max(std::abs(low) * 0.1, 1e-12), high += std::max(std::abs(high) * 0.1, 1e-12);
    axis.low = low, axis.high = high;
    axis.ticks = nice_ticks(low, high, count);
    return axis;
}

// The values an axis has to span. Faint lines are raw measurements: their wildest 1 % may leave the chart.
std::pair<double, double> range_of(const std::vector<Series>& series, double Point::*coordinate, const Axis& axis, bool trim) {
    double low = std::numeric_limits<double>::infinity(), high = -low;
    for (const Series& s : series) {
        std::vector<double> values;
        for (const Point& p : s.points) {
            if (axis.shows(p.*coordinate)) values.push_back(p.*coordinate);
        }
        if (values.empty()) continue;
        std::ranges::sort(values);
        const size_t skip = trim && s.style == Series::Style::kFaintLine ? values.size() / 100 : 0;
        low = std::min(low, values[skip]);
        high = std::max(high, values[values.size() - 1 - skip]);
    }
    return {low, high};
}

void draw_axes(Canvas& canvas, const Axis& x, const Axis& y) {
    for (const double tick : x.ticks) {
        canvas.line(x(tick), y.pixel_high, x(tick), y.pixel_low, kGrid);
        canvas.text(x(tick), y.pixel_low + 18, tick_label(tick), "middle");
    }
    for (const double tick : y.ticks) {
        canvas.line(x.pixel_low, y(tick), x.pixel_high, y(tick), kGrid);
        canvas.text(x.pixel_low - 8, y(tick) + 4.5, tick_label(tick), "end");
    }
    canvas.frame(x.pixel_low, y.pixel_high, x.pixel_high - x.pixel_low, y.pixel_low - y.pixel_high);
}

void draw_series(Canvas& canvas, const Series& series, const Axis& x, const Axis& y) {
    std::string path;
    bool pen_down = false;
    for (const Point& p : series.points) {
        const bool visible = x.shows(p.x) && y.shows(p.y);
        if (visible && series.style == Series::Style::kPoints) canvas.circle(x(p.x), y(p.y), 4, series.colour);
        if (visible) path += fmt::format("{}{:.1f} {:.1f}", pen_down ? 'L' : 'M', x(p.x), y(p.y));
        pen_down = visible;
    }
    if (path.empty()) return;
    const bool faint = series.style == Series::Style::kFaintLine;
    canvas.path(path, series.colour, series.style == Series::Style::kLine ? 2 : 1, faint ? 0.3 : 0.9);
}

void draw_legend(Canvas& canvas, const std::vector<Series>& series) {
    std::vector<const Series*> named;
    size_t longest = 0;
    for (const Series& s : series) {
        if (s.name.empty()) continue;
        named.push_back(&s);
        longest = std::max(longest, s.name.size());
    }
    if (named.empty()) return;
    const double width = 44 + 7.6 * static_cast<double>(longest), x = kWidth - kRight - width - 10;
    const double height = 20 * static_cast<double>(named.size()) + 8;
    canvas.raw(
        fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"3\" fill=\"#ffffff\" "
                    "fill-opacity=\"0.85\" stroke=\"{}\"/>\n",
                    x, kTop + 10, width, height, kGrid));
    for (size_t i = 0; i < named.size(); ++i) {
        const double y = kTop + 28 + 20 * static_cast<double>(i);
        const Series& s = *named[i];
        if (s.style == Series::Style::kPoints)
            canvas.circle(x + 18, y - 4, 4, s.colour);
        else
            canvas.path(fmt::format("M{:.1f} {:.1f}h20", x + 8, y - 4), s.colour, 2,
                        s.style == Series::Style::kLine ? 0.9 : 0.3);
        canvas.text(x + 36, y, s.name);
    }
}

// Blue, white, red: diverging in lightness, so that it survives printing in grey only for strong deviations, like the eye.
std::string ratio_colour(double ratio) {
    if (!std::isfinite(ratio)) return "#bbbbbb";
    constexpr std::array<double, 3> kLow{33, 102, 172}, kHigh{178, 24, 43};
    constexpr int kSteps = 24;  // equal neighbours merge into one rectangle
    const double strength = std::clamp(std::log2(std::max(ratio, 1e-9)) / 2, -1.0, 1.0);
    const double t = std::round(std::abs(strength) * kSteps) / kSteps;
    const auto& end = strength < 0 ? kLow : kHigh;
    const auto channel = [&](size_t i) { return static_cast<int>(std::lround(255 + (end[i] - 255) * t)); };
    return fmt::format("#{:02x}{:02x}{:02x}", channel(0), channel(1), channel(2));
}

// One path per colour, each a list of rectangles: a fifth of the bytes of one element per rectangle.
void draw_panel(Canvas& canvas, const HeatMap::Panel& panel, double x, double y, double width, double height) {
    constexpr double kOverlap = 0.3;  // pixels; hides the seams of renderers that blend edges
    const double row_height = height / static_cast<double>(panel.values.size());
    std::map<std::string, std::string> paths;
    for (size_t r = 0; r < panel.values.size(); ++r) {
        const auto& row = panel.values[r];
        const double cell = width / static_cast<double>(row.size());
        for (size_t c = 0, next; c < row.size(); c = next) {
            const std::string colour = ratio_colour(row[c]);
            for (next = c + 1; next < row.size() && ratio_colour(row[next]) == colour;) ++next;
            paths[colour] +=
                fmt::format("M{:.1f} {:.1f}h{:.1f}v{:.1f}H{:.1f}z", x + cell * static_cast<double>(c),
                            y + row_height * static_cast<double>(r), cell * static_cast<double>(next - c) + kOverlap,
                            row_height + kOverlap, x + cell * static_cast<double>(c));
        }
    }
    for (const auto& [colour, path] : paths) canvas.raw(fmt::format("<path fill=\"{}\" d=\"{}\"/>\n", colour, path));
    canvas.frame(x, y, width, height);
}

}  // namespace

std::string series_colour(size_t index) {
    constexpr std::array<const char*, 8> kColours{"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                                  "#8a6d00", "#56b4e9", "#7a3fbf", "#444444"};
    return kColours[index % kColours.size()];
}

std::string Chart::svg() const {
    Canvas canvas(kWidth, kHeight);
    Axis x, y;
    y.logarithmic = log_y;
    const auto [x_low, x_high] = range_of(series, &Point::x, x, false);
    auto [y_low, y_high] = range_of(series, &Point::y, y, true);
    if (!log_y && y_low <= y_high) {
        const double margin = 0.04 * (y_high - y_low);
        y_low = y_from_zero ? 0 : y_low - margin;
        y_high += margin;
    }
    x = fit_axis(x_low, x_high, false, 8);
    y = fit_axis(y_low, y_high, log_y, 6);
    x.pixel_low = kLeft, x.pixel_high = kWidth - kRight;
    y.pixel_low = kHeight - kBottom, y.pixel_high = kTop;
    canvas.text(kLeft, 32, title, "start", "font-size=\"18\" font-weight=\"bold\"");
    draw_axes(canvas, x, y);
    canvas.raw(
        fmt::format("<clipPath id=\"plot\"><rect x=\"{:g}\" y=\"{:g}\" width=\"{:g}\" height=\"{:g}\"/></clipPath>\n"
                    "<g clip-path=\"url(#plot)\">\n",
                    kLeft, kTop, kWidth - kLeft - kRight, kHeight - kTop - kBottom));
    for (const Series& s : series) draw_series(canvas, s, x, y);
    canvas.raw("</g>\n");
    draw_legend(canvas, series);
    canvas.text((kLeft + kWidth - kRight) / 2, kHeight - 14, x_label, "middle");
    canvas.vertical_text(20, (kTop + kHeight - kBottom) / 2, y_label);
    return std::move(canvas).finish();
}

std::string HeatMap::svg() const {
    constexpr double kGap = 26, kBar = 110;  // between panels; width taken by the colour bar
    const auto count = static_cast<double>(std::max<size_t>(panels.size(), 1));
    const double panel_height = std::clamp(900 / count - kGap, 40.0, 340.0);
    const double bottom = kTop + 8 + count * (panel_height + kGap), height = bottom + kBottom - kGap / 2;
    const double width = kWidth - kLeft - kBar - kRight;
    Canvas canvas(kWidth, height);
    canvas.text(kLeft, 32, title, "start", "font-size=\"18\" font-weight=\"bold\"");
    double y = kTop + 24;
    for (const Panel& panel : panels) {
        canvas.text(kLeft, y - 6, panel.title);
        draw_panel(canvas, panel, kLeft, y, width, panel_height);
        canvas.text(kLeft - 8, y + 10, "0", "end", "font-size=\"11\"");
        if (panel.values.size() > 1)
            canvas.text(kLeft - 8, y + panel_height, fmt::format("{}", panel.values.size() - 1), "end", "font-size=\"11\"");
        y += panel_height + kGap;
    }
    y -= kGap;
    for (const double tick : nice_ticks(x_first, x_last, 7)) {
        const double x = kLeft + width * (x_last > x_first ? (tick - x_first) / (x_last - x_first) : 0.5);
        canvas.line(x, y, x, y + 5, kFrame);
        canvas.text(x, y + 19, tick_label(tick), "middle");
    }
    canvas.text(kLeft + width / 2, y + 40, x_label, "middle");
    canvas.vertical_text(20, (kTop + y) / 2, y_label);
    constexpr int kShades = 64;
    const double bar_x = kWidth - kRight - kBar + 34, bar_height = std::min(300.0, y - kTop - 24);
    for (int i = 0; i < kShades; ++i) {
        const double ratio = std::exp2(2 - 4 * (i + 0.5) / kShades);
        canvas.rect(bar_x, kTop + 24 + bar_height * i / kShades, 16, bar_height / kShades + 0.3, ratio_colour(ratio));
    }
    canvas.frame(bar_x, kTop + 24, 16, bar_height);
    constexpr std::array<const char*, 5> kMarks{"≥ 4", "2", "1", "1/2", "≤ 1/4"};
    for (size_t i = 0; i < kMarks.size(); ++i)
        canvas.text(bar_x + 22, kTop + 28 + bar_height * static_cast<double>(i) / 4, kMarks[i]);
    canvas.vertical_text(bar_x - 8, kTop + 24 + bar_height / 2, colour_label);
    return std::move(canvas).finish();
}

std::vector<double> nice_ticks(double low, double high, int count) {
    if (!(high > low) || count < 1) return {low};
    const double raw = (high - low) / count, power = std::pow(10, std::floor(std::log10(raw)));
    const double step = power * (raw / power > 5 ? 10 : raw / power > 2 ? 5 : raw / power > 1 ? 2 : 1);
    std::vector<double> ticks;
    for (double k = std::ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; ++k) ticks.push_back(k == 0 ? 0 : k * step);
    return ticks;
}

std::vector<double> log_ticks(double low, double high) {
    std::vector<double> ticks;
    const bool few = std::log10(high / low) < 3;
    for (double power = std::pow(10, std::floor(std::log10(low))); power <= high; power *= 10) {
        for (const double factor : {1.0, 2.0, 5.0}) {
            if ((factor == 1 || few) && power * factor >= low && power * factor <= high) ticks.push_back(power * factor);
        }
    }
    return ticks;
}

std::string tick_label(double value) {
    if (std::abs(value) >= 10000) return human_count(value);
    return fmt::format("{:.4g}", value);
}

}  // namespace fathom
