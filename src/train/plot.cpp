#include "train/plot.h"

#include <fmt/format.h>
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "train/plot_svg.h"

namespace fathom {
namespace {

constexpr size_t kMaxPoints = 2000, kMaxMarks = 200, kMaxColumns = 180,
                 kMaxRows = 64;  // more than a 900 pixel picture can show is averaged

using Field = std::optional<double> StepMetrics::*;

std::vector<Point> points_of(const PlottedRun& run, Field field) {
    std::vector<Point> points;
    for (const StepMetrics& m : run.metrics) {
        if (m.*field) points.push_back({static_cast<double>(m.step), *(m.*field)});
    }
    return points;
}

// A scalar that only some kinds of training report.
std::vector<Point> points_of(const PlottedRun& run, std::string_view name) {
    std::vector<Point> points;
    for (const StepMetrics& m : run.metrics) {
        for (const auto& [key, value] : m.more) {
            if (key == name) points.push_back({static_cast<double>(m.step), value});
        }
    }
    return points;
}

// Means of equal groups, so that at most `limit` points remain.
std::vector<Point> thinned(const std::vector<Point>& points, size_t limit = kMaxPoints) {
    const size_t group = (points.size() + limit - 1) / limit;
    if (group <= 1) return points;
    std::vector<Point> result;
    for (size_t begin = 0; begin < points.size(); begin += group) {
        const size_t end = std::min(begin + group, points.size());
        Point sum;
        for (size_t i = begin; i < end; ++i) sum.x += points[i].x, sum.y += points[i].y;
        const auto count = static_cast<double>(end - begin);
        result.push_back({sum.x / count, sum.y / count});
    }
    return result;
}

std::vector<Point> smoothed_points(std::vector<Point> points) {
    std::vector<double> values;
    for (const Point& p : points) values.push_back(p.y);
    values = smoothed(values, static_cast<double>(points.size()) / 50);
    for (size_t i = 0; i < points.size(); ++i) points[i].y = values[i];
    return points;
}

// A noisy quantity: the measurements faint, their average over it.
void add_noisy(Chart& chart, const std::string& name, const std::string& colour, const std::vector<Point>& points) {
    if (points.empty()) return;
    chart.series.push_back({"", thinned(points), colour, Series::Style::kFaintLine});
    chart.series.push_back({name, thinned(smoothed_points(points)), colour, Series::Style::kLine});
}

// Legends need the run only where there are several.
std::string legend(const std::vector<PlottedRun>& runs, size_t index, const std::string& what) {
    if (runs.size() == 1) return what;
    return what.empty() ? runs[index].name : runs[index].name + ", " + what;
}

Chart loss_chart(const std::vector<PlottedRun>& runs) {
    Chart chart{"Loss", "step", "cross-entropy (nats per token)", {}, false, false};
    for (size_t i = 0; i < runs.size(); ++i) {
        const bool alone = runs.size() == 1;
        add_noisy(chart, legend(runs, i, alone ? "training" : ""), series_colour(i), points_of(runs[i], &StepMetrics::loss));
        const auto mtp = points_of(runs[i], &StepMetrics::mtp_loss);
        if (alone && !mtp.empty()) {
            chart.series.push_back(
                {"next but one (MTP)", thinned(smoothed_points(mtp)), series_colour(2), Series::Style::kLine});
        }
        const auto validation = points_of(runs[i], &StepMetrics::val_loss);
        if (validation.empty()) continue;
        chart.series.push_back({legend(runs, i, "validation"), thinned(validation, kMaxMarks), series_colour(alone ? 1 : i),
                                Series::Style::kPoints});
    }
    return chart;
}

Chart curve_chart(const std::vector<PlottedRun>& runs, std::string title, std::string unit, Field field, bool noisy) {
    Chart chart{std::move(title), "step", std::move(unit), {}, false, true};
    for (size_t i = 0; i < runs.size(); ++i) {
        const auto points = points_of(runs[i], field);
        const std::string name = legend(runs, i, "");
        if (noisy)
            add_noisy(chart, name, series_colour(i), points);
        else if (!points.empty())
            chart.series.push_back({name, thinned(points), series_colour(i), Series::Style::kLine});
    }
    return chart;
}

// Scalars of reinforcement learning; `marked` is drawn as points, being measured every now and then.
Chart named_chart(const std::vector<PlottedRun>& runs, std::string title, std::string unit, std::string_view name,
                  std::string_view marked = {}) {
    Chart chart{std::move(title), "step", std::move(unit), {}, false, true};
    for (size_t i = 0; i < runs.size(); ++i) {
        const bool alone = runs.size() == 1;
        add_noisy(chart, legend(runs, i, alone && !marked.empty() ? std::string(name) : ""), series_colour(i),
                  points_of(runs[i], name));
        const auto points = points_of(runs[i], marked);
        if (points.empty()) continue;
        chart.series.push_back({legend(runs, i, std::string(marked)), thinned(points, kMaxMarks), series_colour(alone ? 1 : i),
                                Series::Style::kPoints});
    }
    return chart;
}

// Gradient norms span decades in a young run: logarithmic when the largest is more than 30 times the smallest.
Chart grad_norm_chart(const std::vector<PlottedRun>& runs) {
    Chart chart = curve_chart(runs, "Gradient norm (before clipping)", "L2 norm", &StepMetrics::grad_norm, true);
    double low = std::numeric_limits<double>::infinity(), high = 0;
    for (const Series& s : chart.series) {
        for (const Point& p : s.points) {
            if (std::isfinite(p.y) && p.y > 0) low = std::min(low, p.y), high = std::max(high, p.y);
        }
    }
    chart.log_y = high > 30 * low;
    return chart;
}

Chart balance_chart(const std::vector<PlottedRun>& runs) {
    Chart chart{"Load balance: MaxVio (largest load / mean load - 1)", "step", "MaxVio", {}, false, true};
    for (size_t i = 0; i < runs.size(); ++i) {
        std::vector<Point> mean, worst;
        for (const StepMetrics& m : runs[i].metrics) {
            if (m.max_vio.empty()) continue;
            const double sum = std::accumulate(m.max_vio.begin(), m.max_vio.end(), 0.0);
            mean.push_back({static_cast<double>(m.step), sum / static_cast<double>(m.max_vio.size())});
            worst.push_back({static_cast<double>(m.step), *std::ranges::max_element(m.max_vio)});
        }
        const bool alone = runs.size() == 1;
        if (alone && !worst.empty()) add_noisy(chart, "worst layer", series_colour(1), worst);
        add_noisy(chart, legend(runs, i, alone ? "mean of layers" : ""), series_colour(i), mean);
    }
    return chart;
}

// Load of every expert of one layer over time, as a ratio to the layer's mean: rows experts, columns groups of reports.
HeatMap::Panel load_panel(const std::vector<const StepMetrics*>& reports, size_t layer, size_t columns) {
    const size_t experts = reports.front()->expert_load[layer].size(), rows = std::min(experts, kMaxRows);
    const auto first = [&](size_t row) { return row * experts / rows; };  // expert of a row
    HeatMap::Panel panel;
    panel.title = fmt::format("layer {}, {} experts", layer_number(*reports.front(), layer), experts);
    if (rows < experts) panel.title += fmt::format(" in {} groups", rows);
    panel.values.assign(rows, std::vector<double>(columns, std::nan("")));
    for (size_t c = 0; c < columns; ++c) {
        std::vector<double> load(rows);
        const size_t begin = c * reports.size() / columns, end = (c + 1) * reports.size() / columns;
        for (size_t i = begin; i < end; ++i) {
            const auto& layers = reports[i]->expert_load;
            if (layer >= layers.size() || layers[layer].size() != experts) continue;
            for (size_t r = 0; r < rows; ++r) {
                for (size_t e = first(r); e < first(r + 1); ++e) load[r] += static_cast<double>(layers[layer][e]);
            }
        }
        const double total = std::accumulate(load.begin(), load.end(), 0.0);
        for (size_t r = 0; r < rows && total > 0; ++r) {
            const auto size = static_cast<double>(first(r + 1) - first(r));
            panel.values[r][c] = load[r] / total * static_cast<double>(experts) / size;
        }
    }
    return panel;
}

std::optional<HeatMap> load_map(const PlottedRun& run) {
    std::vector<const StepMetrics*> reports;
    for (const StepMetrics& m : run.metrics) {
        if (!m.expert_load.empty()) reports.push_back(&m);
    }
    if (reports.empty()) return std::nullopt;
    HeatMap map{"Expert load: " + run.name, "step", "expert", "load / mean load of the layer", 0, 1, {}};
    map.x_first = static_cast<double>(reports.front()->step);
    map.x_last = static_cast<double>(reports.back()->step);
    const size_t columns = std::min(reports.size(), kMaxColumns);
    for (size_t layer = 0; layer < reports.front()->expert_load.size(); ++layer) {
        map.panels.push_back(load_panel(reports, layer, columns));
    }
    return map;
}

}  // namespace

std::vector<double> smoothed(const std::vector<double>& values, double window) {
    const double keep = 1 - 1 / std::max(window / 2, 1.0);
    std::vector<double> sum(values.size(), 0.0), weight(values.size(), 0.0);
    double s = 0, w = 0;
    const auto pass = [&](size_t i) {
        const bool counts = std::isfinite(values[i]);
        sum[i] += s = keep * s + (counts ? values[i] : 0);
        weight[i] += w = keep * w + (counts ? 1 : 0);
    };
    for (size_t i = 0; i < values.size(); ++i) pass(i);
    s = w = 0;
    for (size_t i = values.size(); i-- > 0;) pass(i);
    std::vector<double> result;
    for (size_t i = 0; i < values.size(); ++i) {  // both passes counted the value itself
        result.push_back(std::isfinite(values[i]) ? (sum[i] - values[i]) / (weight[i] - 1) : std::nan(""));
    }
    return result;
}

std::vector<Figure> draw_figures(const std::vector<PlottedRun>& runs) {
    std::vector<Figure> figures;
    const auto add = [&](const char* file, const Chart& chart) {
        if (!chart.series.empty()) figures.push_back({file, chart.svg()});
    };
    add("loss.svg", loss_chart(runs));
    add("lr.svg", curve_chart(runs, "Learning rate", "learning rate", &StepMetrics::lr, false));
    add("grad_norm.svg", grad_norm_chart(runs));
    add("tokens_per_second.svg",
        curve_chart(runs, "Training speed", "tokens per second", &StepMetrics::tokens_per_second, true));
    add("balance.svg", balance_chart(runs));
    add("reward.svg", named_chart(runs, "Reward", "mean reward of an answer", "reward", "eval/pass@1"));
    add("accuracy.svg", named_chart(runs, "Pairs judged rightly", "share of pairs", "accuracy", "eval/accuracy"));
    add("entropy.svg", named_chart(runs, "Entropy of the policy", "nats per token", "entropy"));
    add("kl.svg", named_chart(runs, "Divergence from the reference", "nats per token", "kl"));
    add("completion_length.svg", named_chart(runs, "Length of answers", "tokens", "completions/mean_length"));
    for (const PlottedRun& run : runs) {
        const auto map = load_map(run);
        if (map) figures.push_back({runs.size() == 1 ? "expert_load.svg" : "expert_load-" + run.name + ".svg", map->svg()});
    }
    return figures;
}

}  // namespace fathom
