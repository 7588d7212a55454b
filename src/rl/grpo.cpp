#include "rl/grpo.h"

#include <fmt/format.h>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/shuffle.h"
#include "rl/token_budget.h"

namespace fathom {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Mean and deviation of the numbers among `values`.
std::pair<double, double> mean_and_std(const std::vector<double>& values) {
    double sum = 0, square = 0;
    int64_t count = 0;
    for (const double v : values) {
        if (!std::isnan(v)) sum += v, square += v * v, ++count;
    }
    if (count == 0) return {0, 0};
    const double mean = sum / static_cast<double>(count);
    return {mean, std::sqrt(std::max(0.0, square / static_cast<double>(count) - mean * mean))};
}

// Rows of the batch that predict a completion's token.
std::vector<int32_t> rows_with_targets(const TokenBatch& tokens) {
    std::vector<int32_t> rows;
    for (size_t i = 0; i < tokens.targets.size(); ++i) {
        if (tokens.targets[i] != kNoTarget) rows.push_back(static_cast<int32_t>(i));
    }
    return rows;
}

Tensor words_on_device(Context& cx, const std::vector<int32_t>& words, size_t rows) {
    if (words.empty()) return {};
    return cx.ints(words, true).view({static_cast<int64_t>(rows), static_cast<int64_t>(words.size() / rows)});
}

}  // namespace

struct Grpo::Totals {
    PolicyLossSums sums;
    double entropy = 0, difference = 0, largest_difference = 0;
    int64_t compared = 0, routing_differences = 0, consumed = 0;
    bool on_policy = false;  // no update has been made since the generation was sampled
};

Grpo::Grpo(const GrpoConfig& config, DeepSeek& model, DeepSeek* reference, Ops& ops, const Tokenizer& tokenizer,
           std::vector<Prompt> prompts, bool deterministic)
    : config_(config),
      reference_(reference),
      ops_(ops),
      tokenizer_(tokenizer),
      prompts_(std::move(prompts)),
      deterministic_(deterministic),
      learner_(config.train, model, ops, deterministic),
      order_(std::ssize(prompts_), config.train.job.seed) {
    check(config.loss.beta == 0 || reference != nullptr, "Grpo: beta needs a reference");
    for (const std::string& name : config.reward_funcs) rewards_.push_back(make_reward(name, config.reward, &ops));
    buffer_.uses = config.uses();  // nothing sampled yet
}

void Grpo::restore(const TrainerState& state, RolloutBuffer buffer) {
    learner_.restore(state.step, state.tokens);
    order_.restore(state.loader);
    buffer_ = std::move(buffer);
}

RolloutOptions Grpo::rollout_options() const {
    RolloutOptions options;
    options.sampling.temperature = config_.temperature;
    options.sampling.top_p = config_.top_p;
    options.sampling.top_k = config_.top_k;
    options.sampling.min_p = config_.min_p;
    options.sampling.seed = config_.train.job.seed;
    options.max_new_tokens = config_.max_completion_length;
    options.stop_ids.assign(tokenizer_.stop_ids().begin(), tokenizer_.stop_ids().end());
    options.record_routes = true;
    options.keep_mask = config_.keep_sampling_mask;
    options.max_sequences = config_.max_sequences;
    options.max_batch_rows = config_.max_batch_rows;
    options.cache_type = config_.train.training.dtype;
    options.deterministic = deterministic_;
    options.vocab_limit = tokenizer_.vocab_size();
    return options;
}

std::string Grpo::completion_text(const Rollout& rollout) const {
    const auto completion = std::span(rollout.tokens).subspan(static_cast<size_t>(rollout.prompt_length));
    const std::span<const int32_t> stops = tokenizer_.stop_ids();
    const bool stopped = !completion.empty() && std::ranges::find(stops, completion.back()) != stops.end();
    return replace_invalid_utf8(tokenizer_.decode(completion.first(completion.size() - (stopped ? 1 : 0))));
}

std::vector<Rollout> Grpo::sample_groups(int64_t groups) {
    std::vector<RolloutRequest> requests;
    for (int64_t g = 0; g < groups; ++g) {
        const int64_t prompt = order_.next();
        for (int64_t i = 0; i < config_.num_generations; ++i)
            requests.push_back({prompt, prompts_[static_cast<size_t>(prompt)].tokens, buffer_.streams++});
    }
    if (!sampler_)
        sampler_ = std::make_unique<RolloutSampler>(learner_.model(), ops_, rollout_options(), config_.max_prompt_length);
    return sampler_->sample(requests);
}

void Grpo::judge(std::vector<Rollout>& rollouts, std::span<const Prompt> prompts, StepMetrics* metrics) {
    std::vector<RewardInput> inputs;
    for (Rollout& rollout : rollouts) {
        rollout.rewards.clear();
        rollout.reward = 0;
        inputs.push_back({&prompts[static_cast<size_t>(rollout.prompt)].record, completion_text(rollout),
                          rollout.completion_length(), rollout.truncated});
    }
    for (size_t r = 0; r < rewards_.size(); ++r) {
        const double weight = config_.reward_weights.empty() ? 1 : config_.reward_weights[r];
        std::vector<std::string> problems;
        const std::vector<double> values = rewards_[r]->score(inputs, problems);
        check(values.size() == rollouts.size(), "Reward::score: one number per answer");
        for (size_t i = 0; i < rollouts.size(); ++i) {
            rollouts[i].rewards.push_back(values[i]);
            rollouts[i].reward += weight * values[i];
        }
        for (std::string& problem : problems) problems_.push_back(std::move(problem));
        if (metrics == nullptr) continue;
        const auto [mean, std] = mean_and_std(values);
        metrics->more.emplace_back(fmt::format("rewards/{}/mean", rewards_[r]->name()), mean);
        metrics->more.emplace_back(fmt::format("rewards/{}/std", rewards_[r]->name()), std);
    }
}

void Grpo::assign_advantages() {
    std::vector<double> rewards;
    for (const Rollout& rollout : buffer_.rollouts) rewards.push_back(rollout.reward);
    if (config_.shuffle_rewards) {
        Rng rng(config_.train.job.seed ^ 0x5u, buffer_.streams);
        shuffle(rewards, rng);
    }
    const std::vector<double> advantages = group_advantages(rewards, config_.num_generations, config_.scale_rewards);
    for (size_t i = 0; i < advantages.size(); ++i) buffer_.rollouts[i].advantage = advantages[i];
}

void Grpo::generate(StepMetrics& metrics) {
    double sampling = 0, judging = 0;
    std::vector<Rollout> chosen;
    const auto size = static_cast<size_t>(config_.num_generations);
    int64_t resampled = 0;
    for (int64_t round = 0; std::ssize(chosen) < config_.rollouts(); ++round) {
        auto start = Clock::now();
        std::vector<Rollout> fresh = sample_groups((config_.rollouts() - std::ssize(chosen)) / config_.num_generations);
        sampling += seconds_since(start);
        start = Clock::now();
        judge(fresh, prompts_, round == 0 ? &metrics : nullptr);
        judging += seconds_since(start);
        const bool any = !config_.dynamic_sampling || round == config_.max_resamples;
        for (size_t begin = 0; begin < fresh.size(); begin += size) {
            const auto group = std::span(fresh).subspan(begin, size);
            const bool equal = std::ranges::all_of(group, [&](const Rollout& r) { return r.reward == group[0].reward; });
            if (equal && !any) {
                ++resampled;
                continue;
            }
            std::ranges::move(group, std::back_inserter(chosen));
        }
    }
    buffer_.rollouts = std::move(chosen);
    buffer_.sampled_at = learner_.step();
    buffer_.uses = 0;
    assign_advantages();
    if (config_.dynamic_sampling) metrics.more.emplace_back("resampled_groups", static_cast<double>(resampled));
    describe_generation(metrics, sampling, judging);
}

void Grpo::describe_generation(StepMetrics& metrics, double sampling_seconds, double judging_seconds) const {
    const auto count = static_cast<double>(buffer_.rollouts.size());
    const auto groups = count / static_cast<double>(config_.num_generations);
    double tokens = 0, shortest = 1e18, longest = 0, cut = 0, empty = 0, failed = 0, silent = 0, group_std = 0, wasted = 0;
    std::vector<double> rewards, group;
    for (const Rollout& rollout : buffer_.rollouts) {
        const auto length = static_cast<double>(rollout.completion_length());
        tokens += length;
        shortest = std::min(shortest, length);
        longest = std::max(longest, length);
        cut += rollout.truncated ? 1 : 0;
        empty += completion_text(rollout).empty() ? 1 : 0;
        failed += std::isnan(rollout.reward) ? 1 : 0;
        wasted += rollout.advantage == 0 ? length : 0;
        rewards.push_back(rollout.reward);
        group.push_back(rollout.reward);
        if (std::ssize(group) < config_.num_generations) continue;
        const double std = mean_and_std(group).second;
        group_std += std / groups;
        silent += std == 0 ? 1 : 0;
        group.clear();
    }
    const auto add = [&](const char* name, double value) { metrics.more.emplace_back(name, value); };
    add("reward", mean_and_std(rewards).first);
    add("reward_std", group_std);
    add("frac_reward_zero_std", silent / groups);
    add("rewards/failed", failed);
    add("completions/mean_length", tokens / count);
    add("completions/min_length", shortest);
    add("completions/max_length", longest);
    add("completions/clipped_ratio", cut / count);
    add("completions/empty", empty);
    add("zero_advantage_tokens", wasted);
    add("rollouts_per_second", count / std::max(sampling_seconds, 1e-9));
    add("generated_tokens_per_second", tokens / std::max(sampling_seconds, 1e-9));
    add("time/rollout", sampling_seconds);
    add("time/score", judging_seconds);
}

bool Grpo::teaches(const Rollout& rollout) const {
    if (std::isnan(rollout.reward) || rollout.completion_length() == 0) return false;
    return !(config_.mask_truncated_completions && rollout.truncated);
}

// Cuts into batches of at most rows_per_batch * sequence_length tokens. Answers without advantage are left out where they would
// move nothing.
std::vector<std::vector<const Rollout*>> Grpo::batches_of(Group rollouts) const {
    const bool all = config_.loss.beta > 0 || !config_.train.balance.losses.empty();
    std::vector<const Rollout*> chosen;
    std::vector<int64_t> lengths;
    for (const Rollout* rollout : rollouts) {
        if (!teaches(*rollout) || (rollout->advantage == 0 && !all)) continue;
        chosen.push_back(rollout);
        lengths.push_back(std::ssize(rollout->tokens) - 1);
    }
    std::vector<std::vector<const Rollout*>> batches;
    for (const auto& [begin, end] : within_token_budget(lengths, config_.train.batch_tokens()))
        batches.emplace_back(chosen.begin() + static_cast<ptrdiff_t>(begin), chosen.begin() + static_cast<ptrdiff_t>(end));
    return batches;
}

std::vector<float> Grpo::reference_logprobs(const TokenBatch& tokens, const std::vector<int32_t>& rows,
                                            const std::vector<int32_t>& targets, const std::vector<int32_t>& allowed) {
    if (config_.loss.beta == 0) return {};
    std::vector<float> values;
    learner_.forward_model(*reference_, tokens, [&](Context& cx, const Tensor& hidden) {
        const Tensor chosen = cx.empty({std::ssize(rows), hidden.dim(1)}), logprob = cx.empty_precise({std::ssize(rows)});
        ops_.gather_rows(chosen, hidden, cx.ints(rows));
        reference_->head().logprob(cx, logprob, {}, chosen, cx.ints(targets), words_on_device(cx, allowed, rows.size()),
                                   config_.temperature);
        values = learner_.to_host(logprob);
    });
    return values;
}

// Forward, loss and backward of one batch.
void Grpo::train_on(Group rollouts, const PolicyNormalizer& over, Totals& totals) {
    const TokenBatch tokens = pack_rollouts(rollouts);
    const std::vector<int32_t> rows = rows_with_targets(tokens);
    std::vector<int32_t> targets, allowed;
    for (const int32_t row : rows) targets.push_back(tokens.targets[static_cast<size_t>(row)]);
    for (const Rollout* rollout : rollouts) allowed.insert(allowed.end(), rollout->allowed.begin(), rollout->allowed.end());
    const std::vector<float> reference = reference_logprobs(tokens, rows, targets, allowed);

    const auto policy = [&](Context& cx, const Tensor& hidden, const Tensor& dhidden, DeepSeek::Saved&) {
        const Head head = learner_.model().head();
        const int64_t m = std::ssize(rows), d = hidden.dim(1);
        const Tensor at = cx.ints(rows, true), target = cx.ints(targets, true);
        const Tensor words = words_on_device(cx, allowed, rows.size());
        const Tensor chosen = cx.empty({m, d}, true), dchosen = cx.empty({m, d}, true);
        const Tensor logprob = cx.empty_precise({m}, true), entropy = cx.empty_precise({m}, true),
                     dlogprob = cx.empty_precise({m}, true);
        ops_.gather_rows(chosen, hidden, at);
        head.logprob(cx, logprob, entropy, chosen, target, words, config_.temperature);
        const std::vector<float> now = learner_.to_host(logprob);
        for (const float value : learner_.to_host(entropy)) totals.entropy += static_cast<double>(value);
        std::vector<float> gradient;
        size_t begin = 0;
        for (const Rollout* rollout : rollouts) {
            const size_t n = rollout->logprobs.size();
            std::vector<double> dlog(n);
            const auto part = [&](const std::vector<float>& of) { return std::span(of).subspan(begin, n); };
            totals.sums.add(policy_loss(dlog,
                                        {part(now), rollout->logprobs,
                                         reference.empty() ? std::span<const float>() : part(reference), rollout->advantage},
                                        config_.loss, over));
            gradient.insert(gradient.end(), dlog.begin(), dlog.end());
            for (size_t t = 0; totals.on_policy && t < n; ++t) {
                const double difference =
                    std::abs(static_cast<double>(now[begin + t]) - static_cast<double>(rollout->logprobs[t]));
                totals.difference += difference;
                totals.largest_difference = std::max(totals.largest_difference, difference);
                ++totals.compared;
            }
            begin += n;
        }
        ops_.write(dlogprob, gradient.data());
        head.logprob_backward(cx, dchosen, chosen, target, words, dlogprob, config_.temperature);
        ops_.fill(dhidden, 0);
        ops_.scatter_rows(dhidden, dchosen, at);
    };
    ExpertChoices used, replay;
    if (config_.keep_routing) replay = pack_routes(rollouts);
    learner_.accumulate(tokens, policy, {config_.keep_routing ? &replay : nullptr, totals.on_policy ? &used : nullptr});
    if (totals.on_policy) totals.routing_differences += count_route_differences(rollouts, used);
    totals.consumed += std::ssize(tokens.tokens);
}

StepMetrics Grpo::step() {
    StepMetrics generation;
    const auto begin = Clock::now();
    if (buffer_.uses >= config_.uses()) {
        const BatchSource::State place = order_.state();
        const uint64_t streams = buffer_.streams;
        try {
            generate(generation);
        } catch (...) {  // Ctrl-C: what is saved now must sample the same questions again
            order_.restore(place);
            buffer_.streams = streams;
            throw;
        }
    }
    const auto start = Clock::now();
    const size_t size = buffer_.rollouts.size() / static_cast<size_t>(config_.steps_per_generation);
    const size_t first = static_cast<size_t>(buffer_.uses % config_.steps_per_generation) * size;
    std::vector<const Rollout*> part;
    PolicyNormalizer over;
    for (size_t i = first; i < first + size; ++i) {
        part.push_back(&buffer_.rollouts[i]);
        if (!teaches(*part.back())) continue;
        ++over.answers;
        over.tokens += part.back()->completion_length();
    }
    Totals totals;
    totals.on_policy = buffer_.sampled_at == learner_.step();
    for (const auto& batch : batches_of(part)) train_on(batch, over, totals);
    StepMetrics metrics = learner_.update(totals.consumed);
    ++buffer_.uses;

    const auto tokens = static_cast<double>(std::max<int64_t>(totals.sums.tokens, 1));
    metrics.loss = totals.sums.loss;
    metrics.tokens_per_second = static_cast<double>(totals.consumed) / seconds_since(begin);
    metrics.more = std::move(generation.more);
    const auto add = [&](const char* name, double value) { metrics.more.emplace_back(name, value); };
    add("entropy", totals.entropy / tokens);
    if (config_.loss.beta > 0) add("kl", totals.sums.kl / tokens);
    add("ratio", totals.sums.tokens > 0 ? totals.sums.ratio / tokens : 1);
    add("clip_ratio/low_mean", static_cast<double>(totals.sums.clipped_low) / tokens);
    add("clip_ratio/high_mean", static_cast<double>(totals.sums.clipped_high) / tokens);
    add("clip_ratio/region_mean", static_cast<double>(totals.sums.clipped_low + totals.sums.clipped_high) / tokens);
    add("off_policy_masked", static_cast<double>(totals.sums.masked_answers));
    if (totals.on_policy) {
        add("logp_diff_max", totals.largest_difference);
        add("logp_diff_mean", totals.difference / static_cast<double>(std::max<int64_t>(totals.compared, 1)));
        add("routing_differences", static_cast<double>(totals.routing_differences));
        add("tokens_compared", static_cast<double>(totals.compared));
    }
    add("time/train", seconds_since(start));
    return metrics;
}

std::vector<std::pair<std::string, double>> Grpo::evaluate(std::span<const Prompt> prompts) {
    std::vector<RolloutRequest> requests;
    for (size_t i = 0; i < prompts.size(); ++i) requests.push_back({static_cast<int64_t>(i), prompts[i].tokens, 0});
    if (!greedy_) {
        RolloutOptions options = rollout_options();
        options.sampling.top_k = 1;
        options.record_routes = options.keep_mask = false;
        greedy_ = std::make_unique<RolloutSampler>(learner_.model(), ops_, options, config_.max_prompt_length);
    }
    std::vector<Rollout> answers = greedy_->sample(requests);
    judge(answers, prompts, nullptr);
    std::vector<double> rewards;
    double full = 0;
    for (const Rollout& answer : answers) {
        rewards.push_back(answer.reward);
        full += answer.rewards[0] >= 1 ? 1 : 0;
    }
    return {{"eval/reward", mean_and_std(rewards).first},
            {"eval/pass@1", full / static_cast<double>(std::max<size_t>(answers.size(), 1))}};
}

}  // namespace fathom
