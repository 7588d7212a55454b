// What happens when a file is cut short, or its disk vanishes, while it is mapped: a sentence and exit code 1 instead of
// SIGBUS.
#pragma once

#include <cstddef>
#include <string>

namespace fathom {

// Reading pages of [data, data + size) that the file no longer has ends the process, naming `path`. The system tells of it only
// by a signal in the midst of whatever reads, so there is nothing to throw. Mappings beyond the 1024th are not watched.
void guard_mapping(const void* data, size_t size, const std::string& path);
void release_mapping(const void* data);

}  // namespace fathom
