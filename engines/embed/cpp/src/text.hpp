// Texts for messages, written as Python writes them, and what UTF-8 is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lhanet::text {

/// A number with up to `digits` significant digits, as `%g` writes it; NaN without a sign.
std::string general(double value, int digits = 6);

/// A whole number with commas between thousands.
std::string grouped(std::uint64_t value);

/// Sides as `(20, 18, 16)`.
std::string sides(const std::vector<std::int64_t>& sides);

/// Bytes as `b'n+1\x00'`.
std::string bytes(const unsigned char* data, std::size_t count);

/// The code points of UTF-8, nothing for bytes that are not. Surrogates are let pass only on request.
std::optional<std::vector<char32_t>> code_points(std::string_view utf8, bool with_surrogates = false);

/// Append a code point as UTF-8, a surrogate like any other.
void append_utf8(std::string& text, char32_t point);

/// Whether a character can be seen: no control or format character, surrogate, private one, or space but U+0020.
bool is_printable(char32_t point);

/// A text in quotes on one line, cut after 60 characters, what cannot be seen escaped.
std::string quoted(std::string_view text);

/// ASCII letters in lower case.
std::string lower(std::string text);

/// Whether a text ends in another one.
bool ends_with(std::string_view text, std::string_view end);

}  // namespace lhanet::text
