// fathom chat: talk to a model, line by line.
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "app/chat_session.h"
#include "app/help.h"
#include "app/verb.h"
#include "base/error.h"
#include "base/interrupt.h"

namespace fathom {
namespace {

constexpr const char* kCommands =
    "  /set NAME VALUE   temperature, top_p, top_k, min_p, repetition_penalty,\n"
    "                    frequency_penalty, presence_penalty, seed,\n"
    "                    max_new_tokens, think on|off\n"
    "  /show             these values, and how much of the context is used\n"
    "  /system TEXT      what the model is told before you speak; empty: nothing\n"
    "  /clear            forget the conversation\n"
    "  /help             this text\n"
    "  /bye              leave (also Ctrl-D)\n"
    "\n"
    "  \"\"\"               begins and ends a message of several lines\n"
    "  Ctrl-C            ends a reply early";

std::string_view trim(std::string_view text) {
    const size_t begin = std::min(text.find_first_not_of(" \t\r"), text.size());
    return text.substr(begin, text.find_last_not_of(" \t\r") + 1 - begin);
}

// The read-eval-print loop. On a terminal it prompts; from a pipe every line is a turn.
class Repl {
public:
    Repl(const ChatOptions& options, const Globals& globals)
        : quiet_(globals.quiet),
          terminal_(::isatty(STDIN_FILENO) != 0 && ::isatty(STDOUT_FILENO) != 0),
          dim_(::isatty(STDERR_FILENO) != 0),
          session_(options, globals) {}

    void run() {
        if (terminal_) greet();
        while (const std::optional<std::string> message = read_message()) {
            const std::string_view text = trim(*message);
            if (text.starts_with('/') && text.find('\n') == text.npos) {
                if (!command(text)) return;
            } else if (!text.empty() || (session_.raw() && terminal_)) {
                reply(*message);
            }
            if (interrupted()) return;
        }
        if (terminal_) fmt::print("\n");
    }

private:
    bool quiet_, terminal_, dim_;
    ChatSession session_;
    int64_t dropped_ = 0;

    void greet() const {
        if (session_.raw()) {
            fmt::print("This model continues texts: type the beginning of one. An empty line goes on. /help explains more.\n");
        } else {
            fmt::print("Type a message, or /help.\n");
        }
    }

    void note(const std::string& text) const {
        std::fflush(stdout);
        fmt::print(stderr, "{}{}{}\n", dim_ ? "\x1b[2m" : "", text, dim_ ? "\x1b[0m" : "");
    }

    // A line without its end; nothing at the end of the input.
    [[nodiscard]] std::optional<std::string> read_line(const char* prompt) const {
        if (terminal_) {
            fmt::print("{}", prompt);
            std::fflush(stdout);
            // poll returns at Ctrl-C, where getline would go on waiting.
            pollfd input{STDIN_FILENO, POLLIN, 0};
            while (::poll(&input, 1, -1) < 0) {
                if (!take_interrupt()) return std::nullopt;
                fmt::print("\n(/bye or Ctrl-D leaves)\n{}", prompt);
                std::fflush(stdout);
            }
        }
        std::string line;
        if (!std::getline(std::cin, line)) return std::nullopt;
        return line;
    }

    // One line, or everything between two """.
    [[nodiscard]] std::optional<std::string> read_message() const {
        constexpr std::string_view kFence = "\"\"\"";
        std::optional<std::string> line = read_line(">>> ");
        if (!line || !trim(*line).starts_with(kFence)) return line;
        std::string message(trim(*line).substr(kFence.size()));
        while (!message.ends_with(kFence)) {
            line = read_line("... ");
            if (!line) return std::nullopt;
            message += "\n" + *line;
            message.erase(message.find_last_not_of(" \t\r") + 1);
        }
        message.resize(message.size() - kFence.size());
        message.erase(0, message.find_first_not_of('\n'));
        return message;
    }

    void reply(const std::string& text) {
        try {
            session_.reply(text, [](const std::string& piece) {
                fmt::print("{}", piece);
                std::fflush(stdout);
            });
        } catch (const Error& error) {
            if (!terminal_ || error.kind() != ErrorKind::kInput) throw;
            return note(error.what());
        }
        fmt::print("\n");
        if (terminal_) fmt::print("\n");
        if (session_.dropped_turns() > dropped_) note("The oldest turns no longer fit into the context and were forgotten.");
        dropped_ = session_.dropped_turns();
        if (!quiet_ && !session_.last_speed().empty()) note("[" + session_.last_speed() + "]");
        std::fflush(stdout);
    }

    // False when the user leaves.
    bool command(std::string_view line) {
        const size_t blank = std::min(line.find_first_of(" \t"), line.size());
        const std::string name(line.substr(0, blank)), rest(trim(line.substr(blank)));
        if (name == "/bye" || name == "/exit" || name == "/quit") return false;
        if (name == "/help" || name == "/?") {
            fmt::print("{}\n", kCommands);
        } else if (name == "/clear") {
            session_.clear();
            note("The conversation is forgotten.");
        } else if (name == "/system") {
            session_.set_system(rest);
            note(rest.empty() ? "No system text." : "The system text is set.");
        } else if (name == "/show") {
            for (const auto& [key, value] : session_.facts()) fmt::print("{:<20}{}\n", key, value);
        } else if (name == "/set") {
            set(rest);
        } else {
            const auto meant = nearest(name, {"/set", "/show", "/system", "/clear", "/help", "/bye"});
            note(fmt::format("There is no {}{}; /help lists what there is.", name,
                             meant ? ", did you mean " + *meant + "?" : ""));
        }
        return true;
    }

    void set(const std::string& assignment) {
        const size_t blank = std::min(assignment.find_first_of(" \t="), assignment.size());
        const std::string name = assignment.substr(0, blank);
        const std::string value(trim(std::string_view(assignment).substr(std::min(blank + 1, assignment.size()))));
        if (name == "think" && session_.thinks() && (value == "on" || value == "off")) {
            session_.thinking = value == "on";
            return;
        }
        if (name == "system") return session_.set_system(value);
        SamplingParams params = session_.sampling;
        int64_t max_new_tokens = session_.max_new_tokens;
        if (!assign(name, value, params, max_new_tokens)) {
            return note(fmt::format("/set {}: expected a name and a value as in /set temperature 0.7; /help lists the names.",
                                    assignment));
        }
        try {
            params.validate();
        } catch (const Error& error) {
            return note(error.what());
        }
        session_.sampling = params;
        session_.max_new_tokens = max_new_tokens;
    }

    // False when there is no such name, or `text` is not a number of its kind.
    static bool assign(const std::string& name, const std::string& text, SamplingParams& params, int64_t& max_new_tokens) {
        const auto read = [&](auto& value) {
            auto parsed = value;
            const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), parsed);
            if (failure != std::errc() || end != text.data() + text.size()) return false;
            value = parsed;
            return true;
        };
        if (name == "temperature") return read(params.temperature);
        if (name == "top_p") return read(params.top_p);
        if (name == "top_k") return read(params.top_k);
        if (name == "min_p") return read(params.min_p);
        if (name == "repetition_penalty") return read(params.repetition_penalty);
        if (name == "frequency_penalty") return read(params.frequency_penalty);
        if (name == "presence_penalty") return read(params.presence_penalty);
        if (name == "seed") return read(params.seed);
        return name == "max_new_tokens" && read(max_new_tokens) && max_new_tokens > 0;
    }
};

}  // namespace

void add_chat(CLI::App& app, Globals& globals) {
    CLI::App* verb = app.add_subcommand("chat", "talk to a model; one without chat tuning continues your text");
    verb->footer(
        "Examples:\n"
        "  fathom chat models/stories\n"
        "  fathom chat MODEL --system \"Answer in one sentence.\" --temperature 0.6\n"
        "  echo \"Why is the sky blue?\" | fathom chat MODEL --quiet");
    auto options = std::make_shared<ChatOptions>();
    options->model.declare(*verb);
    verb->add_option("--system", options->system, "what the model is told before you speak")->type_name("TEXT");
    const auto count = [&](const char* name, int64_t& value, const char* text) {
        verb->add_option(name, value, text)->type_name("N")->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
    };
    count("-n,--max-new-tokens", options->max_new_tokens, "longest reply");
    count("--context", options->context, "tokens of conversation to remember, at most what the model reads");
    verb->add_option("--stop", options->stop, "end a reply where it holds this text; may be repeated")
        ->type_name("TEXT")
        ->allow_extra_args(false);
    verb->add_flag("--raw", options->raw, "continue what is typed, as models without a chat template do anyway");
    options->sampling.declare(*verb);
    options->model.speculation.declare(*verb);
    options->model.declare_memory(*verb);
    verb->callback([options, &globals] {
        if (globals.json) throw Error(ErrorKind::kUsage, "chat has no JSON form: use fathom generate --json");
        Repl(*options, globals).run();
    });
}

}  // namespace fathom
