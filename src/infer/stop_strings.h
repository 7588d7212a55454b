// Stop strings in a stream of text.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fathom {

// Lets text through until one of the strings appears. What may turn out to be the beginning of one is held back, so nothing of
// it is ever shown.
class StopStrings {
public:
    explicit StopStrings(std::vector<std::string> stops);

    // The text that is certain to stand before any stop string.
    [[nodiscard]] std::string push(std::string_view text);
    // What was held back, when the stream ends of itself.
    [[nodiscard]] std::string finish();
    [[nodiscard]] bool found() const { return found_; }
    [[nodiscard]] const std::string& matched() const { return matched_; }  // the stop string that was found

private:
    std::vector<std::string> stops_;
    std::string held_, matched_;
    bool found_ = false;
};

}  // namespace fathom
