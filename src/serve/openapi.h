// /openapi.json: what the server understands, for machines.
#pragma once

#include "serve/api_error.h"

namespace fathom {

[[nodiscard]] Json openapi_document(const std::string& version);

}  // namespace fathom
