// Items of multiple choice, as data sets write them, and how they are put to a model.
#pragma once

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace fathom {

// Either one context with several continuations, or several contexts with one continuation (Winograd's schemas), or one of
// each: a cloze, which is right when the model would say just that.
struct ChoiceItem {
    std::vector<std::string> contexts, continuations;
    int64_t gold = -1;  // of the longer list; -1: a cloze
    std::string subject;

    [[nodiscard]] int64_t options() const { return static_cast<int64_t>(std::max(contexts.size(), continuations.size())); }
    [[nodiscard]] const std::string& context(int64_t option) const {
        return contexts[contexts.size() == 1 ? 0 : static_cast<size_t>(option)];
    }
    [[nodiscard]] const std::string& continuation(int64_t option) const {
        return continuations[continuations.size() == 1 ? 0 : static_cast<size_t>(option)];
    }
    // The item with its answer, as an example for others.
    [[nodiscard]] std::string solved() const {
        return context(std::max<int64_t>(gold, 0)) + continuation(std::max<int64_t>(gold, 0));
    }
};

// Records:
//   {"query", "choices": [...], "gold": 0}                      the choice follows the query behind `delimiter`
//   {"question", "options": [...] or "A", "B", ..., "answer"}   MMLU: lettered options, the model says the letter
//   {"context_options": [...], "continuation", "gold"}          a schema
//   {"context", "continuation"}                                 a cloze
// "answer" is a letter, or the option's number from 0 on. Throws Error{kInput} saying what is missing.
[[nodiscard]] ChoiceItem read_choice(const nlohmann::ordered_json& record, const std::string& delimiter);

// The first words of a prompt with MMLU's items of one subject (Hendrycks et al. 2021); empty without a subject.
[[nodiscard]] std::string choice_header(const std::string& subject);

}  // namespace fathom
