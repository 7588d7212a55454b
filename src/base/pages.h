// What the system should do with the pages of a mapped file. Wishes: where one is not granted, everything works as well.
#pragma once

#include <cstdint>

namespace fathom {

// They will be read soon: begin to fetch them.
void want_pages(const void* data, int64_t bytes);
// Those that lie wholly inside have been read for the last time: they need not stay in this process's memory. The system may
// keep them for the next reader while it has room.
void done_with_pages(const void* data, int64_t bytes);

}  // namespace fathom
