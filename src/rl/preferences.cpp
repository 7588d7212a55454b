#include "rl/preferences.h"

#include <fmt/format.h>
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/chat_examples.h"
#include "rl/json_lines.h"

namespace fathom {
namespace {

using Json = nlohmann::json;

Preference parse_preference(const Json& line, const Tokenizer& tokenizer, const ChatFormat& format) {
    if (!line.is_object() || !line.contains("chosen") || !line.contains("rejected"))
        throw Error(ErrorKind::kInput, R"(needs "prompt", "chosen" and "rejected" (texts or lists of messages))");
    const Json none = Json::array();
    const bool has_prompt = line.contains("prompt");
    if (!has_prompt && !(line["chosen"].is_array() && line["rejected"].is_array()))
        throw Error(ErrorKind::kInput, R"(needs "prompt", or whole conversations as "chosen" and "rejected")");
    const auto tokens = [&](const char* key) {
        if (has_prompt) return conversation_tokens(line["prompt"], line[key], format, tokenizer);
        return chat_examples(parse_messages(line[key]), format, tokenizer).back().tokens;
    };
    Preference pair{tokens("chosen"), tokens("rejected")};
    if (pair.chosen == pair.rejected) throw Error(ErrorKind::kInput, "chosen and rejected are the same: neither is better");
    return pair;
}

// log(1 + e^x), without overflow.
double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }

}  // namespace

PreferenceSet read_preferences(std::span<const std::filesystem::path> files, const Tokenizer& tokenizer,
                               const ChatFormat& format, int64_t max_length) {
    PreferenceSet result;
    for_each_json_line(files, [&](const Json& line) {
        Preference pair = parse_preference(line, tokenizer, format);
        if (std::max(std::ssize(pair.chosen), std::ssize(pair.rejected)) > max_length)
            ++result.overlong;
        else
            result.pairs.push_back(std::move(pair));
    });
    return result;
}

double length_only_accuracy(std::span<const Preference> pairs) {
    double longer = 0;
    for (const Preference& pair : pairs) {
        const auto difference = std::ssize(pair.chosen) - std::ssize(pair.rejected);
        longer += difference > 0 ? 1 : difference == 0 ? 0.5 : 0;
    }
    if (pairs.empty()) return 0;
    const double share = longer / static_cast<double>(pairs.size());
    return std::max(share, 1 - share);
}

void PairwiseSums::add(const PairwiseSums& other) {
    loss += other.loss;
    margin += other.margin;
    score += other.score;
    right += other.right;
    pairs += other.pairs;
}

PairwiseSums pairwise_loss(std::span<float> dscores, std::span<const float> scores, double center, double scale) {
    check(scores.size() % 2 == 0 && (dscores.empty() || dscores.size() == scores.size()), "pairwise_loss: pairs of scores");
    PairwiseSums sums;
    for (size_t i = 0; i < scores.size(); i += 2) {
        const auto chosen = static_cast<double>(scores[i]), rejected = static_cast<double>(scores[i + 1]);
        const double margin = chosen - rejected, both = chosen + rejected;
        sums.add({softplus(-margin) + center * both * both, margin, both, margin > 0 ? 1 : margin == 0 ? 0.5 : 0, 1});
        if (dscores.empty()) continue;
        const double dmargin = -1 / (1 + std::exp(margin)), dboth = 2 * center * both;
        dscores[i] = static_cast<float>(scale * (dboth + dmargin));
        dscores[i + 1] = static_cast<float>(scale * (dboth - dmargin));
    }
    return sums;
}

}  // namespace fathom
