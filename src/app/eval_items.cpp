#include "app/eval_items.h"

#include <fmt/format.h>
#include <algorithm>
#include <fstream>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"

namespace fathom {
namespace {

// Follows a parser until it gives up: the keys on the way there, and what it said.
class Failure {
public:
    explicit Failure(const std::string& line) { (void)EvalJson::sax_parse(line, this); }

    bool null() { return true; }
    bool boolean(bool) { return true; }
    bool number_integer(EvalJson::number_integer_t) { return true; }
    bool number_unsigned(EvalJson::number_unsigned_t) { return true; }
    bool number_float(EvalJson::number_float_t, const std::string&) { return true; }
    bool string(std::string&) { return true; }
    bool binary(EvalJson::binary_t&) { return true; }
    bool start_object(size_t) { return begin(); }
    bool end_object() { return end(); }
    bool start_array(size_t) { return begin(); }
    bool end_array() { return end(); }
    bool key(std::string& name) {
        keys_.back() = name;
        return true;
    }
    bool parse_error(size_t position, const std::string& token, const EvalJson::exception&) {
        const auto named = std::ranges::find_if(keys_, [](const std::string& key) { return !key.empty(); });
        text_ = fmt::format("no JSON at byte {}{}: \"{:.40}\"{}", position,
                            named == keys_.end() ? "" : fmt::format(", in the field \"{}\"", *named), token,
                            token.ends_with("N") || token.ends_with("I") || token.ends_with("Na") || token.ends_with("In")
                                ? " (NaN and Infinity are no numbers of JSON)"
                                : "");
        return false;
    }

    [[nodiscard]] const std::string& text() const { return text_; }

private:
    std::vector<std::string> keys_;  // of every object or list that is open; empty where there is none
    std::string text_;

    bool begin() {
        keys_.emplace_back();
        return true;
    }
    bool end() {
        keys_.pop_back();
        return true;
    }
};

EvalJson parse_line(const std::string& line) {
    EvalJson record = EvalJson::parse(line, nullptr, false);
    if (record.is_discarded()) throw Error(ErrorKind::kInput, Failure(line).text());
    if (!record.is_object()) throw Error(ErrorKind::kInput, "not a JSON object");
    return record;
}

}  // namespace

int64_t read_items(const ItemFile& file, const std::function<bool(const EvalJson& record)>& take) {
    std::ifstream stream(file.path);
    if (!stream) throw Error(ErrorKind::kIo, fmt::format("{}: cannot be read", file.path));
    for (const std::string_view packed : {".xz", ".gz", ".zst"}) {
        if (!file.path.ends_with(packed)) continue;
        throw Error(ErrorKind::kInput,
                    fmt::format("{}: is compressed: unpack it first (xz -dk, gzip -dk, zstd -d)", file.path));
    }
    int64_t items = 0, records = 0, skipped = 0;
    std::string line;
    for (int64_t number = 1; std::getline(stream, line); ++number) {
        if (line.find_first_not_of(" \t\r") == line.npos) continue;
        if (file.limit > 0 && items == file.limit) break;
        try {
            items += take(parse_line(line)) ? 1 : 0;
            ++records;
        } catch (const Error& error) {
            if (error.kind() != ErrorKind::kInput) throw;
            if (!file.skip_bad) {
                throw Error(ErrorKind::kInput,
                            fmt::format("{}:{}: {}; --skip-bad-items leaves such lines out", file.path, number, error.what()));
            }
            ++skipped;
        }
    }
    if (records == 0) throw Error(ErrorKind::kInput, fmt::format("{}: holds no items", file.path));
    return skipped;
}

std::string text_field(const EvalJson& record, std::span<const char* const> names) {
    for (const char* name : names) {
        const auto found = record.find(name);
        if (found == record.end()) continue;
        if (found->is_string()) return found->get<std::string>();
        if (found->is_number()) return found->dump();
    }
    throw Error(ErrorKind::kInput, fmt::format("an item has no text or number \"{}\": {:.200}", names.front(), record.dump()));
}

}  // namespace fathom
