// What an answer is worth: built-in rules, and programs of the user's.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

namespace fathom {

class Ops;

// One answer to be judged.
struct RewardInput {
    const nlohmann::json* record = nullptr;  // the prompt's line: "answer", "nums" and "target", ...
    std::string completion;                  // without the end-of-sentence token
    int64_t tokens = 0;
    bool truncated = false;  // the answer was cut at its longest
};

class Reward {
public:
    virtual ~Reward() = default;
    [[nodiscard]] virtual std::string name() const = 0;
    // One number per answer; NaN for one that cannot be judged, with the reason in `problems`. Never throws for an answer.
    [[nodiscard]] virtual std::vector<double> score(std::span<const RewardInput> answers,
                                                    std::vector<std::string>& problems) = 0;
};

struct RewardOptions {
    int64_t max_completion_length = 0;
    int64_t soft_overlong_cache = 0;    // tokens over which `overlong` falls from 0 to -1 (DAPO 3.4)
    std::string language = "en";        // for `language`: en, zh
    std::vector<std::string> program;   // for `program`: command and arguments
    std::filesystem::path program_dir;  // its working folder is made below
    std::chrono::milliseconds timeout{10'000};
    std::filesystem::path model;  // for `model`: the folder of a reward model
    int64_t retries = 1;          // of a program that hung or crashed, before its answers count as not judged
};

// math        1 where the final answer is equivalent to the record's "answer" (rl/answer.h), else 0
// countdown   1 right, 0.1 a legal expression over the record's "nums" with another value than "target", else 0 (TinyZero)
// format      1 where the completion is <think>...</think> and an answer behind it, else 0
// length      1 - tokens / max_completion_length
// overlong    0, falling to -1 over the last soft_overlong_cache tokens
// language    share of the letters that are the target language's (R1 2.3.2)
// model       the score of a reward model (rl/reward_model.h)
// program     what a program says: for every answer it reads a line {"completion": ..., "record": {...}} and writes a line that
//             is a number or {"reward": number}
// Throws Error{kInput} for an unknown name, Error{kUsage} for a program or a model that is not given.
void check_reward(const std::string& name, const RewardOptions& options);
// The same, and Error{kInput} for a model that cannot be opened. `ops`: what it computes on; the others need none.
[[nodiscard]] std::unique_ptr<Reward> make_reward(const std::string& name, const RewardOptions& options, Ops* ops = nullptr);

// Runs a program over lines on its standard input, in an empty folder of its own below `folder`, without the network where the
// system allows that, in a session of its own that ends with it. Returns the lines it wrote, at most one per line of input.
// `problem` says what was wrong: it hung, crashed, wrote too little or too much.
struct ProgramResult {
    std::vector<std::string> lines;
    std::string problem;
};
// kOwnFolder: it may read everything, and write below its own folder only, where the kernel allows to forbid that (Landlock).
enum class ProgramWrites : uint8_t { kAnywhere, kOwnFolder };
[[nodiscard]] ProgramResult run_line_program(std::span<const std::string> command, std::span<const std::string> input,
                                             const std::filesystem::path& folder, std::chrono::milliseconds timeout,
                                             ProgramWrites writes = ProgramWrites::kAnywhere);

}  // namespace fathom
