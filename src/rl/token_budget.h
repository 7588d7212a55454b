// Batches of whole sequences: as many as fit, in order.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace fathom {

// Ranges [begin, end) of sequences with at most `tokens` tokens together; one that is longer stands alone.
[[nodiscard]] inline std::vector<std::pair<size_t, size_t>> within_token_budget(std::span<const int64_t> lengths,
                                                                                int64_t tokens) {
    std::vector<std::pair<size_t, size_t>> batches;
    int64_t room = 0;
    for (size_t i = 0; i < lengths.size(); ++i) {
        if (batches.empty() || lengths[i] > room) {
            batches.emplace_back(i, i);
            room = tokens;
        }
        batches.back().second = i + 1;
        room -= lengths[i];
    }
    return batches;
}

}  // namespace fathom
