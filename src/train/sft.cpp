#include "train/sft.h"

#include <fmt/format.h>
#include <array>

#include "io/chat_examples.h"
#include "train/run_folder.h"

namespace fathom {
namespace {

SectionReaders readers(SftConfig& config) {
    return {{"sft", [&config](TomlSection& section, const std::filesystem::path&) {
                 section.text("chat_format", config.chat_format);
                 section.boolean("assistant_only_loss", config.assistant_only_loss);
                 section.boolean("drop_overlong", config.drop_overlong);
             }}};
}

std::unique_ptr<BatchSource> open_chats(const SftConfig& config, const Tokenizer& tokenizer, const ChatFormat& format,
                                        ThreadPool& threads, const std::string& name,
                                        const std::vector<std::filesystem::path>& inputs, bool training) {
    const TrainConfig& train = config.train;
    ChatExamples read = read_chat_examples(inputs, format, tokenizer,
                                           {.max_length = train.data.sequence_length,
                                            .drop_overlong = config.drop_overlong,
                                            .learn_prompts = !config.assistant_only_loss},
                                           threads);
    if (read.examples.empty()) {
        throw Error(ErrorKind::kInput, fmt::format("data.{}: none of {} conversations is left to learn from; a larger "
                                                   "data.sequence_length cuts fewer",
                                                   name, read.conversations));
    }
    if (read.cut + read.dropped > 0) {
        fmt::print(stderr, "data.{}: of {} conversations {} were cut to {} tokens and {} left out\n", name, read.conversations,
                   read.cut, train.data.sequence_length, read.dropped);
    }
    return std::make_unique<ChatLoader>(std::move(read.examples),
                                        ChatLoaderOptions{train.batch_tokens(), train.job.seed, training});
}

}  // namespace

ChatFormat chat_format_named(const std::string& name, const Tokenizer& tokenizer, const TrainConfig& config) {
    constexpr std::array<std::pair<std::string_view, ChatStyle>, 4> kStyles{
        {{"v2", ChatStyle::kV2}, {"v3", ChatStyle::kV3}, {"r1", ChatStyle::kR1}, {"v31", ChatStyle::kV31}}};
    const auto text_of = [&](std::optional<int32_t> id) {
        return id ? std::string(tokenizer.token_bytes(*id)) : std::string();
    };
    for (const auto& [spelling, style] : kStyles) {
        if (name == spelling) return ChatFormat(style, text_of(tokenizer.bos_id()), text_of(tokenizer.eos_id()));
    }
    if (name == "auto")
        return ChatFormat::choose(tokenizer, config.model.config.model_type, config.model.init_from.filename().string());
    throw Error(ErrorKind::kInput, fmt::format("chat_format: \"{}\" is not one of auto, v2, v3, r1, v31", name));
}

SftConfig SftConfig::parse(std::string_view toml, std::span<const std::string> overrides, const std::filesystem::path& base) {
    SftConfig config;
    config.train = TrainConfig::parse(toml, overrides, base, readers(config));
    return config;
}

SftConfig SftConfig::load(const std::filesystem::path& file, std::span<const std::string> overrides) {
    SftConfig config;
    config.train = TrainConfig::load(file, overrides, readers(config));
    return config;
}

RunSummary run_sft(const SftConfig& config, Ops& ops, ThreadPool& threads, const RunOptions& options) {
    const Tokenizer tokenizer = open_tokenizer(config.train);
    const ChatFormat format = chat_format_named(config.chat_format, tokenizer, config.train);
    return run_training(config.train, ops, options,
                        [&](const std::string& name, const std::vector<std::filesystem::path>& inputs, bool training) {
                            return open_chats(config, tokenizer, format, threads, name, inputs, training);
                        });
}

}  // namespace fathom
