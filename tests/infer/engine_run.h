// A fixture's model under an engine.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "infer/engine.h"
#include "model/fixture.h"

namespace fathom {

struct EngineRun {
    ThreadPool pool;
    CpuOps ops{pool};
    LoadedModel loaded;
    SafetensorsFile golden;

    EngineRun(const std::string& fixture, int threads)
        : pool(threads),
          loaded(load_model(fixture_folder(fixture), ops, {})),
          golden(fixture_folder(fixture) / "golden.safetensors") {}

    [[nodiscard]] const DeepSeek& model() const { return *loaded.model; }

    [[nodiscard]] std::vector<int32_t> golden_ints(const std::string& name) const {
        const Tensor tensor = *golden.find(name);
        std::vector<int32_t> values;
        for (int64_t i = 0; i < tensor.size(); ++i) {
            values.push_back(tensor.dtype == DType::kI64 ? static_cast<int32_t>(tensor.as<int64_t>()[i])
                                                         : tensor.as<int32_t>()[i]);
        }
        return values;
    }
    [[nodiscard]] static Request greedy_request(std::vector<int32_t> prompt, int64_t max_new_tokens) {
        Request request;
        request.prompt = std::move(prompt);
        request.sampling.temperature = 0;
        request.max_new_tokens = max_new_tokens;
        return request;
    }
    [[nodiscard]] std::vector<TokenEvent> events(const Request& request, const EngineOptions& options) {
        Engine engine(model(), ops, options);
        (void)engine.add(request);
        std::vector<TokenEvent> all;
        while (!engine.idle()) {
            const std::vector<TokenEvent> some = engine.step();
            all.insert(all.end(), some.begin(), some.end());
        }
        return all;
    }
    [[nodiscard]] static std::vector<int32_t> tokens(const std::vector<TokenEvent>& events) {
        std::vector<int32_t> ids;
        for (const TokenEvent& event : events) ids.push_back(event.token);
        return ids;
    }
    [[nodiscard]] std::vector<int32_t> greedy(const std::vector<int32_t>& prompt, size_t count, const EngineOptions& options) {
        return tokens(events(greedy_request(prompt, static_cast<int64_t>(count)), options));
    }
};

// A fixture's name as gtest allows it.
inline std::string test_name(std::string fixture) {
    std::replace(fixture.begin(), fixture.end(), '-', '_');
    return fixture;
}

}  // namespace fathom
