#include "base/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/mapping_guard.h"

namespace fathom {
namespace {

constexpr size_t kWriteBuffer = 1 << 20;

[[noreturn]] void fail(const std::filesystem::path& path, std::string_view action) {
    const int code = errno;
    const std::string advice = code == ENOSPC || code == EDQUOT ? " (the disk is full: free some space and run again)" : "";
    throw Error(ErrorKind::kIo, fmt::format("{}: cannot {}: {}{}", path.string(), action, std::strerror(code), advice));
}

std::filesystem::path folder_of(const std::filesystem::path& path) {
    return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

}  // namespace

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a FIFO is refused below, not waited for
    if (fd < 0) fail(path, "open");
    struct stat info {};
    if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        ::close(fd);
        throw Error(ErrorKind::kIo, fmt::format("{}: not a regular file", path.string()));
    }
    size_ = static_cast<size_t>(info.st_size);
    if (size_ > 0) {
        void* address = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
        if (address == MAP_FAILED) {
            ::close(fd);
            fail(path, "map");
        }
        data_ = static_cast<const std::byte*>(address);
        guard_mapping(data_, size_, path.string());
    }
    ::close(fd);
}

MappedFile::~MappedFile() {
    if (data_ == nullptr) return;
    release_mapping(data_);
    ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      path_(std::move(other.path_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(path_, other.path_);
    return *this;
}

AtomicFile::AtomicFile(std::filesystem::path path, std::string job)
    : path_(std::move(path)),
      partial_(path_.string() + ".partial"),
      journal_(partial_.string() + ".job"),
      job_(std::move(job)) {
    if (std::filesystem::is_directory(path_)) {
        errno = EISDIR;
        fail(path_, "write");
    }
    const int truncate = job_.empty() ? O_TRUNC : 0;
    fd_ = ::open(partial_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | truncate, 0644);
    if (fd_ < 0) fail(partial_, "create");
    if (!job_.empty()) written_ = kept_by_job();
    kept_ = written_ > 0;
    // Before the bytes that it speaks of are gone.
    if (!kept_ && ::unlink(journal_.c_str()) == 0) sync_directory(folder_of(path_));
    const auto at = static_cast<off_t>(written_);
    if (truncate == 0 && (::ftruncate(fd_, at) != 0 || ::lseek(fd_, at, SEEK_SET) != at)) fail(partial_, "cut");
    pending_.reserve(kWriteBuffer);
}

AtomicFile::~AtomicFile() {
    if (fd_ < 0) return;
    ::close(fd_);
    if (kept_) return;
    ::unlink(partial_.c_str());
}

// The journal is one line with the number of bytes, and behind it the job.
uint64_t AtomicFile::kept_by_job() const {
    struct stat info {};
    if (::fstat(fd_, &info) != 0 || !std::filesystem::exists(journal_)) return 0;
    const std::string journal = read_text(journal_);
    uint64_t kept = 0;
    const auto [end, error] = std::from_chars(journal.data(), journal.data() + journal.size(), kept);
    const bool ours = error == std::errc() && std::string_view(end, journal.data() + journal.size()) == "\n" + job_;
    return ours && kept <= static_cast<uint64_t>(info.st_size) ? kept : 0;
}

void AtomicFile::keep() {
    check(!job_.empty(), "AtomicFile::keep: without a job");
    flush();
    if (::fdatasync(fd_) != 0) fail(partial_, "sync");
    write_text_atomically(journal_, fmt::format("{}\n{}", written_, job_));
    kept_ = true;
}

void AtomicFile::write(std::span<const std::byte> bytes) {
    written_ += bytes.size();
    if (pending_.size() + bytes.size() > kWriteBuffer) flush();
    if (bytes.size() >= kWriteBuffer) return write_through(bytes);
    pending_.insert(pending_.end(), bytes.begin(), bytes.end());
}

void AtomicFile::write(std::string_view text) { write(std::as_bytes(std::span(text))); }

void AtomicFile::flush() {
    write_through(pending_);
    pending_.clear();
}

void AtomicFile::write_through(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
        const ssize_t count = ::write(fd_, bytes.data(), bytes.size());
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) fail(partial_, "write");
        bytes = bytes.subspan(static_cast<size_t>(count));
    }
}

void AtomicFile::commit() {
    flush();
    if (::fsync(fd_) != 0) fail(partial_, "sync");
    if (::close(std::exchange(fd_, -1)) != 0) fail(partial_, "close");
    if (::rename(partial_.c_str(), path_.c_str()) != 0) {
        const int code = errno;
        ::unlink(partial_.c_str());
        errno = code;
        fail(path_, "rename into place");
    }
    if (!job_.empty()) ::unlink(journal_.c_str());
    sync_directory(folder_of(path_));
}

std::string read_text(const std::filesystem::path& path) {
    const MappedFile file(path);
    return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

void write_text_atomically(const std::filesystem::path& path, std::string_view text) {
    AtomicFile file(path);
    file.write(text);
    file.commit();
}

void sync_directory(const std::filesystem::path& directory) {
    const int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) fail(directory, "open");
    ::fsync(fd);
    ::close(fd);
}

}  // namespace fathom
