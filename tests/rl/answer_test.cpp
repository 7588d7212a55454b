#include "rl/answer.h"

#include <gtest/gtest.h>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "rl/adversarial_answers.h"

namespace fathom {
namespace {

TEST(Answer, IsFoundInTwoHundredAdversarialCompletions) {
    EXPECT_EQ(std::size(kAdversarialAnswers), 200U);
    for (const AdversarialAnswer& c : kAdversarialAnswers) {
        const auto found = extract_answer(c.completion);
        const bool right = found && equivalent_answers(*found, c.reference);
        EXPECT_EQ(right, c.right) << "completion: " << c.completion << "\nreference: " << c.reference
                                  << "\nextracted: " << found.value_or("(none)");
    }
}

TEST(Answer, EquivalenceIsSymmetricAndReflexive) {
    for (const AdversarialAnswer& c : kAdversarialAnswers) {
        const auto found = extract_answer(c.completion);
        if (!found) continue;
        EXPECT_EQ(equivalent_answers(*found, c.reference), equivalent_answers(c.reference, *found)) << c.completion;
        EXPECT_TRUE(equivalent_answers(c.reference, c.reference)) << c.reference;
    }
}

// The lines of an .xz file, by the xz tool; empty where either is absent.
std::vector<nlohmann::json> shared_lines(const std::string& name) {
    const std::string command = std::string("xz -dc ") + FATHOM_SHARED "/data/reason/" + name + ".jsonl.xz 2>/dev/null";
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> pipe(::popen(command.c_str(), "r"), ::pclose);
    std::string text;
    char block[65536];
    for (size_t got; pipe && (got = std::fread(block, 1, sizeof block, pipe.get())) > 0;) text.append(block, got);
    std::vector<nlohmann::json> lines;
    for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1)
        lines.push_back(nlohmann::json::parse(text.substr(begin, end - begin)));
    return lines;
}

TEST(Answer, AgreesWithEveryReferenceOfGsm8k) {
    int64_t count = 0;
    for (const char* file : {"gsm8k.train", "gsm8k.test-a"}) {
        std::string previous;
        for (const auto& line : shared_lines(file)) {
            const std::string solution = line["answer"];
            std::string reference = solution.substr(solution.rfind("####") + 4);  // "#### 1,234" by the data set's own rule
            std::erase(reference, ',');
            std::erase(reference, ' ');
            const auto found = extract_answer(solution);
            ASSERT_TRUE(found && equivalent_answers(*found, reference)) << solution;
            EXPECT_TRUE(equivalent_answers(reference_answer(solution), reference)) << solution;
            EXPECT_EQ(equivalent_answers(*found, previous), reference == previous) << reference << " and " << previous;
            previous = reference;
            ++count;
        }
    }
    if (count == 0) GTEST_SKIP() << "no shared/data, or no xz here";
    EXPECT_EQ(count, 7473 + 660);
}

TEST(Answer, AgreesWithEveryReferenceOfMath) {
    const auto lines = shared_lines("math.dev");
    if (lines.empty()) GTEST_SKIP() << "no shared/data, or no xz here";
    EXPECT_EQ(lines.size(), 4005U);
    for (const auto& line : lines) {
        const std::string solution = line["solution"];
        const auto found = extract_answer(solution);
        ASSERT_TRUE(found) << solution;
        if (line.contains("answer")) {
            const std::string reference = line["answer"];
            EXPECT_TRUE(equivalent_answers(*found, reference)) << *found << " and " << reference;
        }
    }
}

}  // namespace
}  // namespace fathom
