// Charts as SVG text: axes with round ticks, lines, points, a legend, and colour maps. Knows nothing of training.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fathom {

struct Point {
    double x = 0, y = 0;
};

// "#rrggbb", distinguishable from its neighbours also by most colour-blind readers.
[[nodiscard]] std::string series_colour(size_t index);

struct Series {
    enum class Style { kLine, kFaintLine, kPoints };
    std::string name;  // in the legend; empty: not there
    std::vector<Point> points;
    std::string colour;
    Style style = Style::kLine;
};

struct Chart {
    std::string title, x_label, y_label;
    std::vector<Series> series;
    bool log_y = false;
    bool y_from_zero = false;

    // A complete file of 900 x 500 pixels. Points that are not finite (or not positive on a logarithmic axis) break the line.
    [[nodiscard]] std::string svg() const;
};

// One colour map per panel, stacked: row r and column c of `values` is a rectangle.
struct HeatMap {
    struct Panel {
        std::string title;
        std::vector<std::vector<double>> values;  // [rows][columns]; NaN is drawn grey
    };
    std::string title, x_label, y_label, colour_label;
    double x_first = 0, x_last = 1;  // what the centres of the first and the last column stand for
    std::vector<Panel> panels;

    // Values are ratios to 1: blue below, white at 1, red above, saturated at 1/4 and 4.
    [[nodiscard]] std::string svg() const;
};

// Round numbers covering [low, high], about `count` of them: multiples of 1, 2 or 5 times a power of ten.
[[nodiscard]] std::vector<double> nice_ticks(double low, double high, int count);
// Powers of ten, with 2 and 5 between them when there are few.
[[nodiscard]] std::vector<double> log_ticks(double low, double high);
// As short as it stays readable: "0.002", "2e-05", "15 k", "1.2 M".
[[nodiscard]] std::string tick_label(double value);

}  // namespace fathom
