#include "io/pretokenizer_regex.h"

// PCRE2's header asks for this name before it is included; it is the only place that does.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <set>

#include "base/error.h"

namespace fathom {
namespace {

// All general categories, grouped by the one-letter name that stands for the group.
constexpr std::array<std::string_view, 30> kCategories = {"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl",
                                                          "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc",
                                                          "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co", "Cn"};

// Categories listed by "\p{Lu}\p{M}...", or nothing when `items` holds anything else.
std::set<std::string_view> read_categories(std::string_view items) {
    std::set<std::string_view> listed;
    while (!items.empty()) {
        const size_t close = items.find('}');
        if (!items.starts_with("\\p{") || close == items.npos) return {};
        const std::string_view name = items.substr(3, close - 3);
        const size_t before = listed.size();
        for (std::string_view category : kCategories)
            if (category == name || (name.size() == 1 && category[0] == name[0])) listed.insert(category);
        if (listed.size() == before) return {};
        items.remove_prefix(close + 1);
    }
    return listed;
}

// [A&&[^B]] = [^(all categories not in A)B]: a plain class, which needs no look-ahead and so no backtracking stack.
std::string rewrite_intersection(std::string_view body) {
    const size_t both = body.find("&&");
    const std::string_view left = body.substr(0, both), right = body.substr(both + 2);
    const std::set<std::string_view> listed = read_categories(left);
    if (listed.empty() || !right.starts_with("[^") || !right.ends_with("]") || right.find('[', 1) != right.npos)
        throw Error(ErrorKind::kInput, "split pattern: the class intersection [" + std::string(body) +
                                           "] is not of the supported form [general categories&&[^...]]");
    std::string result = "[^";
    for (std::string_view category : kCategories)
        if (!listed.contains(category)) result += "\\p{" + std::string(category) + "}";
    return result.append(right.substr(2));
}

// End of the class that opens at `open`: the index of its closing bracket. Nested classes only count where && made them legal.
size_t class_end(std::string_view pattern, size_t open) {
    size_t at = open + 1;
    if (at < pattern.size() && pattern[at] == '^') ++at;
    if (at < pattern.size() && pattern[at] == ']') ++at;  // a bracket in first place is literal
    int depth = 1;
    for (; at < pattern.size(); ++at) {
        if (pattern[at] == '\\') {
            ++at;
        } else if (pattern[at] == '[' && at >= 2 && pattern.substr(at - 2, 2) == "&&") {
            ++depth;
        } else if (pattern[at] == ']' && --depth == 0) {
            return at;
        }
    }
    return pattern.npos;
}

// White_Space without U+180E: the controls, U+0085 and category Z.
constexpr std::string_view kSpaceItems = "\\t-\\r\\x{85}\\p{Z}";
constexpr std::string_view kWordItems = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";  // PCRE2 has no marks in \\w, but fractions

// \p{Han} means Script=Han everywhere but in PCRE2, where it means Script_Extensions and takes in U+30FB. Gives the rewritten
// property that starts at `at`, or "" when there is nothing to rewrite, and moves `at` to its last character.
std::string rewrite_script(std::string_view pattern, size_t& at) {
    const std::string_view start = pattern.substr(at, 3);
    const size_t close = pattern.find('}', at);
    if ((start != "\\p{" && start != "\\P{") || close == pattern.npos || close < at + 6)
        return {};  // general categories are short
    std::string script = std::string(start) + "sc:" + std::string(pattern.substr(at + 3, close - at - 2));
    int error = 0;
    size_t offset = 0;
    pcre2_code* code =
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(script.data()), script.size(), PCRE2_UTF, &error, &offset, nullptr);
    if (!code) return {};  // some other property, such as Alphabetic
    pcre2_code_free(code);
    at = close;
    return script;
}

std::string rewrite_class(std::string_view body) {
    std::string intersection;
    if (body.find("&&") != body.npos) {
        intersection = rewrite_intersection(body);
        body = std::string_view(intersection).substr(1, intersection.size() - 2);
    }
    std::string result = "[";
    for (size_t i = 0; i < body.size(); ++i) {
        if (body[i] == '\\' && i + 1 < body.size()) {
            if (body[i + 1] == 's') {
                result += kSpaceItems;
            } else if (body[i + 1] == 'w') {
                result += kWordItems;
            } else if (const std::string script = rewrite_script(body, i); !script.empty()) {
                result += script;
                continue;
            } else {
                result.append(body.substr(i, 2));
            }
            ++i;
        } else {
            if (body[i] == '[') result += '\\';  // a bracket inside a class is literal, never the start of [:name:]
            result += body[i];
        }
    }
    return result + "]";
}

[[noreturn]] void fail_compile(std::string_view pattern, int code, size_t offset) {
    std::array<PCRE2_UCHAR, 256> text{};
    pcre2_get_error_message(code, text.data(), text.size());
    throw Error(ErrorKind::kInput, "split pattern \"" + std::string(pattern.substr(0, 200)) + "\" does not compile: " +
                                       reinterpret_cast<const char*>(text.data()) + " at offset " + std::to_string(offset));
}

}  // namespace

std::string to_pcre2_dialect(std::string_view pattern) {
    std::string result;
    for (size_t i = 0; i < pattern.size(); ++i) {
        if (const std::string script = rewrite_script(pattern, i); !script.empty()) {
            result += script;
        } else if (pattern[i] == '\\' && i + 1 < pattern.size()) {
            const char escaped = pattern[++i];
            const std::string_view items = escaped == 's' || escaped == 'S' ? kSpaceItems : kWordItems;
            if (escaped == 's' || escaped == 'w')
                result.append("[").append(items).append("]");
            else if (escaped == 'S' || escaped == 'W')
                result.append("[^").append(items).append("]");
            else
                result.append({'\\', escaped});
        } else if (const size_t end = pattern[i] == '[' ? class_end(pattern, i) : pattern.npos; end != pattern.npos) {
            result += rewrite_class(pattern.substr(i + 1, end - i - 1));
            i = end;
        } else {
            result += pattern[i];
        }
    }
    return result;
}

Regex::Scratch::Scratch() : data_(pcre2_match_data_create(1, nullptr)) {
    if (!data_) throw Error(ErrorKind::kMemory, "out of memory for a pattern search");
}

Regex::Scratch::~Scratch() { pcre2_match_data_free(static_cast<pcre2_match_data*>(data_)); }

Regex::Regex(std::string_view pattern) {
    const std::string translated = to_pcre2_dialect(pattern);
    // Oniguruma's $ ends a line, hence MULTILINE; UCP makes \d and \w Unicode.
    constexpr uint32_t kOptions = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    const std::unique_ptr<pcre2_compile_context, void (*)(pcre2_compile_context*)> context(
        pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
    pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    int error = 0;
    size_t offset = 0;
    pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(), kOptions, &error,
                                     &offset, context.get());
    if (!code) fail_compile(pattern, error, offset);
    jit_ = pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) == 0;
    code_ = std::shared_ptr<const void>(
        code, [](const void* p) { pcre2_code_free(const_cast<pcre2_code*>(static_cast<const pcre2_code*>(p))); });
}

bool Regex::find(std::string_view text, size_t from, Scratch& scratch, Match& match) const {
    const auto* code = static_cast<const pcre2_code*>(code_.get());
    auto* data = static_cast<pcre2_match_data*>(scratch.data_);
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    int found = PCRE2_ERROR_JIT_STACKLIMIT;
    if (jit_) found = pcre2_jit_match(code, subject, text.size(), from, 0, data, nullptr);
    // The interpreter keeps its backtracking points on the heap, where the machine code ran out of its 32 KiB stack.
    if (found == PCRE2_ERROR_JIT_STACKLIMIT)
        found = pcre2_match(code, subject, text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data, nullptr);
    if (found == PCRE2_ERROR_NOMATCH) return false;
    if (found < 0)
        throw Error(ErrorKind::kInput, "a split pattern gave up on a piece of " + std::to_string(text.size()) +
                                           " bytes (PCRE2 error " + std::to_string(found) +
                                           "); break the text into shorter lines");
    const size_t* bounds = pcre2_get_ovector_pointer(data);
    match = {std::min(bounds[0], bounds[1]), bounds[1]};  // \K could put the begin behind the end
    return true;
}

}  // namespace fathom
