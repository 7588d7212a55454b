// What a client is told when its request cannot be served.
#pragma once

#include <exception>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

namespace fathom {

using Json = nlohmann::ordered_json;

// Thrown by whatever reads a request; caught by the request handler.
class ApiError : public std::exception {
public:
    // `param`: the field at fault, e.g. "messages[0].role"; may be empty.
    ApiError(int status, std::string message, std::string param = {}, std::string code = {})
        : status_(status),
          message_(std::move(message)),
          param_(std::move(param)),
          code_(std::move(code)) {}

    [[nodiscard]] int status() const { return status_; }
    [[nodiscard]] const char* what() const noexcept override { return message_.c_str(); }
    [[nodiscard]] const std::string& param() const { return param_; }
    [[nodiscard]] const std::string& code() const { return code_; }
    // Seconds; 0: none is told.
    int retry_after = 0;

private:
    int status_;
    std::string message_, param_, code_;
};

// {"error": {"message", "type", "param", "code"}} as OpenAI writes it.
[[nodiscard]] Json openai_error(const ApiError& error);
// {"type": "error", "error": {"type", "message"}} as Anthropic writes it.
[[nodiscard]] Json anthropic_error(const ApiError& error);

// JSON text on one line; what is not UTF-8 comes out as U+FFFD.
[[nodiscard]] inline std::string dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace fathom
