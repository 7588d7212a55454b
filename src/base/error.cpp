#include "base/error.h"

#include <fmt/format.h>

namespace fathom {

void fail_check(std::string_view message, const std::source_location& where) {
    throw LogicError(fmt::format("{}:{}: {}", where.file_name(), where.line(), message));
}

}  // namespace fathom
