// Reading facts that somebody else wrote: every value has the type asked for, or the message names its key path.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "json.hpp"
#include "lhanet/error.hpp"
#include "lhanet/manifest.hpp"

namespace lhanet::strict {

class Object;

/// One value of a document together with where it stands, as `file: engine.profiles[0].min`.
///
/// Looks at the value and at the document's name; both must outlive it. All functions but `null` throw `Refused`.
class Node {
public:
    Node(const json::Value& value, const std::string& source, std::string path)
        : value_(&value), source_(&source), path_(std::move(path)) {}

    /// The error for this value, to be thrown by the caller.
    Refused refused(const std::string& reason) const;

    /// Whether the document says `null`.
    bool null() const;

    /// This value as an object whose keys are asked for one by one.
    Object object() const;

    /// Check that this is an object, whatever it holds.
    void facts() const;

    /// The items of a list.
    std::vector<Node> list(std::size_t at_least, std::size_t at_most) const;

    /// What `read` makes of each item of a list.
    template <typename Read>
    auto list_of(Read read, std::size_t at_least, std::size_t at_most) const {
        std::vector<decltype(read(*this))> found;
        for (const Node& item : list(at_least, at_most)) {
            found.push_back(read(item));
        }
        return found;
    }

    /// A text of printable characters, neither empty nor longer than a line.
    std::string text() const;

    /// A text that people read and programs may make a file name of; it cannot climb out of a folder.
    std::string label() const;

    /// A name of ASCII letters, digits, `_`, `.` and `-` that starts with a letter or digit.
    std::string identifier() const;

    /// Which of the given texts it is.
    template <std::size_t count>
    std::size_t one_of(const std::array<std::string_view, count>& choices) const {
        return one_of(choices.data(), count);
    }

    /// A SHA-256 in lower-case hex.
    std::string sha256() const;

    /// A CUDA compute capability as `8.6`.
    std::string capability() const;

    /// A whole number from `low` to `high`.
    std::int64_t integer(std::int64_t low, std::int64_t high = INT64_MAX) const;

    /// A finite number from `low` to `high`.
    double number(double low, double high = HUGE_VAL) const;

    /// A volume size (D,H,W) in voxels.
    Shape shape() const;

    /// A range of sizes as an object with `min`, `opt` and `max`.
    SpatialRange spatial() const;

private:
    template <typename T>
    const T& of(const char* kind) const;
    std::string found() const;
    std::size_t one_of(const std::string_view* choices, std::size_t count) const;

    const json::Value* value_;
    const std::string* source_;
    std::string path_;

    friend class Object;
};

/// The keys of one object; what nobody asked for is refused by `finish`.
class Object {
public:
    /// Looks at the object and at the document's name; both must outlive it.
    Object(const json::Object& values, const std::string& source, std::string path);

    /// The value of a key that has to be there.
    Node take(std::string_view key);

    /// Read the value of a key that may be missing or null, and forget it.
    template <typename Read>
    void take_if(std::string_view key, Read read) {
        if (values_->find(key) != nullptr) {
            const Node node = take(key);
            if (!node.null()) {
                read(node);
            }
        }
    }

    /// Refuse keys that are left: a misspelt key must not look like an accepted one.
    void finish() const;

    /// The error for the object, to be thrown by the caller.
    Refused refused(const std::string& reason) const;

private:
    const json::Object* values_;
    const std::string* source_;
    std::string path_;
    std::vector<bool> taken_;
};

}  // namespace lhanet::strict
