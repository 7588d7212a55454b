// The fathom binary: declares the verbs, parses the command line, and turns whatever goes wrong into one sentence and an exit
// code: 0 done, 1 bad input, file or memory, 2 bad usage or device, 130 interrupted.
#include <fmt/format.h>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <memory>
#include <new>
#include <nlohmann/json.hpp>
#include <string>

#include "app/device.h"
#include "app/help.h"
#include "app/verb.h"
#include "base/error.h"
#include "base/interrupt.h"

namespace fathom {
namespace {

struct Verb {
    const char* group;  // title in --help
    void (*add)(CLI::App&, Globals&);
};

// In the order of --help, one line per verb.
// clang-format off
constexpr Verb kVerbs[] = {
    {"Use", add_chat},
    {"Use", add_generate},
    {"Use", add_serve},
    {"Use", add_batch},
    {"Data", add_tokenize},
    {"Data", add_data},
    {"Data", add_tokenizer},
    {"Train", add_train},
    {"Train", add_sft},
    {"Train", add_reward},
    {"Train", add_grpo},
    {"Train", add_distill},
    {"Train", add_rejection_sample},
    {"Look", add_compare_samples},
    {"Data", add_convert},
    {"Data", add_quantize},
    {"Look", add_inspect},
    {"Look", add_plan},
    {"Look", add_eval},
    {"Look", add_bench},
    {"Look", add_dump},
    {"Look", add_plot},
    {"Look", add_doctor},
    {"Look", add_completion},
};
// clang-format on

constexpr const char* kExamples =
    "Examples:\n"
    "  fathom chat models/stories                    talk to the bundled model\n"
    "  fathom generate MODEL --prompt \"Once upon\"    continue a text\n"
    "  fathom train config.toml                      train a model\n"
    "  fathom plot runs/first                        draw its curves\n"
    "  fathom doctor                                 what this machine can do";

void add_globals(CLI::App& app, Globals& globals) {
    app.add_option("--threads", globals.threads, "threads to compute with; 0 = one per available core")
        ->type_name("N")
        ->check(CLI::Range(0, 4096));
    app.add_option("--device", globals.device, "where to compute: auto, cpu or cuda[:n]")->type_name("DEVICE");
    app.add_option(
           "--compute", globals.compute,
           "type of activations on a GPU; sums are f32 in either, the CPU has f32 only; fp8: bf16, products of layers in FP8")
        ->type_name("TYPE")
        ->check(CLI::IsMember({"f32", "bf16", "fp8"}));
    app.add_flag("--json", globals.json, "print results as JSON on stdout, and nothing else there");
    app.add_flag("--quiet", globals.quiet, "no progress on stderr");
    app.add_flag("--deterministic", globals.deterministic,
                 "batch-invariant arithmetic: the same bytes whatever the batch, chunks, packing and threads");
}

void declare(CLI::App& app, Globals& globals) {
    app.name("fathom");
    app.formatter(std::make_shared<HelpFormatter>());
    app.option_defaults()->always_capture_default();
    app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);  // of an option given twice; lists keep all
    app.set_help_flag("-h,--help", "print this text and exit");
    app.fallthrough();             // options of every verb may stand before or after it
    app.require_subcommand(0, 1);  // a second verb is an argument of the first
    add_globals(app, globals);
    app.set_version_flag("--version", "fathom " FATHOM_VERSION, "print the version and exit");
    for (const Verb& verb : kVerbs) {
        verb.add(app, globals);
        app.get_subcommands({}).back()->group(verb.group);
    }
    app.footer(kExamples);  // after the verbs, which would inherit it
    app.parse_complete_callback([&] { check_device(globals); });
}

int exit_code(ErrorKind kind) {
    switch (kind) {
        case ErrorKind::kUsage:
        case ErrorKind::kDevice:
            return 2;
        case ErrorKind::kInterrupted:
            return 130;
        default:
            return 1;
    }
}

int report(const Globals& globals, int code, std::string message) {
    while (!message.empty() && message.back() == '\n') message.pop_back();
    if (globals.json) {
        const nlohmann::ordered_json object{{"error", {{"exit_code", code}, {"message", message}}}};
        fmt::print(stderr, "{}\n", object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
    } else {
        fmt::print(stderr, "fathom: {}{}\n", code == 130 ? "" : "error: ", message);
    }
    return code;
}

int parse_and_run(CLI::App& app, Globals& globals, int argc, char** argv) {
    try {
        app.parse(argc, argv);
    } catch (const CLI::Success& asked) {  // --help, --version
        return app.exit(asked);
    } catch (const CLI::ExtrasError&) {
        return report(globals, 2, describe_unknown(app));
    } catch (const CLI::ParseError& error) {
        // A mistyped option leaves its value behind as a stray argument: name the cause, not the consequence.
        const auto unknown = app.remaining(true);
        if (std::ranges::any_of(unknown, [](const std::string& a) { return a.starts_with("--"); })) {
            return report(globals, 2, describe_unknown(app));
        }
        const CLI::App* verb = &app;
        while (!verb->get_subcommands().empty()) verb = verb->get_subcommands().front();
        return report(globals, 2, fmt::format("{} (see {} --help)", error.what(), full_name(*verb)));
    }
    if (app.get_subcommands().empty()) {
        fmt::print(stderr, "{}", app.help());
        return 2;
    }
    if (std::fflush(stdout) != 0) throw Error(ErrorKind::kIo, "cannot write to standard output (is the disk full?)");
    return interrupted() ? 130 : 0;
}

int run(int argc, char** argv) {
    Globals globals;
    try {
        CLI::App app("fathom: one engine for the whole life of a DeepSeek-architecture language model.");
        declare(app, globals);
        install_interrupt_handler();
        return parse_and_run(app, globals, argc, argv);
    } catch (const Error& error) {
        return report(globals, exit_code(error.kind()), error.what());
    } catch (const LogicError& error) {
        return report(globals, 1, fmt::format("{}; this is a bug in fathom, please report it", error.what()));
    } catch (const std::filesystem::filesystem_error& error) {
        return report(globals, 1, error.what());
    } catch (const std::bad_alloc&) {
        return report(globals, 1, "out of memory: use a smaller batch, context or model (fathom plan shows what one needs)");
    } catch (const std::exception& error) {
        return report(globals, 1, fmt::format("{}; this is a bug in fathom, please report it", error.what()));
    }
}

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) { return fathom::run(argc, argv); }
