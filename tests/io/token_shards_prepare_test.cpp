#include "io/token_shards_prepare.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/error.h"
#include "io/token_shards.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

using Ids = std::vector<int32_t>;

constexpr int32_t kBos = 256, kEos = 257;

// One id a byte: simple enough to say what must come out.
Ids encode_bytes(std::string_view text) {
    Ids ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
}

std::map<std::string, std::string> content_of(const fs::path& folder) {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(folder))
        if (entry.is_regular_file()) files[fs::relative(entry.path(), folder).string()] = read_text(entry.path());
    return files;
}

std::string message_of(const std::function<void()>& body) {
    try {
        body();
    } catch (const Error& e) {
        return e.what();
    }
    return "no error";
}

class PrepareTokensTest : public testing::Test {
protected:
    fs::path folder_ = fs::path(testing::TempDir()) /
                       ("prepare_tokens_" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));

    void SetUp() override { fs::create_directories(folder_); }
    void TearDown() override { fs::remove_all(folder_); }

    fs::path write(const std::string& name, const std::string& content) const {
        std::ofstream(folder_ / name, std::ios::binary) << content;
        return folder_ / name;
    }

    // 60 documents of 1 to 60 bytes in two files, small shards, small groups.
    PrepareOptions many(const std::string& out) const {
        std::string text, lines;
        for (size_t i = 1; i <= 40; ++i) text += std::string(i, static_cast<char>('a' + i % 26)) + "\n<|endoftext|>\n";
        for (size_t i = 41; i <= 60; ++i) lines += "{\"text\": \"" + std::string(i, 'z') + "\"}\n{\"text\": \"\"}\n";
        PrepareOptions options;
        options.inputs = {{write("a.txt", text), {}}, {write("b.jsonl", lines), {}}};
        options.vocab_size = 258;
        options.bos_id = kBos;
        options.eos_id = kEos;
        options.shard_tokens = 200;
        options.group_bytes = 150;
        options.out = folder_ / out;
        return options;
    }

    std::vector<PrepareSummary> prepare(const PrepareOptions& options, const Encode& encode = encode_bytes,
                                        int threads = 2) const {
        ThreadPool pool(threads);
        return prepare_tokens(options, encode, pool, ProgressMode::kQuiet);
    }
};

TEST_F(PrepareTokensTest, EachDocumentIsItsTextBetweenBosAndEos) {
    PrepareOptions options = many("out");
    const auto summary = prepare(options).front();
    EXPECT_EQ(summary.documents, 60);
    EXPECT_EQ(summary.text_bytes, 60 * 61 / 2);
    EXPECT_EQ(summary.tokens, 60 * 61 / 2 + 2 * 60);
    const TokenDataset dataset(options.out);
    EXPECT_EQ(std::ssize(dataset.shards()), summary.shards);
    EXPECT_GT(summary.shards, 5);
    EXPECT_EQ(dataset.text_bytes(), summary.text_bytes);
    EXPECT_EQ(dataset.bos_id(), kBos);
    EXPECT_EQ(dataset.eos_id(), kEos);
    for (int64_t i = 0; i < 60; ++i) {
        Ids ids(static_cast<size_t>(dataset.length(i)));
        dataset.read(ids, i, 0);
        Ids expected{kBos};
        expected.resize(static_cast<size_t>(i) + 2, i < 40 ? 'a' + static_cast<int32_t>((i + 1) % 26) : 'z');
        expected.push_back(kEos);
        EXPECT_EQ(ids, expected) << "document " << i;
    }
    for (const auto& shard : dataset.shards()) EXPECT_LT(shard.header().tokens, 200 + 62);

    options.bos_id.reset();
    options.out = folder_ / "without";
    prepare(options);
    EXPECT_EQ(TokenDataset(options.out).tokens(), 60 * 61 / 2 + 60);
}

TEST_F(PrepareTokensTest, TheFilesAreTheSameWhateverTheThreadsAndGroups) {
    prepare(many("reference"), encode_bytes, 1);
    const auto reference = content_of(folder_ / "reference");
    for (const int threads : {2, 3, 7})
        for (const int64_t group_bytes : {1, 90, 8 << 20}) {
            PrepareOptions options = many("other");
            options.group_bytes = group_bytes;
            prepare(options, encode_bytes, threads);
            EXPECT_EQ(content_of(folder_ / "other"), reference);
            fs::remove_all(folder_ / "other");
        }
}

// The process ends without a destructor, as under kill -9, in the n-th call of the tokenizer.
TEST_F(PrepareTokensTest, KilledAnywhereAndStartedAgainTheFilesAreTheSame) {
    prepare(many("reference"));
    const auto reference = content_of(folder_ / "reference");
    for (const int n : {1, 14, 27, 28, 45, 60}) {
        const PrepareOptions options = many("killed");
        const pid_t child = ::fork();
        ASSERT_GE(child, 0);
        if (child == 0) {
            std::atomic<int> calls{0};
            (void)prepare(options, [&](std::string_view text) {
                if (++calls == n) ::_exit(9);
                return encode_bytes(text);
            });
            ::_exit(0);
        }
        int status = 0;
        ASSERT_EQ(::waitpid(child, &status, 0), child);
        ASSERT_EQ(WEXITSTATUS(status), 9);
        EXPECT_FALSE(fs::exists(manifest_path(options.out)));
        std::atomic<int64_t> bytes{0};
        const auto summary = prepare(options, [&](std::string_view text) {
            bytes += std::ssize(text);
            return encode_bytes(text);
        });
        int64_t kept = 0;
        for (int64_t s = 0; s < summary.front().resumed_shards; ++s)
            kept += TokenShard(shard_path(options.out, s)).header().text_bytes;
        EXPECT_EQ(bytes, 60 * 61 / 2 - kept) << "finished shards are not tokenised again";
        EXPECT_EQ(content_of(options.out), reference) << "killed in call " << n;
        fs::remove_all(options.out);
    }
}

TEST_F(PrepareTokensTest, AHarmedOrMissingShardIsMadeAgain) {
    const PrepareOptions options = many("out");
    prepare(options);
    const auto reference = content_of(options.out);
    fs::resize_file(shard_path(options.out, 2), 100);
    EXPECT_EQ(prepare(options).front().resumed_shards, 2);
    EXPECT_EQ(content_of(options.out), reference);
    fs::remove(shard_path(options.out, 1));
    write("out/shard-00001.ftok.partial", "left by a kill");
    EXPECT_EQ(prepare(options).front().resumed_shards, 1);
    EXPECT_EQ(content_of(options.out), reference);
    const auto unchanged = prepare(options, [](std::string_view) -> Ids { throw std::runtime_error("nothing to tokenise"); });
    EXPECT_EQ(unchanged.front().resumed_shards, unchanged.front().shards);
    EXPECT_EQ(unchanged.front().documents, 60);
    EXPECT_EQ(content_of(options.out), reference);
}

TEST_F(PrepareTokensTest, OtherInputsOrSettingsAreRefusedByName) {
    PrepareOptions options = many("out");
    prepare(options);
    options.shard_tokens = 100;
    options.tokenizer_hash = 1;
    EXPECT_NE(message_of([&] { prepare(options); }).find("(different: shard_tokens, tokenizer)"), std::string::npos);
    options = many("out");
    write("a.txt", "something else");
    EXPECT_NE(message_of([&] { prepare(options); }).find("(different: inputs)"), std::string::npos);
    options = many("out");
    fs::rename(folder_ / "a.txt", folder_ / "moved.txt");
    options.inputs[0].file = folder_ / "moved.txt";
    EXPECT_EQ(message_of([&] { prepare(options); }), "no error");
    fs::remove(options.out / "settings.json");
    EXPECT_NE(message_of([&] { prepare(options); }).find("no settings.json"), std::string::npos);
}

TEST_F(PrepareTokensTest, TheValidFractionSplitsTheDocumentsWithoutLossOrOverlap) {
    PrepareOptions options = many("out");
    options.valid_fraction = 0.25;
    const auto summaries = prepare(options);
    ASSERT_EQ(summaries.size(), 2u);
    EXPECT_EQ(summaries[0].folder, options.out / "train");
    EXPECT_EQ(summaries[1].folder, options.out / "valid");
    std::vector<int64_t> lengths;  // each document has a length of its own
    for (const char* part : {"train", "valid"}) {
        const TokenDataset dataset(options.out / part);
        for (int64_t i = 0; i < dataset.documents(); ++i) lengths.push_back(dataset.length(i) - 2);
    }
    std::sort(lengths.begin(), lengths.end());
    ASSERT_EQ(lengths.size(), 60u);
    for (size_t i = 0; i < 60; ++i) EXPECT_EQ(lengths[i], static_cast<int64_t>(i) + 1);
    EXPECT_GT(summaries[1].documents, 5);  // 15 expected, standard deviation 3.4
    EXPECT_LT(summaries[1].documents, 26);

    const auto first = content_of(options.out / "valid");
    options.out = folder_ / "again";
    options.seed = 1;
    prepare(options);
    EXPECT_NE(content_of(options.out / "valid"), first);
}

TEST_F(PrepareTokensTest, ExcludedDocumentsAreLeftOutAndCounted) {
    PrepareOptions options = many("out");
    const auto index = write("i.tsv", "title\tlicence\tbytes\nAb\tCC-BY\t2\nCd\tCC-BY-NC\t2\n");
    options.inputs = {{write("c.txt", "Ab\n<|endoftext|>\nCd\n<|endoftext|>\n"), index}};
    options.exclude_licence = "NC";
    const auto summary = prepare(options).front();
    EXPECT_EQ(summary.documents, 1);
    EXPECT_EQ(summary.excluded, 1);
    Ids ids(4);
    TokenDataset(options.out).read(ids, 0, 0);
    EXPECT_EQ(ids, (Ids{kBos, 'A', 'b', kEos}));
    options.exclude_licence = "CC";
    options.out = folder_ / "none";
    EXPECT_NE(message_of([&] { prepare(options); }).find("beside those the licence pattern leaves out"), std::string::npos);
}

TEST_F(PrepareTokensTest, EmptyDataIsAnErrorAndLeavesNoManifest) {
    PrepareOptions options = many("out");
    options.inputs = {{write("empty.txt", "\n\n"), {}}};
    EXPECT_NE(message_of([&] { prepare(options); }).find("no text to tokenize"), std::string::npos);
    EXPECT_FALSE(fs::exists(manifest_path(options.out)));
    options.inputs = {{folder_ / "absent.txt", {}}};
    EXPECT_NE(message_of([&] { prepare(options); }).find("absent.txt"), std::string::npos);
}

}  // namespace
}  // namespace fathom
