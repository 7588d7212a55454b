// The files of web/, which cmake/embed_web.cmake turned into bytes.
#pragma once

#include <span>
#include <string_view>

namespace fathom {

struct WebAsset {
    std::string_view name, content_type, body;
};

[[nodiscard]] std::span<const WebAsset> web_assets();

}  // namespace fathom
