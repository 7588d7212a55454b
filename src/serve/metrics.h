// Counters and histograms in Prometheus' text format, under our names and under vLLM's, which dashboards know.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "serve/engine_thread.h"

namespace fathom {

class ExpertCache;

// Values fall into buckets (..., bound]; the last one has no bound. Not safe from several threads by itself.
class Histogram {
public:
    explicit Histogram(std::span<const double> bounds) : bounds_(bounds.begin(), bounds.end()), counts_(bounds.size() + 1) {}
    void add(double value);
    [[nodiscard]] const std::vector<double>& bounds() const { return bounds_; }
    [[nodiscard]] const std::vector<uint64_t>& counts() const { return counts_; }  // not cumulated
    [[nodiscard]] double sum() const { return sum_; }
    [[nodiscard]] uint64_t count() const { return count_; }

private:
    std::vector<double> bounds_;
    std::vector<uint64_t> counts_;
    double sum_ = 0;
    uint64_t count_ = 0;
};

// What one answered request has to tell. Seconds; negative: it did not come to that.
struct RequestFigures {
    std::string finish = "abort";
    double to_first_token = -1, whole = -1;
    std::vector<double> between_tokens;
    int64_t prompt_tokens = 0, cached_tokens = 0, answer_tokens = 0, answers = 1, max_tokens = 0;
};

class Metrics {
public:
    Metrics();

    // From any thread.
    void request(const RequestFigures& figures);
    void http(const std::string& handler, const std::string& method, int status, double seconds);
    // The exposition for /metrics; experts: where they are paged (--ram).
    [[nodiscard]] std::string text(const std::string& model, const EngineThread::Snapshot& engine,
                                   const ExpertCache* experts = nullptr) const;
    // What /dash draws: names of histograms to bounds and counts.
    struct View {
        Histogram first_token, between_tokens;
        uint64_t prompt_tokens, cached_tokens, answer_tokens, requests;
    };
    [[nodiscard]] View view() const;

private:
    mutable std::mutex mutex_;
    Histogram first_token_, between_tokens_, per_output_token_, whole_, prompt_length_, answer_length_, max_tokens_, answers_;
    std::map<std::string, uint64_t> finished_;                            // by reason
    std::map<std::tuple<std::string, std::string, int>, uint64_t> http_;  // handler, method, status
    uint64_t prompt_tokens_ = 0, cached_tokens_ = 0, answer_tokens_ = 0, queries_ = 0;
    double start_;
};

}  // namespace fathom
