#include "app/speculation.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace fathom {
namespace {

int64_t drafts(const std::string& config, int64_t modules) {
    ModelConfig model;
    model.num_nextn_predict_layers = modules;
    EngineOptions engine;
    SpeculationOptions{config}.apply(model, engine);
    return engine.draft_tokens;
}

TEST(Speculation, IsConfiguredInVllmsWordsAndShorterOnes) {
    EXPECT_EQ(drafts("", 0), 0);
    EXPECT_EQ(drafts("0", 0), 0);
    EXPECT_EQ(drafts("mtp", 2), 2);
    EXPECT_EQ(drafts("1", 2), 1);
    EXPECT_EQ(drafts(R"({"method": "mtp", "num_speculative_tokens": 2})", 2), 2);
    EXPECT_EQ(drafts(R"({"method": "deepseek_mtp"})", 1), 1);
    EXPECT_EQ(drafts("{}", 1), 1);
}

TEST(Speculation, WhatCannotBeIsRefused) {
    for (const char* config : {"mtp", "1", R"({"method": "mtp"})"}) EXPECT_THROW((void)drafts(config, 0), Error) << config;
    for (const char* config :
         {"2", "-1", "65", "1.5", "ngram", "[1]", R"({"method": "eagle"})", R"({"num_speculative_tokens": 2})",
          R"({"num_speculative_tokens": 0})", R"({"num_speculative_tokens": "1"})", R"({"modle": 1})", "{"}) {
        EXPECT_THROW((void)drafts(config, 1), Error) << config;
    }
}

}  // namespace
}  // namespace fathom
