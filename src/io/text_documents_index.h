// What is known about the documents of a corpus: an index table beside it, and which documents its licences rule out.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "io/text_documents.h"

namespace fathom {

// A tab-separated table with a header line. Columns used: `licence` (or `license`), `bytes` (size of the document's text),
// `title`, and, where one table describes several files, `split`.
//
// Rows are NOT taken to be in the order of the documents, for published indexes are sorted while corpora are shuffled. A row
// belongs to the document of its size; among documents of one size, to the one whose first line is its title; and where that
// leaves a choice, all rows in question must have the same verdict. The table describes the file only when the sizes of one
// split's rows are, as a multiset, exactly those of the documents. Everything else is an Error{kInput}: a document with a
// licence we may not use is worse than a run that does not start.
//
// Returns excluded[i] = document i's licence matches `licence_pattern` (ECMAScript, searched, case-sensitive).
[[nodiscard]] std::vector<bool> documents_excluded_by_licence(TextDocuments& documents, const std::filesystem::path& index,
                                                              const std::string& licence_pattern);

}  // namespace fathom
