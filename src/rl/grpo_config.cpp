#include "rl/grpo_config.h"

#include <fmt/format.h>
#include <array>

#include "base/error.h"
#include "train/toml_section.h"

namespace fathom {
namespace {

constexpr std::array<std::pair<std::string_view, RewardScaling>, 3> kScalings{
    {{"group", RewardScaling::kGroup}, {"batch", RewardScaling::kBatch}, {"none", RewardScaling::kNone}}};
constexpr std::array<std::pair<std::string_view, ImportanceLevel>, 2> kLevels{
    {{"token", ImportanceLevel::kToken}, {"sequence", ImportanceLevel::kSequence}}};
constexpr std::array<std::pair<std::string_view, LossType>, 4> kLossTypes{
    {{"grpo", LossType::kGrpo}, {"bnpo", LossType::kBnpo}, {"dr_grpo", LossType::kDrGrpo}, {"dapo", LossType::kDapo}}};
constexpr std::array<std::pair<std::string_view, KlEstimator>, 3> kEstimators{
    {{"k1", KlEstimator::kK1}, {"k2", KlEstimator::kK2}, {"k3", KlEstimator::kK3}}};

void read_sampling(TomlSection& s, GrpoConfig& c) {
    s.integer("num_generations", c.num_generations, 1, 1 << 16);
    s.integer("prompts_per_step", c.prompts_per_step, 1, 1 << 20);
    s.integer("steps_per_generation", c.steps_per_generation, 1, 1 << 16);
    s.integer("num_iterations", c.num_iterations, 1, 1 << 10);
    s.integer("max_prompt_length", c.max_prompt_length, 1);
    s.integer("max_completion_length", c.max_completion_length, 1);
    s.number("temperature", c.temperature, 0.01, 100);
    s.number("top_p", c.top_p, 1e-6, 1);
    s.integer("top_k", c.top_k, 0);
    s.number("min_p", c.min_p, 0, 1);
    s.boolean("keep_routing", c.keep_routing);
    s.boolean("keep_sampling_mask", c.keep_sampling_mask);
    s.boolean("dynamic_sampling", c.dynamic_sampling);
    s.integer("max_resamples", c.max_resamples, 0, 1000);
    s.integer("max_sequences", c.max_sequences, 1, 1 << 16);
    s.integer("max_batch_rows", c.max_batch_rows, 1, 1 << 20);
    s.text("chat_format", c.chat_format);
    s.boolean("thinking", c.thinking);
    s.integer("log_completions", c.log_completions, 0);
}

void read_loss(TomlSection& s, GrpoConfig& c) {
    s.number("beta", c.loss.beta, 0, 1e6);
    s.number("epsilon", c.loss.epsilon, 0, 1);
    c.loss.epsilon_high = c.loss.epsilon;
    s.number("epsilon_high", c.loss.epsilon_high, 0, 1e6);
    s.number("delta", c.loss.delta, 0, 1e6);
    s.choice("kl_estimator", c.loss.kl_estimator, kEstimators);
    s.boolean("unbiased_kl", c.loss.unbiased_kl);
    s.number("off_policy_mask", c.loss.off_policy_mask, 0, 1e6);
    s.choice("importance_sampling_level", c.loss.importance_sampling_level, kLevels);
    s.choice("loss_type", c.loss.loss_type, kLossTypes);
    s.choice("scale_rewards", c.scale_rewards, kScalings);
    s.boolean("mask_truncated_completions", c.mask_truncated_completions);
    c.loss.max_completion_length = c.max_completion_length;
    if (c.loss.delta > 0 && c.loss.delta <= 1 + c.loss.epsilon_high)
        fail_setting(s.full("delta"), "must be above 1 + epsilon_high, or 0 for no bound");
}

void read_rewards(TomlSection& s, GrpoConfig& c, const std::filesystem::path& base) {
    s.texts("reward_funcs", c.reward_funcs);
    s.numbers("reward_weights", c.reward_weights, -1e6, 1e6);
    s.boolean("shuffle_rewards", c.shuffle_rewards);
    s.texts("reward_program", c.reward.program);
    c.reward.model = s.path("reward_model", base);
    double seconds = 10;
    s.number("reward_timeout", seconds, 0.001, 1e6);
    c.reward.timeout = std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
    s.integer("reward_retries", c.reward.retries, 0, 100);
    s.integer("soft_overlong_cache", c.reward.soft_overlong_cache, 0);
    s.text("language", c.reward.language);
    c.reward.max_completion_length = c.max_completion_length;
    c.reference_model = s.path("reference_model", base);
    if (c.reward_funcs.empty()) fail_setting(s.full("reward_funcs"), "must name at least one reward");
    if (!c.reward_weights.empty() && c.reward_weights.size() != c.reward_funcs.size())
        fail_setting(s.full("reward_weights"), "must have one number per reward function");
    for (const std::string& name : c.reward_funcs) check_reward(name, c.reward);
}

SectionReaders readers(GrpoConfig& config) {
    return {{"grpo", [&config](TomlSection& section, const std::filesystem::path& base) {
                 read_sampling(section, config);
                 read_loss(section, config);
                 read_rewards(section, config, base);
             }}};
}

GrpoConfig checked(GrpoConfig config) {
    const auto& train = config.train;
    config.reward.program_dir = train.job.dir / "work";
    if (config.reference_model.empty()) config.reference_model = train.model.init_from;
    if (config.rollouts() % config.steps_per_generation != 0)
        fail_setting("grpo.steps_per_generation", "must divide prompts_per_step * num_generations");
    if (config.num_generations < 2 && config.scale_rewards != RewardScaling::kBatch)
        fail_setting("grpo.num_generations", "must be at least 2: an answer is compared with others to the same prompt");
    const int64_t longest = config.max_prompt_length + config.max_completion_length;
    if (longest > train.model.config.max_position_embeddings) {
        fail_setting(
            "grpo.max_completion_length",
            fmt::format("{} tokens of prompt and completion are more than the model reads (max_position_embeddings = {})",
                        longest, train.model.config.max_position_embeddings));
    }
    if (longest > train.batch_tokens())
        fail_setting("data.sequence_length", "times training.rows_per_batch must hold the longest prompt with its completion");
    if (config.loss.beta > 0 && config.reference_model.empty())
        fail_setting("grpo.reference_model", "is required for beta > 0 without model.init_from");
    if (train.model.config.num_nextn_predict_layers > 0)
        fail_setting("model.num_nextn_predict_layers", "must be 0: rewards say nothing about MTP modules");
    return config;
}

}  // namespace

GrpoConfig GrpoConfig::parse(std::string_view toml, std::span<const std::string> overrides, const std::filesystem::path& base) {
    GrpoConfig config;
    config.train = TrainConfig::parse(toml, overrides, base, readers(config));
    return checked(std::move(config));
}

GrpoConfig GrpoConfig::load(const std::filesystem::path& file, std::span<const std::string> overrides) {
    GrpoConfig config;
    config.train = TrainConfig::load(file, overrides, readers(config));
    try {
        return checked(std::move(config));
    } catch (const Error& error) {
        throw error.within(file.string());
    }
}

}  // namespace fathom
