#include "serve/api_error.h"

#include <string_view>

namespace fathom {
namespace {

std::string_view openai_type(int status) {
    if (status == 401 || status == 403) return "authentication_error";
    if (status == 404) return "not_found_error";
    if (status == 429) return "rate_limit_error";
    if (status == 503) return "overloaded_error";
    return status >= 500 ? "server_error" : "invalid_request_error";
}

std::string_view anthropic_type(int status) {
    if (status == 503) return "overloaded_error";
    if (status == 413) return "request_too_large";
    if (status >= 500) return "api_error";
    return openai_type(status);
}

}  // namespace

Json openai_error(const ApiError& error) {
    const auto text_or_null = [](const std::string& text) { return text.empty() ? Json() : Json(text); };
    return {{"error",
             {{"message", error.what()},
              {"type", openai_type(error.status())},
              {"param", text_or_null(error.param())},
              {"code", text_or_null(error.code())}}}};
}

Json anthropic_error(const ApiError& error) {
    return {{"type", "error"}, {"error", {{"type", anthropic_type(error.status())}, {"message", error.what()}}}};
}

}  // namespace fathom
