// `fathom completion bash|zsh|fish`: a completion script, written by walking the tree of verbs and options.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "app/help.h"
#include "app/verb.h"

namespace fathom {
namespace {

// Words that may follow `app`: its actions, its options and those of its parents.
std::vector<std::string> words_after(const CLI::App& app) {
    std::vector<std::string> words;
    for (const CLI::App* verb : app.get_subcommands({})) words.push_back(verb->get_name());
    for (const CLI::App* a = &app; a != nullptr; a = a->get_parent()) {
        for (const CLI::Option* option : a->get_options()) {
            for (const std::string& name : option->get_lnames()) {
                if (std::ranges::find(words, "--" + name) == words.end()) words.push_back("--" + name);
            }
        }
    }
    return words;
}

void add_cases(std::string& cases, const CLI::App& app) {
    cases += fmt::format("        \"{}\") words=\"{}\" ;;\n", full_name(app), fmt::join(words_after(app), " "));
    for (const CLI::App* verb : app.get_subcommands({})) add_cases(cases, *verb);
}

// bash and, through bashcompinit, zsh: the longest known chain of verbs before the cursor decides which words are offered.
std::string bash_script(const CLI::App& root) {
    std::string names, cases;
    const auto collect = [&](const auto& self, const CLI::App& app) -> void {
        names += fmt::format("|\"{}\"", full_name(app));
        for (const CLI::App* verb : app.get_subcommands({})) self(self, *verb);
    };
    collect(collect, root);
    add_cases(cases, root);
    return fmt::format(R"(_fathom() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" chain="fathom" words="" i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$chain ${{COMP_WORDS[i]}}" in
        {}) chain="$chain ${{COMP_WORDS[i]}}" ;;
        esac
    done
    case "$chain" in
{}    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}}
complete -o default -F _fathom fathom
)",
                       names.substr(1), cases);
}

std::string zsh_script(const CLI::App& root) {
    std::string script = bash_script(root);
    const std::string bash_only = "mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$current\")";
    script.replace(script.find(bash_only), bash_only.size(), "COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))");
    return "autoload -U +X bashcompinit && bashcompinit\n" + script;
}

std::string fish_escaped(std::string text) {
    for (size_t at = 0; (at = text.find_first_of("\\'", at)) != text.npos; at += 2) text.insert(at, "\\");
    return text;
}

std::string fish_script(const CLI::App& root) {
    std::string script;
    const auto add = [&](const auto& self, const CLI::App& app) -> void {
        const bool top = app.get_parent() == nullptr;
        const std::string where = top ? "" : fmt::format(" -n '__fish_seen_subcommand_from {}'", app.get_name());
        for (const CLI::App* verb : app.get_subcommands({})) {
            script += fmt::format("complete -c fathom{} -a {} -d '{}'\n", top ? " -f -n __fish_use_subcommand" : where,
                                  verb->get_name(), fish_escaped(verb->get_description()));
            self(self, *verb);
        }
        for (const CLI::Option* option : app.get_options()) {
            for (const std::string& name : option->get_lnames()) {
                script +=
                    fmt::format("complete -c fathom{} -l {} -d '{}'\n", where, name, fish_escaped(option->get_description()));
            }
        }
    };
    add(add, root);
    return script;
}

}  // namespace

void add_completion(CLI::App& app, Globals& /*globals*/) {
    CLI::App* verb = app.add_subcommand("completion", "print a completion script for a shell");
    verb->footer(
        "Examples:\n"
        "  source <(fathom completion bash)\n"
        "  fathom completion fish > ~/.config/fish/completions/fathom.fish");
    auto shell = std::make_shared<std::string>();
    verb->add_option("shell", *shell, "bash, zsh or fish")->required()->check(CLI::IsMember({"bash", "zsh", "fish"}));
    verb->callback([&app, shell] {
        const std::string script = *shell == "bash" ? bash_script(app) : *shell == "zsh" ? zsh_script(app) : fish_script(app);
        fmt::print("{}", script);
    });
}

}  // namespace fathom
