// Files: read-only maps, whole reads, and writes that are either complete or absent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

// A read-only memory map. Moves, never copies; the bytes live as long as the object.
class MappedFile {
public:
    MappedFile() = default;
    // Throws Error{kIo} when the file cannot be opened or mapped; an empty file maps to an empty span.
    explicit MappedFile(const std::filesystem::path& path);
    ~MappedFile();
    MappedFile(MappedFile&& other) noexcept;
    MappedFile& operator=(MappedFile&& other) noexcept;
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    [[nodiscard]] std::span<const std::byte> bytes() const { return {data_, size_}; }
    [[nodiscard]] const std::filesystem::path& path() const { return path_; }

private:
    const std::byte* data_ = nullptr;
    size_t size_ = 0;
    std::filesystem::path path_;
};

// Writes to `path`.partial, then fsync and rename in commit(). Destroyed without commit, it leaves nothing behind.
//
// With a `job` (a text that says all that the bytes depend on) what keep() was called behind stays, should the process end:
// the next file of that path and job goes on there, and its first size() bytes are written. `path`.partial.job says how many.
// Another job's are thrown away.
class AtomicFile {
public:
    explicit AtomicFile(std::filesystem::path path, std::string job = "");
    ~AtomicFile();
    AtomicFile(const AtomicFile&) = delete;
    AtomicFile& operator=(const AtomicFile&) = delete;

    void write(std::span<const std::byte> bytes);  // throws Error{kIo}, naming a full disk as such
    void write(std::string_view text);
    void keep();  // syncs; only with a job
    void commit();
    [[nodiscard]] uint64_t size() const { return written_; }

private:
    std::filesystem::path path_, partial_, journal_;
    std::string job_;
    bool kept_ = false;
    int fd_ = -1;
    uint64_t written_ = 0;
    std::vector<std::byte> pending_;
    [[nodiscard]] uint64_t kept_by_job() const;
    void flush();
    void write_through(std::span<const std::byte> bytes);
};

[[nodiscard]] std::string read_text(const std::filesystem::path& path);
void write_text_atomically(const std::filesystem::path& path, std::string_view text);
// Makes a rename inside `directory` durable.
void sync_directory(const std::filesystem::path& directory);

}  // namespace fathom
