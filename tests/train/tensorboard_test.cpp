#include "train/tensorboard.h"

#include <gtest/gtest.h>
#include <array>
#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

TEST(Crc32c, AgreesWithTheVectorsOfRfc3720) {
    EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAu);
    EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62A8AB43u);
    std::string rising, falling;
    for (int i = 0; i < 32; ++i) rising += static_cast<char>(i), falling += static_cast<char>(31 - i);
    EXPECT_EQ(crc32c(rising), 0x46DD794Eu);
    EXPECT_EQ(crc32c(falling), 0x113FDB5Cu);
    EXPECT_EQ(crc32c("123456789"), 0xE3069283u);
}

TEST(TensorBoard, WritesTheBytesOfTheReferencePackage) {
    const std::array<Scalar, 4> values{{{"loss", 3.25}, {"lr", 2.2e-4}, {"max_vio/layer_3", 0.5}, {"negative", -1e30}}};
    const std::string written = tensorboard_record(version_event(1700000000.25)) +
                                tensorboard_record(restart_event(1700000000.5, 301)) +
                                tensorboard_record(scalars_event(1700000001.0, 301, values));
    EXPECT_EQ(written, read_text(FATHOM_TEST_DATA "/golden.tfevents"));
}

TEST(TensorBoard, EveryStartHasAFileOfItsOwn) {
    const fs::path folder = fs::path(testing::TempDir()) / "tensorboard_test";
    fs::remove_all(folder);
    TensorBoardWriter first(folder, 1), resumed(folder, 11);
    EXPECT_NE(first.path(), resumed.path());
    EXPECT_EQ(first.path().filename().string().rfind("events.out.tfevents.", 0), 0u);
    const std::vector<Scalar> values{{"loss", 1.0}};
    first.append(1, values);
    EXPECT_GT(fs::file_size(first.path()), 60u);  // already written while the writer lives
    fs::remove_all(folder);
}

TEST(TensorBoard, NamesTheFileThatCannotBeCreated) {
    const fs::path folder = fs::path(testing::TempDir()) / "tensorboard_file";
    write_text_atomically(folder, "a file, not a folder");
    EXPECT_ANY_THROW(TensorBoardWriter(folder, 1));
    fs::remove(folder);
}

}  // namespace
}  // namespace fathom
