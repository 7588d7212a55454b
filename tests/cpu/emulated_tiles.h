// AmxTiles (cpu/amx_tiles.h) as plain loops, by the definitions of Intel's manual. What hardware refuses is an error here: a
// tile that is not configured, shapes that do not fit, a configuration with rows but no bytes.
#pragma once

#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "cpu/amx_tiles.h"

namespace fathom {

struct EmulatedTiles {
    struct Tile {
        int64_t rows = 0, bytes = 0;
        uint8_t data[16][64] = {};
    };
    static Tile& tile(int t) {
        thread_local std::array<Tile, 8> all;
        return all[static_cast<size_t>(t)];
    }
    static Tile& configured(int t) {
        check(tile(t).rows > 0 && tile(t).bytes > 0, "a tile is used that is not configured");
        return tile(t);
    }

    static void configure(const TileConfig& config) {
        for (int t = 0; t < 8; ++t) {
            tile(t) = {config.rows[t], config.row_bytes[t], {}};
            check(tile(t).rows <= 16 && tile(t).bytes <= 64 && (tile(t).rows > 0) == (tile(t).bytes > 0), "a tile's shape");
        }
    }
    static void release() { configure({}); }

    template <int T>
    static void zero() {
        std::memset(configured(T).data, 0, sizeof Tile::data);
    }
    template <int T>
    static void load(const void* from, int64_t stride) {
        zero<T>();
        for (int64_t r = 0; r < tile(T).rows; ++r)
            std::memcpy(tile(T).data[r], static_cast<const char*>(from) + r * stride, static_cast<size_t>(tile(T).bytes));
    }
    template <int T>
    static void store(void* to, int64_t stride) {
        for (int64_t r = 0; r < configured(T).rows; ++r)
            std::memcpy(static_cast<char*>(to) + r * stride, tile(T).data[r], static_cast<size_t>(tile(T).bytes));
    }

    template <class T>
    static T number(const Tile& from, int64_t row, int64_t column) {
        T result;
        std::memcpy(&result, from.data[row] + column * static_cast<int64_t>(sizeof(T)), sizeof(T));
        return result;
    }
    static float normal(float x) { return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x; }
    static float bf16(const Tile& from, int64_t row, int64_t column) {
        const uint32_t bits = uint32_t{number<uint16_t>(from, row, column)} << 16;
        float result = 0;
        std::memcpy(&result, &bits, sizeof result);
        return normal(result);
    }
    static void check_shapes(int s, int l, int r) {
        const Tile &sum = configured(s), &left = configured(l), &right = configured(r);
        check(sum.rows == left.rows && sum.bytes == right.bytes && left.bytes == 4 * right.rows, "shapes of tiles do not fit");
    }

    // Every number of the tile `Sum` = value(its place, what it was).
    template <class T, int Sum, int Left, int Right, class Value>
    static void update(const Value& value) {
        check_shapes(Sum, Left, Right);
        Tile& sum = tile(Sum);
        for (int64_t m = 0; m < sum.rows; ++m)
            for (int64_t n = 0; n < sum.bytes / 4; ++n) {
                const T result = value(m, n, number<T>(sum, m, n));
                std::memcpy(sum.data[m] + 4 * n, &result, sizeof result);
            }
    }
    template <int Sum, int Left, int Right>
    static void add_bf16() {
        update<float, Sum, Left, Right>([](int64_t m, int64_t n, float sum) {
            float chain[2] = {0, 0};
            for (int64_t k = 0; k < tile(Right).rows; ++k)
                for (const int i : {0, 1})
                    chain[i] = normal(std::fma(bf16(tile(Left), m, 2 * k + i), bf16(tile(Right), k, 2 * n + i), chain[i]));
            return normal(normal(sum) + normal(chain[0] + chain[1]));
        });
    }
    template <int Sum, int Left, int Right>
    static void add_int8() {
        update<int32_t, Sum, Left, Right>([](int64_t m, int64_t n, int32_t sum) {
            for (int64_t k = 0; k < 4 * tile(Right).rows; ++k)
                sum += number<int8_t>(tile(Left), m, k) * number<int8_t>(tile(Right), k / 4, 4 * n + k % 4);
            return sum;
        });
    }
};

}  // namespace fathom
