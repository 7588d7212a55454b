// fathom quantize: a model in fewer bits, and what that costs.
#include <fmt/format.h>
#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "app/calibrated_source.h"
#include "app/generate_model.h"
#include "app/importance.h"
#include "app/quantize_report.h"
#include "app/sensitivity.h"
#include "app/verb.h"
#include "base/error.h"
#include "base/file.h"
#include "base/interrupt.h"
#include "checkpoint/gguf_save.h"
#include "checkpoint/quantized_folder.h"
#include "io/gguf_tokenizer.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::string_view kStateName = ".fathom-state";  // what a calibrated job goes on from

struct Options {
    std::string in, out, type = "q4_k", method, layout, calibrate, evaluate, budget;
    int64_t group_size = 64;
    bool asymmetric = false, mtp = false;
    int64_t sensitivity_tokens = 1024, calibration_tokens = 16384, evaluation_tokens = 8192, context = 512,
            max_shard_bytes = kMaxShardBytes;
};

bool is_folder_type(const Options& o) {
    return o.type == "int8" || o.type == "int4" || o.type == "fp8" || (o.type == "mxfp4" && !o.out.ends_with(".gguf"));
}

// Whether a type of folders has scales that leave nothing to choose.
bool has_fixed_scales(const std::string& type) { return type == "fp8" || type == "mxfp4"; }

GgufType parse_type(const std::string& name) {
    if (name == "f32") return {DType::kF32};
    if (name == "f16") return {DType::kF16};
    if (name == "bf16") return {DType::kBF16};
    if (const auto block = block_type_from_name(name)) return {DType::kU8, *block};
    throw Error(
        ErrorKind::kUsage,
        fmt::format("--type {}: expected int8, int4, fp8 or mxfp4 for a folder; f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, "
                    "q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs or mxfp4 for a GGUF file",
                    name));
}

[[noreturn]] void refuse(const std::string& sentence) { throw Error(ErrorKind::kUsage, "quantize: " + sentence); }

// rtn, imatrix, awq or gptq; the default is what --calibrate makes possible.
std::string method_of(const Options& o) {
    const bool folder = is_folder_type(o), text = !o.calibrate.empty();
    if (!o.budget.empty() && !text) refuse("--budget needs --calibrate FILE, a text on which the types are compared");
    const bool fixed = folder && has_fixed_scales(o.type);
    const std::string fallback = !text || fixed ? "rtn" : folder ? "gptq" : "imatrix";
    const std::string method = o.method.empty() ? fallback : o.method;
    if ((method == "awq" || method == "gptq") && (!folder || fixed))
        refuse(fmt::format("--method {} is for --type int8 and int4", method));
    if (fixed && method == "imatrix")
        refuse(fmt::format("--type {} has nothing to choose: its scales are those of the largest number", o.type));
    if (method != "rtn" && !text)
        refuse(fmt::format("--method {} needs --calibrate FILE, a text to measure activations on", method));
    return method;
}

StoredAs stored_as(const Options& o, const ModelConfig& config) {
    StoredAs wanted;
    if (has_fixed_scales(o.type)) {
        wanted.scheme = o.type == "fp8" ? Scheme::kFp8Block : Scheme::kBlocks;
        return wanted;
    }
    const DType numbers = config.torch_dtype == "float32"   ? DType::kF32
                          : config.torch_dtype == "float16" ? DType::kF16
                                                            : DType::kBF16;
    wanted.scheme = Scheme::kGroups;
    wanted.groups = {o.type == "int8" ? 8 : 4, o.group_size, !o.asymmetric, numbers};
    return wanted;
}

void check_folder_options(const Options& o) {
    if (o.out.ends_with(".gguf"))
        refuse(fmt::format("--type {} is written to a folder; GGUF files have types of their own", o.type));
    if (o.asymmetric && o.type != "int4") refuse("--asymmetric is for --type int4");
    if (o.type == "int4" && o.group_size == 0) refuse("--group-size 0 (one scale a row) is for --type int8");
    if (o.layout == "awq" && (o.type != "int4" || !o.asymmetric)) refuse("--layout awq holds --type int4 --asymmetric");
    if (!o.budget.empty() && (o.type != "int4" || (!o.layout.empty() && o.layout != "compressed-tensors")))
        refuse("--budget to a folder starts from --type int4 and needs the layout compressed-tensors");
    if (o.type == "fp8" && !o.layout.empty()) refuse("--type fp8 has one layout, that of DeepSeek's releases");
    if (o.type == "mxfp4" && !o.layout.empty() && o.layout != "compressed-tensors")
        refuse("--type mxfp4 has one layout, compressed-tensors");
}

// All that the bytes of OUT depend on: what an unfinished one must have been begun with to be gone on with.
std::string job_of(const Options& o, const std::string& method) {
    const auto stamp = [](const fs::path& path) {
        return Json::array({fs::absolute(path).lexically_normal().string(), fs::file_size(path),
                            fs::last_write_time(path).time_since_epoch().count()});
    };
    Json files = Json::array();
    if (fs::is_directory(o.in)) {
        std::vector<fs::path> paths;
        for (const auto& entry : fs::directory_iterator(o.in))
            if (entry.is_regular_file()) paths.push_back(entry.path());
        std::ranges::sort(paths);
        for (const fs::path& path : paths) files.push_back(stamp(path));
    } else {
        files.push_back(stamp(o.in));
    }
    Json job{{"fathom", FATHOM_VERSION}, {"type", o.type}, {"method", method}, {"layout", o.layout}, {"in", std::move(files)}};
    job["group_size"] = o.group_size;
    job["asymmetric"] = o.asymmetric;
    job["max_shard_bytes"] = o.max_shard_bytes;
    job["mtp"] = o.mtp;
    if (!o.budget.empty()) job["budget"] = {o.budget, o.sensitivity_tokens};
    if (!o.calibrate.empty()) {
        job["calibrate"] = stamp(o.calibrate);
        job["calibration"] = {o.calibration_tokens, o.context};
    }
    return job.dump();
}

// Whether a folder holds nothing, or what a run leaves that was killed before it had said which job it does.
bool holds_nothing(const fs::path& folder) {
    return std::ranges::all_of(fs::directory_iterator(folder), [](const fs::directory_entry& entry) {
        return entry.path().filename() == ".fathom-job.partial";
    });
}

void check_out_folder(const fs::path& out, const std::string& job) {
    if (!fs::exists(out)) return;
    if (!fs::is_directory(out))
        refuse(
            fmt::format("OUT {} is a file; --type int8, int4 and fp8 write a folder, mxfp4 too where OUT does not end in .gguf",
                        out.string()));
    if (holds_nothing(out)) return;
    const auto unfinished = unfinished_job(out);
    if (!unfinished)
        refuse(fmt::format(
            "{}: this folder is not empty, and what is in it would be mixed with the new model; choose another OUT or "
            "empty it",
            out.string()));
    if (*unfinished != job)
        refuse(fmt::format(
            "{}: an unfinished model is in this folder, begun with other options or another IN; repeat those, or empty "
            "the folder",
            out.string()));
}

// What --budget measures on.
Sensitivity sensitivity_of(const Options& o, OpenModel& model, std::span<const int32_t> calibration, const Globals& globals) {
    int64_t numbers = 0;
    model.model().visit([&](const std::string&, Param& param) { numbers += param.size(); });
    return {calibration.first(std::min(calibration.size(), static_cast<size_t>(o.sensitivity_tokens))), o.context,
            parse_budget(o.budget, numbers), globals.progress()};
}

void write_folder(const Options& o, OpenModel& model, std::span<const int32_t> calibration, const Globals& globals,
                  QuantizeReport& report) {
    const std::string job = job_of(o, report.method);
    check_out_folder(o.out, job);
    DeepSeek& network = model.model();
    ThreadPool& threads = model.device().threads();
    FolderPlan plan = plan_folder(network, stored_as(o, model.config()), o.layout.empty() ? "compressed-tensors" : o.layout);
    if (!o.budget.empty())
        fit_plan_to_budget(network, model.ops(), threads, plan, sensitivity_of(o, model, calibration, globals));
    std::unique_ptr<FolderSource> source;
    CalibratedSource* calibrated = nullptr;
    Importance importance;
    if (report.method == "awq" || report.method == "gptq") {
        const auto method = report.method == "awq" ? CalibratedMethod::kAwq : CalibratedMethod::kGptq;
        CalibratedSource::prepare_plan(network, method, plan);
        fs::create_directories(o.out);
        auto made = std::make_unique<CalibratedSource>(
            network, plan,
            CalibrationOptions{method, calibration, o.context, fs::path(o.out) / kStateName, job, globals.progress()}, threads);
        calibrated = made.get();
        source = std::move(made);
    } else {
        if (report.method == "imatrix")
            importance = measure_importance(network, threads, calibration, o.context, globals.progress());
        source = std::make_unique<RoundingSource>(network, plan, importance.empty() ? nullptr : &importance, threads);
    }
    Progress progress("quantize", 0, "bytes", calibrated == nullptr ? globals.progress() : ProgressMode::kQuiet);
    FolderSaveOptions save{.max_shard_bytes = o.max_shard_bytes, .job = job};
    if (model.gguf() == nullptr && model.tokenizer() != nullptr) save.tokenizer = o.in;
    int64_t before = 0;
    save.progress = [&](const std::string& parameter, int64_t done, int64_t total) {
        throw_if_interrupted();
        report.bytes_by_type[plan.of(parameter).name()] += done - before;
        before = done;
        progress.update(
            done, fmt::format("{} of {}", human_bytes(static_cast<double>(done)), human_bytes(static_cast<double>(total))));
    };
    save_quantized_folder(o.out, network, plan, *source, save);
    progress.finish();
    fs::remove(fs::path(o.out) / kStateName);
    if (model.gguf() != nullptr) write_gguf_tokenizer(*model.gguf(), o.out);
    if (calibrated != nullptr) report.rounded = calibrated->rounded();
    report.left_alone = plan.left_alone;
}

void write_gguf(const Options& o, OpenModel& model, std::span<const int32_t> calibration, const Importance& importance,
                const Globals& globals, QuantizeReport& report) {
    Progress progress("quantize", 0, "bytes", globals.progress());
    GgufSaveOptions save{.type = parse_type(o.type), .name = fs::path(o.in).stem().string()};
    save.job = job_of(o, report.method);
    save.keep_bytes = std::min(o.max_shard_bytes, kGgufKeepBytes);
    if (model.gguf() != nullptr)
        save.tokenizer_of = model.gguf();
    else if (model.tokenizer() != nullptr)
        save.tokenizer = o.in;
    if (!importance.empty()) save.importance = &importance;
    if (!o.budget.empty())
        save.types = gguf_types_for_budget(model.model(), model.ops(), model.device().threads(),
                                           sensitivity_of(o, model, calibration, globals));
    int64_t before = 0;
    save.progress = [&](const std::string& tensor, const GgufType& given, int64_t done, int64_t total) {
        throw_if_interrupted();
        report.bytes_by_type[given.name()] += done - before;
        before = done;
        progress.update(done, fmt::format("{} {} of {}", tensor, human_bytes(static_cast<double>(done)),
                                          human_bytes(static_cast<double>(total))));
    };
    save_gguf(o.out, model.model(), save, model.device().threads());
    progress.finish();
}

void quantize(const Options& o, const Globals& globals) {
    const bool folder = is_folder_type(o);
    QuantizeReport report{.in = o.in, .out = o.out, .type = o.type, .method = method_of(o)};
    if (folder) {
        check_folder_options(o);
    } else {
        (void)parse_type(o.type);
        if (!o.out.ends_with(".gguf")) refuse(fmt::format("--type {} is written to a file that ends in .gguf", o.type));
        if (!o.layout.empty()) refuse("--layout is for --type int8 and int4");
    }
    if (fs::exists(o.out) && fs::exists(o.in) && fs::equivalent(o.in, o.out)) refuse("IN and OUT are the same");
    ModelOptions source;
    source.model = o.in;
    source.pack = false;
    source.with_mtp = folder || o.mtp;
    const bool text = !o.calibrate.empty() || !o.evaluate.empty();
    Globals here = globals;
    if (here.device == "auto") here.device = "cpu";  // beside a GPU, too
    OpenModel model(source, here, text ? OpenModel::Text::kNeeded : OpenModel::Text::kWanted);
    if (!model.ops().sees_host_memory()) refuse("it computes on the CPU: leave --device away");
    if (!source.with_mtp && model.has_mtp_modules() && !globals.quiet) fmt::print(stderr, "{}\n", kMtpLeftOut);
    if (!o.budget.empty()) (void)parse_budget(o.budget, 1);
    std::vector<int32_t> calibration, evaluation;  // read before the work begins
    if (!o.evaluate.empty()) evaluation = read_text_tokens(*model.tokenizer(), o.evaluate, o.evaluation_tokens);
    if (!o.calibrate.empty()) calibration = read_text_tokens(*model.tokenizer(), o.calibrate, o.calibration_tokens);
    if (folder) {
        write_folder(o, model, calibration, globals, report);
    } else {
        Importance importance;
        if (report.method == "imatrix")
            importance =
                measure_importance(model.model(), model.device().threads(), calibration, o.context, globals.progress());
        write_gguf(o, model, calibration, importance, globals, report);
    }
    if (!o.evaluate.empty()) {
        report.measured = measure_divergence(model.model(), o.out, model.ops(), evaluation, o.context, globals.progress());
    }
    report.print(globals.json);
}

}  // namespace

void add_quantize(CLI::App& app, Globals& globals) {
    auto o = std::make_shared<Options>();
    CLI::App* verb = app.add_subcommand("quantize", "write a model in fewer bits, and measure what that costs");
    verb->footer(
        "Examples:\n"
        "  fathom quantize models/stories stories-q8_0.gguf --type q8_0 --eval stories.txt\n"
        "  fathom quantize MODEL model-q4_k.gguf --type q4_k --calibrate text.txt --eval held-out.txt\n"
        "  fathom quantize MODEL model-int4 --type int4 --method gptq --calibrate text.txt --eval held-out.txt\n"
        "  fathom quantize MODEL model-fp8 --type fp8        the layout of DeepSeek's own releases\n");
    verb->add_option("in", o->in, "a Hugging Face model folder, or a GGUF file")->required()->type_name("IN");
    verb->add_option("out", o->out, "the folder or GGUF file to write")->required()->type_name("OUT");
    verb->add_option(
            "--type", o->type,
            "of the matrices. To a folder: int8, int4, fp8, mxfp4. To a GGUF file: f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, "
            "q5_1, q2_k to q6_k, iq4_nl, iq4_xs, mxfp4")
        ->type_name("TYPE");
    verb->add_option("--method", o->method,
                     "rtn: round to nearest; imatrix: errors count by the size of activations; awq, gptq: for int8 and int4. "
                     "Default: rtn, with --calibrate gptq for int8 and int4, else imatrix")
        ->type_name("METHOD")
        ->check(CLI::IsMember({"rtn", "imatrix", "awq", "gptq"}));
    verb->add_option("--group-size", o->group_size, "columns that share a scale, for int8 and int4; 0 (int8): a whole row")
        ->type_name("N")
        ->check(CLI::IsMember({0, 32, 64, 128}));
    verb->add_flag("--asymmetric", o->asymmetric, "int4 with a zero point per group");
    verb->add_option("--layout", o->layout, "how int8 and int4 are stored; default: compressed-tensors")
        ->type_name("LAYOUT")
        ->check(CLI::IsMember({"compressed-tensors", "gptq", "awq"}));
    verb->add_option("--calibrate", o->calibrate, "text that is run through the model first, for all methods but rtn")
        ->type_name("FILE");
    verb->add_option("--eval", o->evaluate, "text on which both models are compared: perplexity, KL divergence, agreement")
        ->type_name("FILE");
    verb->add_flag("--mtp", o->mtp,
                   "to a GGUF file: with the MTP modules, which llama.cpp reads since late 2026 (folders keep them)");
    verb->add_option("--budget", o->budget,
                     "mixed precision in so many bytes of tensors (8M, 1.5G) or bits per weight (4.5bpw): each part's cost in "
                     "each type is "
                     "measured on --calibrate. Folders mix int4, int8 and plain; GGUF files Q2_K to Q8_0")
        ->type_name("SIZE");
    const auto number = [&](const char* name, int64_t& value, int64_t low, const char* help) {
        verb->add_option(name, value, help)->type_name("N")->check(CLI::Range(low, int64_t{1} << 40));
    };
    number("--calibration-tokens", o->calibration_tokens, 2, "read at most this many of --calibrate");
    number("--sensitivity-tokens", o->sensitivity_tokens, 2,
           "read at most this many of --calibrate for --budget, per type and part");
    number("--eval-tokens", o->evaluation_tokens, 2, "read at most this many of --eval");
    number("--context", o->context, 2, "tokens of a window, in both");
    number("--max-shard-bytes", o->max_shard_bytes, 1,
           "of a folder's files; an interrupted quantization goes on behind the last whole one (GGUF: behind 256 MB of "
           "whole tensors, or less)");
    verb->callback([o, &globals] { quantize(*o, globals); });
}

}  // namespace fathom
