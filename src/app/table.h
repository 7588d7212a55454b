// Tables on stdout: aligned for people, the same data as JSON for programs.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace fathom {

// One cell: what a person reads, and the value behind it.
struct Cell {
    std::variant<std::string, int64_t, double, bool> value;
    std::string text;

    Cell(std::string words) : value(words), text(std::move(words)) {}  // NOLINT(google-explicit-constructor)
    Cell(const char* words) : Cell(std::string(words)) {}              // NOLINT(google-explicit-constructor)
    Cell(bool truth) : value(truth), text(truth ? "yes" : "no") {}     // NOLINT(google-explicit-constructor)
    Cell(int64_t number);                                              // NOLINT(google-explicit-constructor): 12 345 678
    // A number in another spelling or with a unit: {bytes, human_bytes(bytes)}.
    Cell(int64_t number, std::string spelling) : value(number), text(std::move(spelling)) {}
    Cell(double number, std::string spelling) : value(number), text(std::move(spelling)) {}
};

class Table {
public:
    struct Column {
        std::string title;   // for people: "tokens/s"
        std::string key;     // in JSON: "tokens_per_second"
        bool right = false;  // numbers go to the right
    };

    explicit Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

    // As many cells as columns.
    void add(std::vector<Cell> row);
    [[nodiscard]] bool empty() const { return rows_.empty(); }

    // Aligned text, with rules drawn as "─" when `unicode`, else "-".
    [[nodiscard]] std::string text(bool unicode) const;
    // An array of objects, one per row.
    [[nodiscard]] std::string json() const;
    // To stdout: JSON when `as_json`, else text.
    void print(bool as_json) const;

private:
    std::vector<Column> columns_;
    std::vector<std::vector<Cell>> rows_;
};

// True when stdout is a terminal whose locale is UTF-8.
[[nodiscard]] bool stdout_draws_unicode();

// Columns a terminal needs for UTF-8 text: its code points (no combining or double-width characters expected in our tables).
[[nodiscard]] size_t display_width(const std::string& text);

}  // namespace fathom
