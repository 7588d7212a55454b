#include "train/tensorboard.h"

#include <fmt/format.h>
#include <unistd.h>
#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "base/error.h"

namespace fathom {
namespace {

constexpr std::array<uint32_t, 256> kCrcTable = [] {
    std::array<uint32_t, 256> table{};
    for (uint32_t i = 0; i < 256; ++i) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78u : 0);
        table[i] = crc;
    }
    return table;
}();

// A CRC of data that holds CRCs is weak, so TensorFlow rotates and shifts it.
uint32_t masked_crc(std::string_view bytes) {
    const uint32_t crc = crc32c(bytes);
    return std::rotr(crc, 15) + 0xA282EAD8u;
}

template <class T>
std::string little_endian(T value) {
    std::string bytes(sizeof value, '\0');
    std::memcpy(bytes.data(), &value, sizeof value);
    return bytes;
}

// Protobuf wire format: a key is (field << 3 | type) with type 0 varint, 1 eight bytes, 2 length-delimited, 5 four bytes.
std::string varint(uint64_t value) {
    std::string bytes;
    for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
    return bytes + static_cast<char>(value);
}

std::string integer_field(int field, int64_t value) {
    return varint(static_cast<uint64_t>(field) << 3) + varint(static_cast<uint64_t>(value));
}
std::string double_field(int field, double value) {
    return varint(static_cast<uint64_t>(field) << 3 | 1) + little_endian(value);
}
std::string float_field(int field, float value) { return varint(static_cast<uint64_t>(field) << 3 | 5) + little_endian(value); }
std::string bytes_field(int field, std::string_view bytes) {
    return varint(static_cast<uint64_t>(field) << 3 | 2) + varint(bytes.size()) + std::string(bytes);
}

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

}  // namespace

uint32_t crc32c(std::string_view bytes) {
    uint32_t crc = ~0u;
    for (const char c : bytes) crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<uint8_t>(c)) & 0xff];
    return ~crc;
}

std::string tensorboard_record(std::string_view message) {
    const std::string length = little_endian(static_cast<uint64_t>(message.size()));
    return length + little_endian(masked_crc(length)) + std::string(message) + little_endian(masked_crc(message));
}

// Event { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5; SessionLog session_log = 7; }
std::string version_event(double wall_time) { return double_field(1, wall_time) + bytes_field(3, "brain.Event:2"); }

// Summary { repeated Value value = 1; }  Value { string tag = 1; float simple_value = 2; }
std::string scalars_event(double wall_time, int64_t step, std::span<const Scalar> values) {
    std::string summary;
    for (const auto& [tag, value] : values) {
        summary += bytes_field(1, bytes_field(1, tag) + float_field(2, static_cast<float>(value)));
    }
    return double_field(1, wall_time) + integer_field(2, step) + bytes_field(5, summary);
}

// SessionLog { SessionStatus status = 1; } with START = 1
std::string restart_event(double wall_time, int64_t step) {
    return double_field(1, wall_time) + integer_field(2, step) + bytes_field(7, integer_field(1, 1));
}

TensorBoardWriter::TensorBoardWriter(const std::filesystem::path& folder, int64_t first_step) {
    std::filesystem::create_directories(folder);
    std::array<char, 256> host{"localhost"};
    ::gethostname(host.data(), host.size() - 1);
    const double time = now();
    for (int attempt = 0; !file_; ++attempt) {  // "x": never a file that another start is writing
        path_ = folder / fmt::format("events.out.tfevents.{:010}.{}.{}.{}", static_cast<int64_t>(time), host.data(), ::getpid(),
                                     attempt);
        file_.reset(std::fopen(path_.c_str(), "wxe"));
        if (!file_ && errno != EEXIST) {
            throw Error(ErrorKind::kIo, fmt::format("{}: cannot create: {}", path_.string(), std::strerror(errno)));
        }
    }
    write(version_event(time));
    if (first_step > 1) write(restart_event(time, first_step));
}

void TensorBoardWriter::append(int64_t step, std::span<const Scalar> values) { write(scalars_event(now(), step, values)); }

void TensorBoardWriter::write(const std::string& message) {
    const std::string record = tensorboard_record(message);
    if (std::fwrite(record.data(), 1, record.size(), file_.get()) != record.size() || std::fflush(file_.get()) != 0) {
        throw Error(ErrorKind::kIo, fmt::format("{}: cannot write: {}", path_.string(), std::strerror(errno)));
    }
}

}  // namespace fathom
