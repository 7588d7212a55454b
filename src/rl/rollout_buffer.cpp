#include "rl/rollout_buffer.h"

#include <fmt/format.h>
#include <algorithm>
#include <cstring>
#include <utility>

#include "base/file.h"
#include "io/safetensors.h"
#include "io/token_shards.h"

namespace fathom {
namespace {

constexpr const char* kFile = "rollouts.safetensors";

// Per answer, in this order: prompt, prompt_length, tokens, truncated, words of masks, routed layers, rewards.
constexpr int64_t kFields = 7;

// Lists of all answers, one behind the other.
struct Flat {
    std::vector<int64_t> fields, state, route_lengths;
    std::vector<int32_t> tokens, allowed, routes;
    std::vector<float> logprobs;
    std::vector<double> rewards;  // of every function, then the sum and the advantage

    template <class F>
    void for_each(F&& visit) {
        visit("fields", fields);
        visit("state", state);
        visit("route_lengths", route_lengths);
        visit("tokens", tokens);
        visit("allowed", allowed);
        visit("routes", routes);
        visit("logprobs", logprobs);
        visit("rewards", rewards);
    }
    [[nodiscard]] uint64_t checksum() {
        uint64_t hash = 0;
        for_each([&](const char*, const auto& list) { hash = hash * 31 + hash_bytes(std::as_bytes(std::span(list))); });
        return hash;
    }
};

template <class T>
DType type_of() {
    if constexpr (std::is_same_v<T, int64_t>) return DType::kI64;
    if constexpr (std::is_same_v<T, int32_t>) return DType::kI32;
    if constexpr (std::is_same_v<T, double>) return DType::kF64;
    return DType::kF32;
}

template <class T>
void append(std::vector<T>& to, const std::vector<T>& from) {
    to.insert(to.end(), from.begin(), from.end());
}

// Takes `count` values off a list.
template <class T>
class Reader {
public:
    explicit Reader(const std::vector<T>& list) : list_(list) {}
    std::vector<T> take(int64_t count) {
        if (count < 0 || count > std::ssize(list_) - at_) throw Error(ErrorKind::kInput, "lists of another length");
        const auto begin = list_.begin() + at_;
        at_ += count;
        return {begin, begin + count};
    }

private:
    const std::vector<T>& list_;
    int64_t at_ = 0;
};

Rollout read_rollout(Reader<int64_t>& fields, Reader<int64_t>& route_lengths, Reader<int32_t>& tokens, Reader<int32_t>& allowed,
                     Reader<int32_t>& routes, Reader<float>& logprobs, Reader<double>& rewards, int64_t prompts) {
    const std::vector<int64_t> f = fields.take(kFields);
    Rollout rollout;
    rollout.prompt = f[0];
    rollout.prompt_length = f[1];
    rollout.tokens = tokens.take(f[2]);
    rollout.truncated = f[3] != 0;
    rollout.allowed = allowed.take(f[4]);
    if (f[0] < 0 || f[0] >= prompts) throw Error(ErrorKind::kInput, fmt::format("answers prompt {} of {}", f[0], prompts));
    if (f[1] < 1 || f[1] > f[2]) throw Error(ErrorKind::kInput, "an answer without a prompt");
    for (const int64_t length : route_lengths.take(f[5])) rollout.routes.push_back(routes.take(length));
    rollout.logprobs = logprobs.take(f[2] - f[1]);
    rollout.rewards = rewards.take(f[6]);
    const std::vector<double> last = rewards.take(2);
    rollout.reward = last[0];
    rollout.advantage = last[1];
    return rollout;
}

}  // namespace

void save_rollouts(const std::filesystem::path& folder, const RolloutBuffer& buffer) {
    Flat flat;
    flat.state = {buffer.sampled_at, buffer.uses, static_cast<int64_t>(buffer.streams), std::ssize(buffer.rollouts)};
    for (const Rollout& r : buffer.rollouts) {
        append(flat.fields, {r.prompt, r.prompt_length, std::ssize(r.tokens), r.truncated ? 1 : 0, std::ssize(r.allowed),
                             std::ssize(r.routes), std::ssize(r.rewards)});
        append(flat.tokens, r.tokens);
        append(flat.allowed, r.allowed);
        append(flat.logprobs, r.logprobs);
        append(flat.rewards, r.rewards);
        append(flat.rewards, {r.reward, r.advantage});
        for (const std::vector<int32_t>& experts : r.routes) {
            flat.route_lengths.push_back(std::ssize(experts));
            append(flat.routes, experts);
        }
    }
    const std::string sum = fmt::format("{:016x}", flat.checksum());
    std::vector<NamedTensor> tensors;
    flat.for_each([&]<class T>(const char* name, std::vector<T>& list) {
        tensors.push_back({name, Tensor(list.data(), type_of<T>(), {std::ssize(list)})});
    });
    write_safetensors(folder / kFile, tensors, {{"xxh3", sum}});
}

RolloutBuffer load_rollouts(const std::filesystem::path& folder, int64_t prompts) {
    const std::filesystem::path path = folder / kFile;
    try {
        const SafetensorsFile file(path);
        Flat flat;
        flat.for_each([&]<class T>(const char* name, std::vector<T>& list) {
            const auto found = file.find(name);
            if (!found || found->dtype != type_of<T>() || found->rank != 1)
                throw Error(ErrorKind::kInput, fmt::format("{} is missing", name));
            list.resize(static_cast<size_t>(found->size()));
            if (!list.empty()) std::memcpy(list.data(), found->data, static_cast<size_t>(found->bytes()));
        });
        const auto& metadata = file.metadata();
        const auto sum = std::ranges::find_if(metadata, [](const auto& entry) { return entry.first == "xxh3"; });
        if (sum == metadata.end() || sum->second != fmt::format("{:016x}", flat.checksum()) || flat.state.size() != 4)
            throw Error(ErrorKind::kInput, "its checksum does not fit its content");
        RolloutBuffer buffer{{}, flat.state[0], flat.state[1], static_cast<uint64_t>(flat.state[2])};
        Reader fields(flat.fields), route_lengths(flat.route_lengths);
        Reader tokens(flat.tokens), allowed(flat.allowed), routes(flat.routes);
        Reader logprobs(flat.logprobs);
        Reader rewards(flat.rewards);
        for (int64_t i = 0; i < flat.state[3]; ++i)
            buffer.rollouts.push_back(read_rollout(fields, route_lengths, tokens, allowed, routes, logprobs, rewards, prompts));
        return buffer;
    } catch (const Error& error) {
        throw Error(ErrorKind::kInput,
                    fmt::format("{}: the rollout buffer cannot be used: {}; resume from an earlier checkpoint", path.string(),
                                error.what()));
    }
}

}  // namespace fathom
