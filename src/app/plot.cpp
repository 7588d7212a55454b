// `fathom plot`: the figures of one or several run folders.
#include <fmt/format.h>
#include <filesystem>
#include <map>

#include "app/table.h"
#include "app/verb.h"
#include "base/error.h"
#include "base/file.h"
#include "train/plot.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

PlottedRun load_run(const fs::path& run, std::map<std::string, int>& names) {
    const fs::path file = fs::is_directory(run) ? run / "metrics.jsonl" : run;
    if (!fs::exists(file)) {
        throw Error(ErrorKind::kInput,
                    fmt::format("{}: no metrics.jsonl there; give the folder of a training run", run.string()));
    }
    PlottedRun loaded;
    loaded.name = fs::weakly_canonical(file).parent_path().filename().string();
    if (const int count = ++names[loaded.name]; count > 1) loaded.name += fmt::format("-{}", count);
    loaded.metrics = read_metrics(file);
    if (loaded.metrics.empty()) throw Error(ErrorKind::kInput, fmt::format("{}: no finished step yet", file.string()));
    return loaded;
}

void plot(const std::vector<std::string>& paths, const std::string& out, const Globals& globals) {
    std::vector<PlottedRun> runs;
    std::map<std::string, int> names;
    for (const std::string& path : paths) runs.push_back(load_run(path, names));
    const fs::path first(paths.front());
    const fs::path beside = fs::is_directory(first) ? first / "plots" : first.parent_path() / "plots";
    const fs::path folder = !out.empty() ? fs::path(out) : runs.size() == 1 ? beside : fs::path("plots");
    std::error_code failed;
    fs::create_directories(folder, failed);
    if (failed) throw Error(ErrorKind::kIo, fmt::format("{}: cannot create: {}", folder.string(), failed.message()));
    Table table({{"figure", "path"}, {"bytes", "bytes", true}});
    for (const Figure& figure : draw_figures(runs)) {
        write_text_atomically(folder / figure.file, figure.svg);
        table.add({(folder / figure.file).string(), static_cast<int64_t>(figure.svg.size())});
    }
    if (table.empty()) throw Error(ErrorKind::kInput, fmt::format("{}: its metrics hold nothing to draw", paths.front()));
    table.print(globals.json);
}

}  // namespace

void add_plot(CLI::App& app, Globals& globals) {
    CLI::App* verb = app.add_subcommand("plot", "draw loss, learning rate, speed and expert load of training runs as SVG");
    verb->footer(
        "Examples:\n"
        "  fathom plot runs/stories                        into runs/stories/plots\n"
        "  fathom plot runs/gamma-1e-3 runs/gamma-1e-4     both in one figure each");
    struct Options {
        std::vector<std::string> runs;
        std::string out;
    };
    auto options = std::make_shared<Options>();
    verb->add_option("run", options->runs, "run folders (or metrics.jsonl files)")->required()->type_name("RUN");
    verb->add_option("--out", options->out, "folder for the figures (default: RUN/plots, or plots for several)")
        ->type_name("DIR");
    verb->callback([options, &globals] { plot(options->runs, options->out, globals); });
}

}  // namespace fathom
