#include "io/tiktoken.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "base/error.h"

namespace fathom {
namespace {

[[noreturn]] void fail(int64_t line, const std::string& message) {
    throw Error(ErrorKind::kInput, "line " + std::to_string(line) + ": " + message);
}

int base64_value(char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

std::string decode_base64(std::string_view text, int64_t line) {
    while (text.ends_with('=')) text.remove_suffix(1);
    std::string bytes;
    uint32_t bits = 0;
    int count = 0;
    for (const char c : text) {
        const int value = base64_value(c);
        if (value < 0) fail(line, "not base64");
        bits = (bits << 6 | static_cast<uint32_t>(value)) & 0xFFFFFF;
        count += 6;
        if (count >= 8) bytes.push_back(static_cast<char>(bits >> (count -= 8) & 0xFF));
    }
    if (bytes.empty()) fail(line, "an empty token");
    return bytes;
}

int32_t read_rank(std::string_view digits, int64_t line) {
    int64_t rank = 0;
    for (const char c : digits) {
        if (c < '0' || c > '9' || rank > INT32_MAX / 10) fail(line, "the rank is not a small whole number");
        rank = rank * 10 + (c - '0');
    }
    if (digits.empty()) fail(line, "the rank is missing");
    return static_cast<int32_t>(rank);
}

// tiktoken merges the two neighbours whose joined bytes have the lowest rank; as a table: every cut of every token into two
// tokens is a merge with the rank of the whole.
std::vector<BpeMerge> merges_of(const std::vector<Vocabulary::Entry>& by_rank) {
    std::unordered_map<std::string_view, int32_t> ids;
    ids.reserve(by_rank.size());
    for (const auto& entry : by_rank) ids.emplace(entry.bytes, entry.id);
    std::vector<BpeMerge> merges;
    for (const auto& entry : by_rank) {
        const std::string_view bytes = entry.bytes;
        for (size_t cut = 1; cut < bytes.size(); ++cut) {
            const auto left = ids.find(bytes.substr(0, cut));
            if (left == ids.end()) continue;
            const auto right = ids.find(bytes.substr(cut));
            if (right != ids.end()) merges.push_back({left->second, right->second, entry.id, static_cast<uint32_t>(entry.id)});
        }
    }
    return merges;
}

std::vector<Vocabulary::Entry> read_ranks(std::string_view ranks) {
    std::vector<Vocabulary::Entry> entries;
    for (int64_t line = 1; !ranks.empty(); ++line) {
        const size_t end = std::min(ranks.find('\n'), ranks.size());
        std::string_view row = ranks.substr(0, end);
        ranks.remove_prefix(std::min(end + 1, ranks.size()));
        if (row.ends_with('\r')) row.remove_suffix(1);
        if (row.empty()) continue;
        const size_t space = row.find(' ');
        if (space == row.npos) fail(line, "not \"base64 rank\"; is the file truncated?");
        entries.push_back({read_rank(row.substr(space + 1), line), decode_base64(row.substr(0, space), line)});
    }
    if (entries.empty()) throw Error(ErrorKind::kInput, "no tokens in it");
    std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
    return entries;
}

void read_special_tokens(std::string_view config, int32_t base, TokenizerParts& parts) {
    std::unordered_map<int32_t, AddedToken> named;
    if (!config.empty()) {
        try {
            const auto json = nlohmann::json::parse(config);
            const auto decoder = json.find("added_tokens_decoder");
            if (decoder != json.end())
                for (const auto& [id, token] : decoder->items()) {
                    const int32_t value = read_rank(id, 0);
                    named[value] = {value, token.at("content").get<std::string>(), token.value("special", true)};
                }
        } catch (const nlohmann::json::exception& e) {
            throw Error(ErrorKind::kInput, std::string("tokenizer_config.json beside it: ") + e.what());
        }
    }
    // Kimi's code reserves 256 ids behind the base vocabulary and names those that the config does not.
    constexpr int32_t kReserved = 256;
    for (int32_t id = base; id < base + kReserved; ++id)
        if (!named.contains(id)) named[id] = {id, "<|reserved_token_" + std::to_string(id) + "|>", true};
    for (auto& [id, token] : named) parts.added.push_back(std::move(token));
    std::sort(parts.added.begin(), parts.added.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
}

}  // namespace

TokenizerParts parse_tiktoken(std::string_view ranks, std::string_view config) {
    TokenizerParts parts;
    parts.vocabulary = read_ranks(ranks);
    parts.merges = merges_of(parts.vocabulary);
    parts.bpe.ignore_merges = true;
    parts.splits = kimi_splits();
    read_special_tokens(config, parts.vocabulary.back().id + 1, parts);
    if (!config.empty()) read_tokenizer_config(config, parts);
    return parts;
}

}  // namespace fathom
