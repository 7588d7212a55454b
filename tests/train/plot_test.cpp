#include "train/plot.h"

#include <gtest/gtest.h>
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>

#include "train/plot_svg.h"

namespace fathom {
namespace {

size_t count(const std::string& text, const std::string& part) {
    size_t found = 0;
    for (size_t at = 0; (at = text.find(part, at)) != text.npos; at += part.size()) ++found;
    return found;
}

// Every element is closed and every '<' or '&' in text is escaped: a reader of XML finds one tree.
bool well_formed(const std::string& svg) {
    std::vector<std::string> open;
    for (size_t at = 0; (at = svg.find('<', at)) != svg.npos; ++at) {
        const size_t end = svg.find('>', at);
        if (end == svg.npos) return false;
        const std::string tag = svg.substr(at + 1, end - at - 1);
        const std::string name = tag.substr(tag.front() == '/', tag.find_first_of(" /", 1) - (tag.front() == '/'));
        if (tag.front() == '/') {
            if (open.empty() || open.back() != tag.substr(1)) return false;
            open.pop_back();
        } else if (tag.back() != '/') {
            open.push_back(tag.substr(0, tag.find(' ')));
        }
    }
    return open.empty() && svg.find("nan") == svg.npos && svg.find("inf") == svg.npos;
}

std::vector<StepMetrics> example(int64_t steps) {
    std::vector<StepMetrics> metrics;
    for (int64_t step = 1; step <= steps; ++step) {
        StepMetrics m;
        m.step = step;
        m.loss = 10.0 / static_cast<double>(step);
        m.lr = 1e-3;
        m.grad_norm = step == 3 ? std::nan("") : 1.0 + static_cast<double>(step % 7);
        m.tokens_per_second = 1000;
        if (step % 5 == 0) m.val_loss = 9.0 / static_cast<double>(step);
        m.max_vio = {0.1, 0.7};
        m.expert_load = {{10, 10, 10, 10}, {40, 0, 0, 0}};
        metrics.push_back(m);
    }
    return metrics;
}

TEST(Ticks, AreRoundNumbersInsideTheRange) {
    EXPECT_EQ(nice_ticks(0, 10, 5), (std::vector<double>{0, 2, 4, 6, 8, 10}));
    EXPECT_EQ(nice_ticks(-1, 1, 4), (std::vector<double>{-1, -0.5, 0, 0.5, 1}));
    EXPECT_EQ(nice_ticks(1, 3000, 8), (std::vector<double>{500, 1000, 1500, 2000, 2500, 3000}));
    EXPECT_EQ(nice_ticks(2, 2, 5), (std::vector<double>{2}));
    EXPECT_EQ(log_ticks(0.09, 21).size(), 8u);  // 0.1 0.2 0.5 1 2 5 10 20
    EXPECT_EQ(log_ticks(0.9, 1e6).size(), 7u);  // powers of ten alone
}

TEST(Ticks, LabelsStayShort) {
    EXPECT_EQ(tick_label(0), "0");
    EXPECT_EQ(tick_label(0.0002), "0.0002");
    EXPECT_EQ(tick_label(2e-5), "2e-05");
    EXPECT_EQ(tick_label(15000), "15 k");
    EXPECT_EQ(tick_label(2e6), "2 M");
}

TEST(Smoothing, LeavesConstantsAndLinesAlone) {
    std::vector<double> line;
    for (int i = 0; i < 201; ++i) line.push_back(3.0 + 0.5 * i);
    EXPECT_NEAR(smoothed(line, 10)[100], line[100], 1e-6) << "symmetric weights do not lag";
    for (const double value : smoothed(std::vector<double>(50, 2.5), 20)) EXPECT_NEAR(value, 2.5, 1e-12);
    EXPECT_EQ(smoothed({1, 2, 3}, 1), (std::vector<double>{1, 2, 3})) << "a window of one value changes nothing";
}

TEST(Smoothing, DoesNotSpreadANan) {
    const auto result = smoothed({1, 1, std::nan(""), 1, 1}, 4);
    EXPECT_TRUE(std::isnan(result[2]));
    EXPECT_DOUBLE_EQ(result[1], 1);
    EXPECT_DOUBLE_EQ(result[3], 1);
}

TEST(Plot, DrawsEveryFigureOfARunAsWellFormedSvg) {
    const auto figures = draw_figures({{"a<b>&c", example(40)}});
    std::vector<std::string> files;
    for (const Figure& figure : figures) {
        files.push_back(figure.file);
        EXPECT_TRUE(well_formed(figure.svg)) << figure.file;
    }
    EXPECT_EQ(files, (std::vector<std::string>{"loss.svg", "lr.svg", "grad_norm.svg", "tokens_per_second.svg", "balance.svg",
                                               "expert_load.svg"}));
    EXPECT_EQ(count(figures[0].svg, "<circle"), 8u + 1u) << "one circle per validation, one in the legend";
    EXPECT_NE(figures[5].svg.find("a&lt;b&gt;&amp;c"), std::string::npos);
}

TEST(Plot, ComparesRunsInOneFigure) {
    const auto figures = draw_figures({{"first", example(40)}, {"second", example(20)}});
    EXPECT_NE(figures[0].svg.find(">first<"), std::string::npos);
    EXPECT_NE(figures[0].svg.find(">second<"), std::string::npos);
    EXPECT_EQ(count(figures[0].svg, series_colour(1)) > 0, true);
    EXPECT_EQ(std::ranges::count_if(figures, [](const Figure& f) { return f.file.starts_with("expert_load-"); }), 2);
}

TEST(Plot, LeavesOutWhatTheRunDoesNotHave) {
    StepMetrics dense;
    dense.step = 1;
    dense.loss = 2.0;
    const auto figures = draw_figures({{"dense", {dense}}});
    ASSERT_EQ(figures.size(), 1u);
    EXPECT_EQ(figures[0].file, "loss.svg");
    EXPECT_TRUE(well_formed(figures[0].svg)) << "one single point must not divide by zero";
}

TEST(Plot, DrawsWhatReinforcementLearningReports) {
    PlottedRun run{"grpo", {}};
    for (int64_t step = 1; step <= 30; ++step) {
        StepMetrics m;
        m.step = step;
        m.more = {{"entropy", 2.0 / static_cast<double>(step)}};
        if (step % 2 == 1) m.more.emplace_back("reward", 0.01 * static_cast<double>(step));
        if (step % 10 == 0) m.more.emplace_back("eval/pass@1", 0.3);
        run.metrics.push_back(m);
    }
    std::vector<std::string> files;
    for (const Figure& figure : draw_figures({run})) {
        files.push_back(figure.file);
        EXPECT_EQ(figure.svg.find("nan"), std::string::npos) << figure.file;
        EXPECT_EQ(figure.svg.find("eval/pass@1") != std::string::npos, figure.file == "reward.svg");
    }
    EXPECT_EQ(files, (std::vector<std::string>{"reward.svg", "entropy.svg"}));
}

TEST(Plot, ShowsBalanceAsWhiteAndImbalanceAsColour) {
    const std::string map = draw_figures({{"run", example(10)}}).back().svg;
    const std::string first = map.substr(map.find("layer 0"), map.find("layer 1") - map.find("layer 0"));
    const std::string second = map.substr(map.find("layer 1"));
    EXPECT_EQ(count(first, "<path"), 1u) << "equal loads have one colour";
    EXPECT_NE(first.find("<path fill=\"#ffffff\""), std::string::npos);
    EXPECT_NE(second.find("<path fill=\"#b2182b\""), std::string::npos) << "four times the mean: full red";
    EXPECT_NE(second.find("<path fill=\"#2166ac\""), std::string::npos) << "no token at all: full blue";
}

TEST(Plot, ALongRunDoesNotMakeAHugeFile) {
    for (const Figure& figure : draw_figures({{"long", example(50000)}})) EXPECT_LT(figure.svg.size(), 200000u) << figure.file;
}

TEST(Plot, ExpertsThatDoNotDivideIntoRowsKeepTheirRatio) {
    StepMetrics m;
    m.step = 1;
    m.expert_load = {std::vector<int64_t>(96, 7)};
    const std::string map = draw_figures({{"run", {m, m}}}).back().svg;
    EXPECT_NE(map.find("96 experts in 64 groups"), std::string::npos);
    EXPECT_EQ(count(map.substr(0, map.find(">step<")), "<path"), 1u) << "a uniform load stays white in groups of unequal size";
}

}  // namespace
}  // namespace fathom
