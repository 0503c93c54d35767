// JSON as Python's side reads it: one value, in UTF-8, no key twice, no NaN, nothing behind it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace lhanet::json {

struct Value;

/// A whole number beyond 64 bits, of which only the nearest double is known.
struct Huge {
    double nearest = 0;
};

using List = std::vector<Value>;

/// Keys and their values in the order of the document.
struct Object {
    std::vector<std::string> keys;
    std::vector<Value> values;

    /// The value of a key, null where there is none.
    const Value* find(std::string_view key) const;
};

/// One value. Texts are UTF-8; a lone surrogate, which JSON can escape, is three bytes like any other character.
struct Value {
    std::variant<std::nullptr_t, bool, std::int64_t, Huge, double, std::string, List, Object> of = nullptr;
};

/// The value that a text is. Throws `Refused` with the reason alone, for the caller to say of which file.
Value parse(std::string_view text);

/// The object in a file that may be anything, read up to a megabyte. Throws `Refused` naming the file.
Object read_object(const std::filesystem::path& path);

}  // namespace lhanet::json
