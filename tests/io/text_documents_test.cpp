#include "io/text_documents.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "io/text_documents_index.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

const fs::path kData = fs::path(FATHOM_TEST_DATA) / "text";

std::vector<std::string> texts_of(TextDocuments documents) {
    std::vector<std::string> texts;
    while (const auto range = documents.next()) texts.push_back(documents.text(*range));
    return texts;
}

// A folder of its own for each test, removed at the end.
class TextDocumentsTest : public testing::Test {
protected:
    fs::path folder_ = fs::path(testing::TempDir()) /
                       ("text_documents_" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));

    void SetUp() override { fs::create_directories(folder_); }
    void TearDown() override { fs::remove_all(folder_); }

    fs::path write(const std::string& name, const std::string& content) const {
        std::ofstream(folder_ / name, std::ios::binary) << content;
        return folder_ / name;
    }
};

std::string message_of(const std::function<void()>& body) {
    try {
        body();
    } catch (const Error& e) {
        return e.what();
    }
    return "no error";
}

using Texts = std::vector<std::string>;

TEST_F(TextDocumentsTest, ALineThatIsExactlyTheSeparatorEndsADocument) {
    EXPECT_EQ(texts_of(TextDocuments(kData / "three.txt")),
              (Texts{"First tale\n\nOnce there was.", "Second tale\n  <|endoftext|> inside a line is text.",
                     "Third, without an end"}));
}

TEST_F(TextDocumentsTest, RangesNameBytesAndLinesOfTheFile) {
    TextDocuments documents(kData / "three.txt");
    const auto first = documents.next(), second = documents.next(), third = documents.next();
    ASSERT_TRUE(first && second && third);
    EXPECT_FALSE(documents.next());
    EXPECT_EQ(first->begin, 0);
    EXPECT_EQ(first->end, 27);
    EXPECT_EQ(second->line, 7);
    EXPECT_EQ(third->index, 2);
    EXPECT_EQ(third->line, 13);
    documents.rewind();
    EXPECT_EQ(documents.next()->begin, 0);
    EXPECT_EQ(documents.text(*third), "Third, without an end");
}

TEST_F(TextDocumentsTest, WindowsLineEndsAndAByteOrderMarkAreNotText) {
    const auto path = write("crlf.txt",
                            "\xEF\xBB\xBF"
                            "one\r\nline\r\n<|endoftext|>\r\ntwo\r\n");
    EXPECT_EQ(texts_of(TextDocuments(path)), (Texts{"one\r\nline", "two"}));
}

TEST_F(TextDocumentsTest, AFileWithoutTextHasNoDocuments) {
    EXPECT_TRUE(texts_of(TextDocuments(write("a.txt", ""))).empty());
    EXPECT_TRUE(texts_of(TextDocuments(write("b.txt", "\n\n<|endoftext|>\n\n"))).empty());
    EXPECT_TRUE(texts_of(TextDocuments(write("c.jsonl", "\n  \n"))).empty());
}

TEST_F(TextDocumentsTest, JsonLinesGiveTheFieldDecodedAndKeepWhatLooksLikeASeparator) {
    EXPECT_EQ(texts_of(TextDocuments(kData / "three.jsonl")), (Texts{"caf\xC3\xA9\nau lait", "", "<|endoftext|>"}));
    const auto path = write("story.jsonl", "{\"story\": \"x\"}");
    EXPECT_EQ(texts_of(TextDocuments(path, "story")), (Texts{"x"}));
}

TEST_F(TextDocumentsTest, ABadJsonLineIsNamedByFileAndLine) {
    const auto broken = write("broken.jsonl", "{\"text\": \"a\"}\n\n{\"text\": \"b\"\n");
    EXPECT_NE(message_of([&] { texts_of(TextDocuments(broken)); }).find("broken.jsonl:3: not a line of JSON"),
              std::string::npos);
    const auto number = write("number.jsonl", "{\"text\": 7}\n");
    EXPECT_NE(message_of([&] { texts_of(TextDocuments(number)); }).find("number.jsonl:1: no text in field \"text\""),
              std::string::npos);
    const auto array = write("array.jsonl", "[1]\n");
    EXPECT_NE(message_of([&] { texts_of(TextDocuments(array)); }).find("--field"), std::string::npos);
}

TEST_F(TextDocumentsTest, TextThatIsNotUtf8IsNamedByLineAndOffset) {
    const auto path = write("latin1.txt", "fine\n<|endoftext|>\nfine\ncaf\xE9 noir\n");
    const std::string message = message_of([&] { texts_of(TextDocuments(path)); });
    EXPECT_NE(message.find("latin1.txt:4: byte 0xe9 at offset 27"), std::string::npos) << message;
}

TEST_F(TextDocumentsTest, ACompressedFileIsRefusedWithTheCommandThatUnpacksIt) {
    const auto named = write("a.txt.zst", "whatever");
    EXPECT_NE(message_of([&] { TextDocuments{named}; }).find("zstd -d"), std::string::npos);
    const auto renamed = write("b.txt", std::string("\xFD\x37zXZ\0\0\4", 8));
    EXPECT_NE(message_of([&] { TextDocuments{renamed}; }).find("xz -dk"), std::string::npos);
}

// The rows of Unicode 15, table 3-7: first and last sequence of each, and their neighbours that are ill-formed.
TEST(FindInvalidUtf8, AgreesWithTheTableOfWellFormedSequences) {
    for (const std::string good : {"", "plain ascii of more than eight bytes", "\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80",
                                   "\xED\x9F\xBF", "\xEE\x80\x80", "\xEF\xBF\xBF", "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"})
        EXPECT_FALSE(find_invalid_utf8(good)) << testing::PrintToString(good);
    for (const std::string bad :
         {"\x80", "\xC0\x80", "\xC1\xBF", "\xC2", "\xC2\x41", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xE1\x80", "\xE1\x80\x41",
          "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF"}) {
        EXPECT_EQ(find_invalid_utf8(bad), 0u) << testing::PrintToString(bad);
        EXPECT_EQ(find_invalid_utf8("12345678abc" + bad), 11u) << testing::PrintToString(bad);
    }
}

TEST_F(TextDocumentsTest, IndexRowsBelongToDocumentsBySizeAndTitleNotByOrder) {
    // Documents of 6, 6 and 3 bytes; the index is sorted otherwise and describes a second file too.
    TextDocuments documents(write("c.txt", "Ab\n\nxy\n<|endoftext|>\nCd\n\nxy\n<|endoftext|>\nthe\n<|endoftext|>\n"));
    const auto index = write("c.tsv",
                             "split\ttitle\tlicence\tbytes\n"
                             "train\tElse\tCC-BY\t3\ntrain\tCd\tCC BY-NC-SA\t6\ntrain\tAb\tCC-BY\t6\nvalid\tCd\tCC-BY\t6\n");
    EXPECT_EQ(documents_excluded_by_licence(documents, index, "NC"), (std::vector<bool>{false, true, false}));
    EXPECT_EQ(documents_excluded_by_licence(documents, index, "^CC.BY$"), (std::vector<bool>{true, false, true}));
}

TEST_F(TextDocumentsTest, AnIndexThatLeavesALicenceInDoubtIsRefused) {
    TextDocuments documents(write("c.txt", "Ab\n\nxy\n<|endoftext|>\nCd\n\nxy\n"));
    const std::string header = "title\tlicence\tbytes\n";
    const auto excluded = [&](const std::string& rows) {
        const auto index = write("c.tsv", header + rows);
        return message_of([&] { (void)documents_excluded_by_licence(documents, index, "NC"); });
    };
    EXPECT_NE(excluded("Ab\tCC-BY\t6\n").find("the file has 2 documents, the index 1 rows"), std::string::npos);
    EXPECT_NE(excluded("Ab\tCC-BY\t6\nCd\tNC\t7\n").find("does not describe"), std::string::npos);
    EXPECT_NE(excluded("?\tCC-BY\t6\n?\tNC\t6\n").find("titles do not tell"), std::string::npos);
    EXPECT_NE(excluded("Ab\tCC-BY\t6\nAb\tNC\t6\n").find("titles do not tell"), std::string::npos);
    EXPECT_EQ(excluded("?\tNC\t6\n?\tNC\t6\n"), "no error");
    EXPECT_EQ(excluded("Ab\tCC-BY\t6\n?\tNC\t6\n"), "no error");
    EXPECT_NE(excluded("Ab\tCC-BY\tsix\n").find("c.tsv:2: not a row"), std::string::npos);
    EXPECT_NE(message_of([&] {
                  (void)documents_excluded_by_licence(documents, write("d.tsv", "title\tbytes\nAb\t6\n"), "NC");
              }).find("no column \"licence\""),
              std::string::npos);
    EXPECT_NE(message_of([&] {
                  (void)documents_excluded_by_licence(documents, write("d.tsv", header + "Ab\tX\t6\nCd\tX\t6\n"), "(");
              }).find("not a regular expression"),
              std::string::npos);
}

// The published story corpus: 26 documents CC-BY-NC and 3 CC-BY-NC-SA (train and valid together), rows sorted by id, documents
// shuffled.
TEST_F(TextDocumentsTest, TheStoryCorpusLosesExactlyItsNonCommercialDocuments) {
    const fs::path stories = fs::path(FATHOM_SHARED) / "data/corpora/stories";
    if (!fs::exists(stories)) GTEST_SKIP() << stories << " is absent";
    const auto excluded_of = [&](const std::string& split) {
        const fs::path text = folder_ / ("stories-simple." + split + ".txt");
        const std::string unpack = "xz -dc " + (stories / text.filename()).string() + ".xz > " + text.string();
        EXPECT_EQ(std::system(unpack.c_str()), 0);
        TextDocuments documents(text);
        const auto excluded = documents_excluded_by_licence(documents, stories / "stories-simple.index.tsv", "NC");
        std::vector<std::string> titles;
        while (const auto range = documents.next()) {
            const std::string body = documents.text(*range);
            if (excluded[static_cast<size_t>(range->index)]) titles.push_back(body.substr(0, body.find('\n')));
        }
        return titles;
    };
    const Texts train = excluded_of("train"), valid = excluded_of("valid");
    EXPECT_EQ(train.size() + valid.size(), 29u);
    EXPECT_EQ(valid, (Texts{"Market cows", "Yellow"}));
    for (const char* title : {"The Rain Bird", "How many?", "Letters", "Animals ,Animals", "Esther takes Mummy's sweets"})
        EXPECT_EQ(std::count(train.begin(), train.end(), title), 1) << title;
}

}  // namespace
}  // namespace fathom
