#include "model/config.h"

#include <gtest/gtest.h>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "model/config_fields.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

std::string released_text(const std::string& name) {
    return read_text(fs::path(FATHOM_TEST_DATA) / "configs" / (name + ".json"));
}
ModelConfig released(const std::string& name) { return ModelConfig::parse(released_text(name)); }
ModelConfig fixture(const std::string& name) { return ModelConfig::load(fs::path(FATHOM_TEST_DATA) / "fixtures" / name); }

// What parse() says about V3's config after an edit; empty when it accepts it.
std::string complaint(const std::function<void(Json&)>& edit, const std::string& base = "deepseek-v3") {
    Json json = Json::parse(released_text(base));
    edit(json);
    try {
        (void)ModelConfig::parse(json.dump());
        return "";
    } catch (const Error& e) {
        EXPECT_EQ(e.kind(), ErrorKind::kInput);
        return e.what();
    }
}

ModelConfig scratch() {
    ModelConfig c;
    c.vocab_size = 512;
    c.hidden_size = 96;
    c.num_hidden_layers = 3;
    c.num_attention_heads = 3;
    c.kv_lora_rank = 32;
    c.qk_nope_head_dim = 16;
    c.qk_rope_head_dim = 8;
    c.v_head_dim = 16;
    c.intermediate_size = 160;
    c.moe_intermediate_size = 48;
    c.n_routed_experts = 8;
    c.num_experts_per_tok = 2;
    c.eos_token_id = {1, 5};
    return c;
}

TEST(ModelConfig, ReadsTheFieldsOfEveryReleasedFamily) {
    const ModelConfig v3 = released("deepseek-v3");
    EXPECT_EQ(v3.num_hidden_layers, 61);
    EXPECT_EQ(v3.q_lora_rank, 1536);
    EXPECT_EQ(v3.scoring_func, ScoringFunc::kSigmoid);
    EXPECT_EQ(v3.topk_method, TopkMethod::kNoauxTc);
    EXPECT_EQ(v3.n_group, 8);
    EXPECT_EQ(v3.topk_group, 4);
    EXPECT_EQ(v3.routed_scaling_factor, 2.5);
    EXPECT_TRUE(v3.norm_topk_prob);
    EXPECT_EQ(v3.num_nextn_predict_layers, 1);
    EXPECT_EQ(v3.rope_scaling->factor, 40);
    EXPECT_EQ(v3.quantization_config->weight_block_size[0], 128);
    EXPECT_EQ(v3.cache_dim(), 576);

    const ModelConfig v2 = released("deepseek-v2");
    EXPECT_EQ(v2.topk_method, TopkMethod::kGroupLimitedGreedy);
    EXPECT_EQ(v2.scoring_func, ScoringFunc::kSoftmax);
    EXPECT_EQ(v2.routed_scaling_factor, 16);

    const ModelConfig lite = released("deepseek-v2-lite");
    EXPECT_EQ(lite.q_lora_rank, 0);
    EXPECT_EQ(lite.rope_scaling->mscale_all_dim, 0.707);

    const ModelConfig kimi = released("kimi-k2");
    EXPECT_EQ(kimi.model_type, "kimi_k2");
    EXPECT_EQ(kimi.num_attention_heads, 64);
    EXPECT_FALSE(kimi.bos_token_id);
    EXPECT_TRUE(kimi.eos_token_id.empty());
}

TEST(ModelConfig, V1IsMultiHeadAttentionWithHalvesRotated) {
    const ModelConfig v1 = released("deepseek-moe-16b");
    EXPECT_FALSE(v1.mla());
    EXPECT_FALSE(v1.rope_interleave);
    EXPECT_EQ(v1.qk_head_dim(), 128);
    EXPECT_EQ(v1.rope_dim(), 128);
    EXPECT_EQ(v1.value_dim(), 128);
    EXPECT_EQ(v1.cache_dim(), 2 * 16 * 128);
    EXPECT_EQ(v1.topk_method, TopkMethod::kGreedy);
    EXPECT_FALSE(v1.norm_topk_prob);
    EXPECT_EQ(v1.routed_scaling_factor, 1);
    EXPECT_FALSE(v1.correction_bias());
}

TEST(ModelConfig, MoonlightsEpsilonDoesNotReachTheLatentNorms) {
    const ModelConfig moonlight = released("moonlight-16b-a3b");
    EXPECT_EQ(moonlight.rms_norm_eps, 1e-5);
    EXPECT_EQ(moonlight.latent_norm_eps(), 1e-6);
    EXPECT_EQ(moonlight.rope_theta, 50000);
    EXPECT_FALSE(moonlight.rope_scaling);
}

TEST(ModelConfig, SoftmaxScaleFollowsMscaleAllDim) {
    EXPECT_NEAR(released("moonlight-16b-a3b").softmax_scale(), 0.0721687836, 1e-10);
    EXPECT_NEAR(released("deepseek-v2-lite").softmax_scale(), 0.1147213868, 1e-10);
    EXPECT_NEAR(released("deepseek-v3").softmax_scale(), 0.1352337789, 1e-10);
    ModelConfig c = released("deepseek-v3");
    c.rope_scaling->mscale_all_dim = 0;
    EXPECT_NEAR(c.softmax_scale(), 0.0721687836, 1e-10);
    EXPECT_NEAR(c.rope_magnitude(), 1.3688879454, 1e-10);
    EXPECT_EQ(released("deepseek-v3").rope_magnitude(), 1);
}

TEST(ModelConfig, MoeLayersFollowTheDenseOnesAndTheFrequency) {
    ModelConfig c = scratch();
    c.first_k_dense_replace = 1;
    c.moe_layer_freq = 2;
    EXPECT_FALSE(c.moe_layer(0));
    EXPECT_FALSE(c.moe_layer(1));
    EXPECT_TRUE(c.moe_layer(2));
    c.n_routed_experts = 0;
    EXPECT_FALSE(c.moe_layer(2));
}

TEST(ModelConfig, UnchangedConfigsKeepEveryByte) {
    for (const char* name :
         {"deepseek-moe-16b", "deepseek-v2-lite", "deepseek-v2", "deepseek-v3", "moonlight-16b-a3b", "kimi-k2"})
        EXPECT_EQ(released(name).to_json(), released_text(name));
    for (const char* name : {"v2-lite-greedy", "v2-group-limited", "v3", "v3-nope-lora-none", "v3-fp8-blocks"})
        EXPECT_EQ(fixture(name).to_json(), read_text(fs::path(FATHOM_TEST_DATA) / "fixtures" / name / "config.json"));
}

TEST(ModelConfig, AChangeTouchesOnlyItsOwnKeyInEitherRopeSpelling) {
    for (const std::string& text :
         {released_text("deepseek-v3"), read_text(fs::path(FATHOM_TEST_DATA) / "fixtures" / "v3" / "config.json")}) {
        Json expected = Json::parse(text);
        expected["an_unknown_key"] = {{"kept", {1, 2.5, nullptr}}};
        ModelConfig c = ModelConfig::parse(expected.dump());
        c.rope_scaling->factor = 7;
        c.rope_theta = 12345;
        c.torch_dtype = "float32";
        const bool newer = expected.contains("rope_parameters");
        expected[newer ? "rope_parameters" : "rope_scaling"]["factor"] = 7.0;
        (newer ? expected["rope_parameters"] : expected)["rope_theta"] = 12345.0;
        expected[newer ? "dtype" : "torch_dtype"] = "float32";
        EXPECT_EQ(Json::parse(c.to_json()), expected);
        EXPECT_EQ(Json::parse(c.to_json()).dump(), expected.dump()) << "order of keys";
    }
}

TEST(ModelConfig, YarnCanBeRemovedAndAddedInEitherSpelling) {
    for (const char* key : {"rope_scaling", "rope_parameters"}) {
        ModelConfig c = std::string_view(key) == "rope_scaling" ? released("deepseek-v3") : fixture("v3");
        const RopeScaling yarn = *c.rope_scaling;
        c.rope_scaling.reset();
        const ModelConfig without = ModelConfig::parse(c.to_json());
        EXPECT_FALSE(without.rope_scaling);
        EXPECT_EQ(without.rope_theta, 10000);
        ModelConfig again = without;
        again.rope_scaling = yarn;
        EXPECT_EQ(ModelConfig::parse(again.to_json()).rope_scaling, yarn);
        EXPECT_TRUE(Json::parse(again.to_json())[key].is_object());
    }
}

TEST(ModelConfig, BothSpellingsMeanTheSame) {
    Json json = Json::parse(released_text("deepseek-v3"));
    Json rope = json["rope_scaling"];
    rope.erase("type");
    rope["rope_type"] = "yarn";
    rope["rope_theta"] = json["rope_theta"];
    json.erase("rope_scaling");
    json.erase("rope_theta");
    json["rope_parameters"] = rope;
    const ModelConfig older = released("deepseek-v3"), newer = ModelConfig::parse(json.dump());
    EXPECT_EQ(older.rope_scaling, newer.rope_scaling);
    EXPECT_EQ(older.rope_theta, newer.rope_theta);
}

TEST(ModelConfig, FromScratchWritesTheReleasedSpelling) {
    ModelConfig c = scratch();
    c.rope_scaling = RopeScaling{.factor = 4, .original_max_position_embeddings = 1024, .mscale_all_dim = 1};
    c.max_position_embeddings = 4096;
    c.validate();
    const Json json = Json::parse(c.to_json());
    EXPECT_EQ(json["architectures"], Json::array({"DeepseekV3ForCausalLM"}));
    EXPECT_EQ(json["rope_scaling"]["type"], "yarn");
    EXPECT_EQ(json["torch_dtype"], "bfloat16");
    EXPECT_EQ(json["num_key_value_heads"], 3) << "transformers would take 128 when absent";
    EXPECT_TRUE(json["q_lora_rank"].is_null());
    EXPECT_EQ(json["eos_token_id"], Json::array({1, 5}));
    EXPECT_FALSE(json.contains("rope_parameters"));
    EXPECT_FALSE(json.contains("dtype"));

    const ModelConfig read = ModelConfig::parse(c.to_json());
    EXPECT_EQ(read.rope_scaling, c.rope_scaling);
    EXPECT_EQ(read.eos_token_id, c.eos_token_id);
    EXPECT_EQ(read.softmax_scale(), c.softmax_scale());
    EXPECT_EQ(read.to_json(), c.to_json());
}

TEST(ModelConfig, KeysWithoutAFileAreCompletedForTransformers) {
    const Json few = {{"model_type", "deepseek_v3"},
                      {"vocab_size", 64},
                      {"hidden_size", 32},
                      {"num_hidden_layers", 2},
                      {"intermediate_size", 48},
                      {"kv_lora_rank", 8},
                      {"qk_nope_head_dim", 8},
                      {"qk_rope_head_dim", 4},
                      {"v_head_dim", 8},
                      {"q_lora_rank", 0},
                      {"num_attention_heads", 3},
                      {"use_cache", true}};
    const Json json = Json::parse(complete_config(few.dump()));
    EXPECT_TRUE(json["q_lora_rank"].is_null()) << "0 would be a latent of no channels";
    EXPECT_EQ(json["num_key_value_heads"], 3) << "transformers would take 128 when absent";
    EXPECT_TRUE(json["n_routed_experts"].is_null());
    EXPECT_EQ(json["architectures"], Json::array({"DeepseekV3ForCausalLM"}));
    EXPECT_EQ(json["rms_norm_eps"], 1e-6);
    EXPECT_EQ(json["use_cache"], true) << "carried along";
    const ModelConfig read = ModelConfig::parse(json.dump());
    EXPECT_EQ(read.hidden_size, 32);
    EXPECT_EQ(read.q_lora_rank, 0);
    EXPECT_THROW((void)complete_config("{}"), Error);
}

TEST(ModelConfig, V1FromScratchHasNoLatentKeys) {
    ModelConfig c = scratch();
    c.model_type = "deepseek";
    c.kv_lora_rank = c.qk_nope_head_dim = c.qk_rope_head_dim = c.v_head_dim = 0;
    c.scoring_func = ScoringFunc::kSoftmax;
    c.topk_method = TopkMethod::kGreedy;
    c.rope_interleave = false;
    c.validate();
    const Json json = Json::parse(c.to_json());
    EXPECT_FALSE(json.contains("kv_lora_rank"));
    EXPECT_FALSE(json.contains("rope_interleave"));
    const ModelConfig read = ModelConfig::parse(c.to_json());
    EXPECT_EQ(read.qk_head_dim(), 32);
    EXPECT_TRUE(read.norm_topk_prob) << "written although V1's default is false";
    EXPECT_FALSE(read.rope_interleave);
}

TEST(ModelConfig, ANestedTextConfigIsTheModelAndKeepsItsSurroundings) {
    Json outer = {{"model_type", "kimi_vl"}, {"vision_config", {{"hidden_size", 1152}}}};
    outer["text_config"] = Json::parse(released_text("kimi-k2"));
    ModelConfig c = ModelConfig::parse(outer.dump());
    EXPECT_EQ(c.model_type, "kimi_k2");
    EXPECT_EQ(c.hidden_size, 7168);
    c.num_hidden_layers = 2;
    outer["text_config"]["num_hidden_layers"] = 2;
    EXPECT_EQ(Json::parse(c.to_json()).dump(), outer.dump());
}

TEST(ModelConfig, AbsentMeansWhatTheFamilySays) {
    Json json = Json::parse(released_text("deepseek-v3"));
    for (const char* key : {"scoring_func", "topk_method", "n_group", "topk_group", "moe_layer_freq",
                            "num_nextn_predict_layers", "norm_topk_prob", "max_position_embeddings"})
        json.erase(key);
    json["q_lora_rank"] = nullptr;
    const ModelConfig c = ModelConfig::parse(json.dump());
    EXPECT_EQ(c.scoring_func, ScoringFunc::kSigmoid);
    EXPECT_EQ(c.topk_method, TopkMethod::kNoauxTc);
    EXPECT_EQ(c.n_group, 1);
    EXPECT_EQ(c.topk_group, 1);
    EXPECT_EQ(c.num_nextn_predict_layers, 0);
    EXPECT_EQ(c.q_lora_rank, 0);
    EXPECT_TRUE(c.norm_topk_prob);
    EXPECT_EQ(c.max_position_embeddings, 163840) << "40 x 4096";
}

TEST(ModelConfig, ADerivedDefaultIsWrittenWhenWhatItFollowsChanges) {
    Json json = Json::parse(released_text("deepseek-v3"));
    for (const char* key : {"max_position_embeddings", "scoring_func", "topk_method", "norm_topk_prob"}) json.erase(key);
    ModelConfig c = ModelConfig::parse(json.dump());
    c.model_type = "deepseek_v2";
    c.rope_scaling.reset();
    const ModelConfig read = ModelConfig::parse(c.to_json());
    EXPECT_EQ(read.max_position_embeddings, 163840);
    EXPECT_EQ(read.scoring_func, ScoringFunc::kSigmoid);
    EXPECT_EQ(read.topk_method, TopkMethod::kNoauxTc);
    EXPECT_TRUE(read.norm_topk_prob);
}

TEST(ModelConfig, UnknownModelTypesAreToldWhatIsSupported) {
    const auto with_type = [](const char* type) { return complaint([type](Json& j) { j["model_type"] = type; }); };
    EXPECT_NE(with_type("llama").find("\"llama\" is not known; supported are deepseek (V1), deepseek_v2"), std::string::npos);
    EXPECT_NE(with_type("deepseek_v32").find("recognised but not supported yet"), std::string::npos);
    EXPECT_NE(with_type("deepseek_v4").find("recognised but not supported yet"), std::string::npos);
    EXPECT_EQ(complaint([](Json& j) { j.erase("model_type"); }), "model_type is missing");
}

TEST(ModelConfig, EveryBadValueIsNamedByItsKey) {
    const std::pair<const char*, Json> cases[] = {
        {"hidden_size", 0},
        {"hidden_size", -1},
        {"hidden_size", "7168"},
        {"hidden_size", 7168.5},
        {"hidden_size", 1e300},
        {"hidden_size", uint64_t{18446744073709551615u}},
        {"vocab_size", int64_t{1} << 40},
        {"vocab_size", true},
        {"num_hidden_layers", nullptr},
        {"num_attention_heads", Json::array()},
        {"kv_lora_rank", 0},
        {"qk_rope_head_dim", 63},
        {"v_head_dim", 0},
        {"num_experts_per_tok", 257},
        {"num_experts_per_tok", 0},
        {"num_experts_per_tok", 129},  // more than four groups hold
        {"n_group", 3},
        {"n_group", 0},
        {"topk_group", 9},
        {"moe_layer_freq", 0},
        {"first_k_dense_replace", -1},
        {"scoring_func", "sqrtsoftplus"},
        {"topk_method", "magic"},
        {"norm_topk_prob", 1},
        {"routed_scaling_factor", 0},
        {"routed_scaling_factor", nullptr},
        {"rms_norm_eps", 0},
        {"rms_norm_eps", "1e-6"},
        {"rope_theta", 1},
        {"rope_scaling", 40},
        {"rope_scaling", {{"type", "linear"}, {"factor", 2}}},
        {"max_position_embeddings", 0},
        {"num_nextn_predict_layers", 1000},
        {"eos_token_id", -1},
        {"eos_token_id", {1, "two"}},
        {"hidden_act", "gelu"},
        {"mlp_bias", true},
        {"torch_dtype", "int4"},
        {"quantization_config", {{"quant_method", "awq"}}},
        {"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {64, 64}}}},
        {"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", nullptr}}},
    };
    for (const auto& [key, value] : cases) {
        const std::string message = complaint([&, k = key, v = value](Json& j) { j[k] = v; });
        EXPECT_NE(message.find(key), std::string::npos) << key << " = " << value << ": \"" << message << '"';
    }
    EXPECT_NE(complaint([](Json& j) { j["n_group"] = j["topk_group"] = 256; }).find("n_group 256 leaves one per group"),
              std::string::npos);
    const std::pair<const char*, Json> rope_cases[] = {
        {"factor", 0.5},
        {"factor", nullptr},
        {"original_max_position_embeddings", 0},
        {"beta_slow", 33},
        {"beta_slow", 0.0},
        {"mscale_all_dim", -1},
        {"truncate", false},
        {"attention_factor", 1.0},
        {"mscale", "1"},
        {"type", "deepseek_ntk_yarn"},
    };
    for (const auto& [key, value] : rope_cases) {
        const std::string message = complaint([&, k = key, v = value](Json& j) { j["rope_scaling"][k] = v; });
        EXPECT_NE(message.find(key), std::string::npos) << key << " = " << value << ": \"" << message << '"';
        EXPECT_NE(message.find("rope_scaling"), std::string::npos) << message;
    }
}

TEST(ModelConfig, V1ChecksItsHeads) {
    EXPECT_NE(complaint([](Json& j) { j["num_attention_heads"] = 12; }, "deepseek-moe-16b").find("num_attention_heads"),
              std::string::npos);
    EXPECT_NE(complaint([](Json& j) { j["num_key_value_heads"] = 3; }, "deepseek-moe-16b").find("num_key_value_heads"),
              std::string::npos);
    EXPECT_NE(complaint([](Json& j) { j["head_dim"] = 33; }, "deepseek-moe-16b").find("head_dim"), std::string::npos);
    EXPECT_EQ(complaint([](Json& j) { j["head_dim"] = 64; }, "deepseek-moe-16b"), "");
}

TEST(ModelConfig, TextThatIsNoConfigIsRefused) {
    for (const std::string& text : {std::string(), std::string("{"), std::string("[]"), std::string("{}"), std::string("null"),
                                    std::string("\"\xff\""), std::string(100000, '[')})
        EXPECT_THROW((void)ModelConfig::parse(text), Error) << text.substr(0, 20);
}

TEST(ModelConfig, LoadNamesTheFile) {
    const fs::path folder = fs::path(testing::TempDir()) / "config_test_bad";
    fs::create_directories(folder);
    write_text_atomically(folder / "config.json", "{}");
    try {
        (void)ModelConfig::load(folder);
        FAIL();
    } catch (const Error& e) {
        EXPECT_EQ(std::string(e.what()), (folder / "config.json").string() + ": model_type is missing");
    }
    fs::remove_all(folder);
}

}  // namespace
}  // namespace fathom
