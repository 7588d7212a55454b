#include "app/table.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace fathom {
namespace {

Table example() {
    Table table({{"tensor", "name"}, {"elements", "elements", true}, {"share", "share", true}, {"shared", "shared"}});
    table.add({"lm_head.weight", int64_t{1234567}, {0.25, "25 %"}, true});
    table.add({"größe", int64_t{-42}, {0.5, "50 %"}, false});
    return table;
}

TEST(Table, AlignsNumbersRightAndWordsLeft) {
    EXPECT_EQ(example().text(false),
              "tensor           elements  share  shared\n"
              "--------------  ---------  -----  ------\n"
              "lm_head.weight  1 234 567   25 %  yes\n"
              "größe                 -42   50 %  no\n");
}

TEST(Table, DrawsItsRuleInUnicodeOnlyWhereAsked) {
    EXPECT_NE(example().text(true).find("──────────────  ─────────"), std::string::npos);
    EXPECT_EQ(example().text(false).find("─"), std::string::npos);
}

TEST(Table, JsonHoldsTheValuesNotTheirSpelling) {
    const auto rows = nlohmann::json::parse(example().json());
    ASSERT_EQ(rows.size(), 2u);
    EXPECT_EQ(rows[0]["elements"], 1234567);
    EXPECT_EQ(rows[0]["share"], 0.25);
    EXPECT_EQ(rows[0]["shared"], true);
    EXPECT_EQ(rows[1]["name"], "größe");
    EXPECT_EQ(nlohmann::json::parse(Table(std::vector<Table::Column>{{"a", "a"}}).json()), nlohmann::json::array());
}

TEST(Table, ARowHasOneCellPerColumn) {
    Table table({{"a", "a"}, {"b", "b"}});
    EXPECT_THROW(table.add({"alone"}), LogicError);
}

TEST(Cell, GroupsDigitsByThousands) {
    EXPECT_EQ(Cell(int64_t{0}).text, "0");
    EXPECT_EQ(Cell(int64_t{999}).text, "999");
    EXPECT_EQ(Cell(int64_t{-1000}).text, "-1 000");
    EXPECT_EQ(Cell(int64_t{671026419200}).text, "671 026 419 200");
}

}  // namespace
}  // namespace fathom
