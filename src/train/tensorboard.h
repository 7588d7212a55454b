// TensorBoard event files: records of [length, crc, protobuf, crc], written by hand because the three messages we need are
// small.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace fathom {

using Scalar = std::pair<std::string, double>;  // tag, value (stored as float32)

// CRC-32C (Castagnoli), as in RFC 3720.
[[nodiscard]] uint32_t crc32c(std::string_view bytes);

// The TFRecord frame of one message: u64 length, masked crc of the length, the message, masked crc of the message.
[[nodiscard]] std::string tensorboard_record(std::string_view message);

// tensorboard.Event messages. wall_time in seconds since 1970.
[[nodiscard]] std::string version_event(double wall_time);
[[nodiscard]] std::string scalars_event(double wall_time, int64_t step, std::span<const Scalar> values);
// Makes TensorBoard forget what earlier files of the folder say about steps >= `step`.
[[nodiscard]] std::string restart_event(double wall_time, int64_t step);

// One event file per start of a run.
class TensorBoardWriter {
public:
    // Creates `folder` and in it a file of its own; `first_step` is the step that comes next (> 1 after a resume).
    TensorBoardWriter(const std::filesystem::path& folder, int64_t first_step);

    void append(int64_t step, std::span<const Scalar> values);  // throws Error{kIo}
    [[nodiscard]] const std::filesystem::path& path() const { return path_; }

private:
    struct Close {
        void operator()(std::FILE* file) const { std::fclose(file); }
    };
    std::filesystem::path path_;
    std::unique_ptr<std::FILE, Close> file_;
    void write(const std::string& message);
};

}  // namespace fathom
