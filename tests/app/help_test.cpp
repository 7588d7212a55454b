#include "app/help.h"

#include <gtest/gtest.h>
#include <memory>
#include <sstream>

namespace fathom {
namespace {

TEST(EditDistance, CountsInsertionsDeletionsSubstitutionsAndSwaps) {
    EXPECT_EQ(edit_distance("", "abc"), 3);
    EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
    EXPECT_EQ(edit_distance("--thraeds", "--threads"), 1);
    EXPECT_EQ(edit_distance("same", "same"), 0);
    EXPECT_EQ(edit_distance("ca", "abc"), 3) << "each letter moves once: optimal string alignment";
}

TEST(Nearest, FindsWhatWasMeantAndNothingElse) {
    const std::vector<std::string> options{"--top-p", "--top-k", "--temperature", "--threads"};
    EXPECT_EQ(nearest("--topp", options), "--top-p");
    EXPECT_EQ(nearest("--temprature", options), "--temperature");
    EXPECT_EQ(nearest("--temp", options), "--temperature") << "the beginning of one name only";
    EXPECT_EQ(nearest("--frobnicate", options), std::nullopt);
    EXPECT_EQ(nearest("--", options), std::nullopt);
    EXPECT_EQ(nearest("", options), std::nullopt);
}

class HelpText : public testing::Test {
protected:
    CLI::App app_{"An application."};
    std::string model_;
    double temperature_ = 0.7;
    bool json_ = false;

    void SetUp() override {
        app_.name("fathom");
        app_.formatter(std::make_shared<HelpFormatter>());
        app_.option_defaults()->always_capture_default();
        app_.fallthrough();
        app_.add_flag("--json", json_, "print results as JSON");
        CLI::App* verb = app_.add_subcommand("generate", "continue a text");
        verb->footer("Examples:\n  fathom generate MODEL");
        verb->add_option("model", model_, "a folder")->required();
        verb->add_option("--temperature", temperature_,
                         "how far from the likeliest token to stray; a description long enough to need a second line")
            ->type_name("T")
            ->check(CLI::Range(0.0, 2.0))
            ->group("Sampling");
    }
    std::string verb_help() { return app_.get_subcommand("generate")->help(); }
    std::string unknown(std::vector<std::string> arguments) {
        std::ranges::reverse(arguments);
        try {
            app_.parse(arguments);
        } catch (const CLI::ParseError&) {
            return describe_unknown(app_);
        }
        return "accepted";
    }
};

TEST_F(HelpText, ShowsExamplesBeforeOptionsAndDefaultsWithThem) {
    const std::string help = verb_help();
    EXPECT_LT(help.find("Examples:"), help.find("Usage: fathom generate MODEL [options]"));
    EXPECT_LT(help.find("Usage:"), help.find("Sampling:"));
    EXPECT_NE(help.find("--temperature T"), std::string::npos);
    EXPECT_NE(help.find("(default: 0.7)"), std::string::npos);
    EXPECT_LT(help.find("Sampling:"), help.find("Options of every verb:"));
    EXPECT_EQ(help.find("FLOAT in"), std::string::npos) << "validators do not belong into the column of names";
}

TEST_F(HelpText, FitsInEightyColumns) {
    std::istringstream lines(verb_help() + app_.help());
    for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 80u) << line;
}

TEST_F(HelpText, AnUnknownOptionIsNamedWithItsNeighbour) {
    EXPECT_EQ(unknown({"generate", "m", "--temperatur", "1"}),
              "fathom generate has no option \"--temperatur\"; did you mean --temperature? (see fathom generate --help)");
    EXPECT_EQ(unknown({"generate", "m", "--jsno"}),
              "fathom generate has no option \"--jsno\"; did you mean --json? (see fathom generate --help)");
}

TEST_F(HelpText, AnUnknownVerbIsNamedWithItsNeighbour) {
    EXPECT_EQ(unknown({"genarate"}), "fathom has no verb \"genarate\"; did you mean generate? (see fathom --help)");
    EXPECT_EQ(unknown({"generate", "m", "extra"}),
              "fathom generate does not expect the argument \"extra\" (see fathom generate --help)");
}

}  // namespace
}  // namespace fathom
