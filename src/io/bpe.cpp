#include "io/bpe.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <queue>

#include "base/error.h"
#include "io/pretokenizer_unicode.h"

namespace fathom {
namespace {

uint64_t mix(uint64_t a, uint64_t b) {
    const auto product = static_cast<unsigned __int128>(a) * b;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint32_t hash_bytes(std::string_view bytes) {
    constexpr uint64_t kOne = 0x9E3779B97F4A7C15, kTwo = 0xD6E8FEB86659FD93;
    uint64_t state = bytes.size() * kOne;
    size_t at = 0;
    for (; at + 8 <= bytes.size(); at += 8) {
        uint64_t word;
        std::memcpy(&word, bytes.data() + at, sizeof word);
        state = mix(state ^ word, kTwo);
    }
    uint64_t tail = 0;
    for (int shift = 0; at < bytes.size(); ++at, shift += 8) tail |= uint64_t{static_cast<uint8_t>(bytes[at])} << shift;
    return static_cast<uint32_t>(mix(state ^ tail, kOne));
}

uint64_t pair_key(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

size_t hash_pair(uint64_t pair) { return mix(pair ^ 0xD6E8FEB86659FD93, 0x9E3779B97F4A7C15); }

int32_t largest_id(const std::vector<Vocabulary::Entry>& entries) {
    int32_t largest = -1;
    for (const auto& entry : entries) {
        if (entry.id < 0) throw Error(ErrorKind::kInput, "token id " + std::to_string(entry.id) + " is negative");
        largest = std::max(largest, entry.id);
    }
    // Gaps are legal, but an id far beyond the number of tokens is damage and would cost gigabytes.
    const int64_t limit = 4 * static_cast<int64_t>(entries.size()) + 65536;
    if (largest >= limit)
        throw Error(ErrorKind::kInput,
                    "token id " + std::to_string(largest) + " is too large for " + std::to_string(entries.size()) + " tokens");
    return largest;
}

std::string byte_token_name(uint8_t byte) {
    constexpr std::string_view kHex = "0123456789ABCDEF";
    return {'<', '0', 'x', kHex[byte >> 4], kHex[byte & 15], '>'};
}

}  // namespace

Vocabulary::Vocabulary(const std::vector<Entry>& entries) {
    std::vector<const Entry*> by_id(largest_id(entries) + 1);
    size_t searchable = 0;
    for (const Entry& entry : entries) {
        if (by_id[entry.id]) throw Error(ErrorKind::kInput, "token id " + std::to_string(entry.id) + " is given twice");
        by_id[entry.id] = &entry;
        searchable += entry.in_text;
    }
    offsets_ = {0};
    slots_.resize(std::bit_ceil(2 * searchable + 2));
    for (const Entry* entry : by_id) {
        if (entry) blob_ += entry->bytes;
        offsets_.push_back(blob_.size());
        if (!entry || !entry->in_text) continue;
        const uint32_t hash = hash_bytes(entry->bytes);
        size_t slot = hash & (slots_.size() - 1);
        while (slots_[slot].id >= 0) slot = (slot + 1) & (slots_.size() - 1);
        slots_[slot] = {hash, entry->id};
    }
}

int32_t Vocabulary::find(std::string_view wanted) const {
    const uint32_t hash = hash_bytes(wanted);
    for (size_t slot = hash & (slots_.size() - 1); slots_[slot].id >= 0; slot = (slot + 1) & (slots_.size() - 1))
        if (slots_[slot].hash == hash && bytes(slots_[slot].id) == wanted) return slots_[slot].id;
    return -1;
}

Bpe::Bpe(const std::vector<Vocabulary::Entry>& entries, const std::vector<BpeMerge>& merges, const BpeOptions& options)
    : vocabulary_(entries),
      options_(options) {
    add_pairs(merges);
    const std::array<std::string, 256> letters = byte_letters();
    for (int byte = 0; byte < 256; ++byte) {
        const char c = static_cast<char>(byte);
        const int32_t id = vocabulary_.find({&c, 1});
        if (id >= 0)
            symbols_[byte] = {id};
        else
            append_fallback(options_.byte_level ? std::string_view(letters[byte]) : std::string_view(&c, 1), symbols_[byte]);
    }
    whole_.assign(vocabulary_.size(), options_.ignore_merges);
    if (options_.ignore_merges) return;
    std::vector<int32_t> ids;
    for (const auto& entry : entries) {
        if (!entry.in_text || entry.bytes.empty()) continue;
        ids.clear();
        merge(entry.bytes, ids);
        whole_[entry.id] = ids.size() == 1 && ids[0] == entry.id;
    }
}

void Bpe::add_pairs(const std::vector<BpeMerge>& merges) {
    pairs_.resize(std::bit_ceil(2 * merges.size() + 2));
    const size_t mask = pairs_.size() - 1;
    for (const BpeMerge& merge : merges) {
        const uint64_t pair = pair_key(merge.left, merge.right);
        size_t slot = hash_pair(pair) & mask;
        while (pairs_[slot].pair != kNoPair && pairs_[slot].pair != pair) slot = (slot + 1) & mask;
        pairs_[slot] = {pair, merge.rank, merge.result};  // of a repeated pair the last counts
    }
}

const Bpe::PairSlot* Bpe::find_pair(int32_t left, int32_t right) const {
    const uint64_t pair = pair_key(left, right);
    const size_t mask = pairs_.size() - 1;
    for (size_t slot = hash_pair(pair) & mask; pairs_[slot].pair != kNoPair; slot = (slot + 1) & mask)
        if (pairs_[slot].pair == pair) return &pairs_[slot];
    return nullptr;
}

uint32_t Bpe::rank_of(int32_t left, int32_t right) const {
    const PairSlot* pair = find_pair(left, right);
    return pair ? pair->rank : kNoRank;
}

void Bpe::encode(std::string_view piece, std::vector<int32_t>& ids) const {
    if (piece.empty()) return;
    const int32_t id = vocabulary_.find(piece);
    if (id >= 0 && whole_[id])  // most words of English
        ids.push_back(id);
    else
        merge(piece, ids);
}

void Bpe::merge(std::string_view piece, std::vector<int32_t>& ids) const {
    const size_t first = ids.size();
    append_symbols(piece, ids);
    const size_t count = ids.size() - first;
    if (count < 2) return;
    if (count <= kShort)
        merge_short(ids, first);
    else
        merge_long(ids, first);
}

void Bpe::append_symbols(std::string_view piece, std::vector<int32_t>& ids) const {
    if (options_.byte_level) {
        for (const char c : piece) {
            const std::vector<int32_t>& symbols = symbols_[static_cast<uint8_t>(c)];
            ids.insert(ids.end(), symbols.begin(), symbols.end());
        }
        return;
    }
    while (!piece.empty()) {
        const size_t length = std::max(1, first_character(piece).length);
        const std::string_view character = piece.substr(0, length);
        if (const int32_t id = vocabulary_.find(character); id >= 0)
            ids.push_back(id);
        else
            append_fallback(character, ids);
        piece.remove_prefix(length);
    }
}

void Bpe::append_fallback(std::string_view bytes, std::vector<int32_t>& ids) const {
    const size_t first = ids.size();
    if (options_.byte_fallback) {
        for (const char byte : bytes) {
            const int32_t id = vocabulary_.find(byte_token_name(static_cast<uint8_t>(byte)));
            if (id < 0) break;
            ids.push_back(id);
        }
        if (ids.size() == first + bytes.size()) return;
        ids.resize(first);
    }
    if (options_.unknown_id < 0) return;
    if (!(options_.fuse_unknown && first > 0 && ids[first - 1] == options_.unknown_id)) ids.push_back(options_.unknown_id);
}

void Bpe::merge_short(std::vector<int32_t>& ids, size_t first) const {
    std::array<Symbol, kShort> symbols;
    size_t count = ids.size() - first;
    for (size_t i = 0; i < count; ++i)
        symbols[i] = {ids[first + i], i + 1 < count ? rank_of(ids[first + i], ids[first + i + 1]) : kNoRank};
    while (count > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < count; ++i)
            if (symbols[i].rank < symbols[best].rank) best = i;
        if (symbols[best].rank == kNoRank) break;
        symbols[best].id = find_pair(symbols[best].id, symbols[best + 1].id)->result;
        --count;
        std::copy(symbols.begin() + best + 2, symbols.begin() + count + 1, symbols.begin() + best + 1);
        symbols[best].rank = best + 1 < count ? rank_of(symbols[best].id, symbols[best + 1].id) : kNoRank;
        if (best > 0) symbols[best - 1].rank = rank_of(symbols[best - 1].id, symbols[best].id);
    }
    ids.resize(first + count);
    for (size_t i = 0; i < count; ++i) ids[first + i] = symbols[i].id;
}

// A heap of (rank, place) over a linked list: n log n for a piece without spaces of a million bytes. An entry whose place has
// changed since it was pushed is recognised by its rank.
void Bpe::merge_long(std::vector<int32_t>& ids, size_t first) const {
    struct Node {
        int32_t id;
        uint32_t rank;
        size_t before, after;
    };
    const size_t count = ids.size() - first;
    std::vector<Node> nodes(count);
    std::priority_queue<std::pair<uint32_t, size_t>, std::vector<std::pair<uint32_t, size_t>>, std::greater<>> queue;
    const auto update = [&](size_t i) {
        Node& node = nodes[i];
        node.rank = node.after < count ? rank_of(node.id, nodes[node.after].id) : kNoRank;
        if (node.rank != kNoRank) queue.emplace(node.rank, i);
    };
    for (size_t i = 0; i < count; ++i) nodes[i] = {ids[first + i], kNoRank, i - 1, i + 1};
    for (size_t i = 0; i < count; ++i) update(i);
    while (!queue.empty()) {
        const auto [rank, i] = queue.top();
        queue.pop();
        if (nodes[i].rank != rank) continue;
        Node& node = nodes[i];
        Node& gone = nodes[node.after];
        node.id = find_pair(node.id, gone.id)->result;
        gone.rank = kNoRank;
        node.after = gone.after;
        if (node.after < count) nodes[node.after].before = i;
        update(i);
        if (node.before < count) update(node.before);  // the first node's `before` has wrapped around
    }
    ids.resize(first);
    for (size_t i = 0; i < count; i = nodes[i].after) ids.push_back(nodes[i].id);
}

std::array<std::string, 256> byte_letters() {
    std::array<std::string, 256> letters;
    char32_t next = 256;  // bytes that do not print take the code points from here on
    for (int byte = 0; byte < 256; ++byte) {
        const bool prints = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
        append_utf8(prints ? byte : next++, letters[byte]);
    }
    return letters;
}

}  // namespace fathom
