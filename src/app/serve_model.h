// A model with an engine thread and a service around it: what serve and batch share.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "app/generate_model.h"
#include "serve/expert_load.h"
#include "serve/service.h"

namespace fathom {

struct ServeOptions {
    ModelOptions model;
    SamplingOptions sampling;
    ServiceOptions service;
    std::vector<std::string> names;
    std::string chat_format = "auto";
    int64_t max_model_len = 0, cache_tokens = 0, max_sequences = 256, batch_rows = 0, overload_top_k = 0;
    double tpot_slo_ms = 0, ttft_slo_ms = 0;

    void declare(CLI::App& verb);
};

// Stays where it was built.
class OpenService {
public:
    OpenService(const ServeOptions& options, const Globals& globals);
    ~OpenService() { stop(); }
    OpenService(const OpenService&) = delete;
    OpenService& operator=(const OpenService&) = delete;

    [[nodiscard]] Service& service() const { return *service_; }
    [[nodiscard]] int64_t max_length() const { return engine_->max_length(); }
    // Ends the engine's thread, and with it every exchange: before the HTTP server dies.
    void stop() { engine_->stop(); }

private:
    OpenModel model_;
    ExpertLoad experts_;
    std::unique_ptr<EngineThread> engine_;
    std::unique_ptr<Service> service_;
};

}  // namespace fathom
