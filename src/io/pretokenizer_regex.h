// Regular expressions as tokenizer files write them (Oniguruma's and Rust's dialects), run by PCRE2.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace fathom {

struct Match {
    size_t begin = 0, end = 0;  // bytes
};

// A compiled pattern; immutable, so several threads may search with it, each with its own Scratch.
class Regex {
public:
    // Working memory of searches; serves any Regex.
    class Scratch {
    public:
        Scratch();
        ~Scratch();
        Scratch(const Scratch&) = delete;
        Scratch& operator=(const Scratch&) = delete;

    private:
        friend class Regex;
        void* data_;
    };

    // Throws Error{kInput} for a pattern that does not compile, with the place and the reason.
    explicit Regex(std::string_view pattern);

    // The first match at or after byte `from`; false when there is none. `text` must be valid UTF-8.
    [[nodiscard]] bool find(std::string_view text, size_t from, Scratch& scratch, Match& match) const;

private:
    std::shared_ptr<const void> code_;
    bool jit_ = false;
};

// Rewrites what PCRE2 reads differently: \s (which there includes U+180E), \w (without marks), scripts (which there mean
// Script_Extensions) and class intersections of general categories, [\p{Lu}\p{M}&&[^\p{Han}]]. Throws Error{kInput} for an
// intersection of another form.
[[nodiscard]] std::string to_pcre2_dialect(std::string_view pattern);

}  // namespace fathom
