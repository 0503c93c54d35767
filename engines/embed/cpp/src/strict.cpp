#include "strict.hpp"

#include <algorithm>
#include <utility>

#include "text.hpp"

namespace lhanet::strict {

namespace {

// The longest side that is taken; a 64-channel feature map of 1024^3 voxels would not fit any card.
constexpr std::int64_t longest_side = 1024;

bool is_ascii_alnum(char letter) {
    return (letter >= '0' && letter <= '9') || (letter >= 'A' && letter <= 'Z') || (letter >= 'a' && letter <= 'z');
}

Refused about(const std::string& source, const std::string& path, const std::string& reason) {
    return Refused(source + ": " + (path.empty() ? "" : path + ": ") + reason);
}

std::string size_text(const Shape& shape) {
    return std::to_string(shape[0]) + "x" + std::to_string(shape[1]) + "x" + std::to_string(shape[2]);
}

}  // namespace

Refused Node::refused(const std::string& reason) const { return about(*source_, path_, reason); }

bool Node::null() const { return std::holds_alternative<std::nullptr_t>(value_->of); }

std::string Node::found() const {
    struct Say {
        std::string operator()(std::nullptr_t) const { return "nothing"; }
        std::string operator()(bool truth) const { return truth ? "true" : "false"; }
        std::string operator()(std::int64_t whole) const { return std::to_string(whole); }
        std::string operator()(json::Huge) const { return "a number beyond 64 bits"; }
        std::string operator()(double number) const { return text::general(number); }
        std::string operator()(const std::string& words) const { return text::quoted(words); }
        std::string operator()(const json::List&) const { return "a list"; }
        std::string operator()(const json::Object&) const { return "an object"; }
    };
    return std::visit(Say{}, value_->of);
}

template <typename T>
const T& Node::of(const char* kind) const {
    const T* value = std::get_if<T>(&value_->of);
    if (value == nullptr) {
        throw refused(std::string("expected ") + kind + ", found " + found());
    }
    return *value;
}

Object Node::object() const { return Object(of<json::Object>("an object"), *source_, path_); }

void Node::facts() const { of<json::Object>("an object"); }

std::vector<Node> Node::list(std::size_t at_least, std::size_t at_most) const {
    const auto& items = of<json::List>("a list");
    if (items.size() < at_least || items.size() > at_most) {
        throw refused(
            "expected " + std::to_string(at_least) + " to " + std::to_string(at_most) + " items, found " +
            std::to_string(items.size()));
    }
    std::vector<Node> nodes;
    for (std::size_t index = 0; index < items.size(); ++index) {
        nodes.emplace_back(items[index], *source_, path_ + "[" + std::to_string(index) + "]");
    }
    return nodes;
}

std::string Node::text() const {
    const auto& words = of<std::string>("a text");
    const auto points = text::code_points(words);
    if (words.empty() || !points || points->size() > 400 ||
        !std::all_of(points->begin(), points->end(), text::is_printable)) {
        throw refused("expected a text of 1 to 400 printable characters");
    }
    return words;
}

std::string Node::label() const {
    const std::string name = text();
    std::string slashed = "/" + name + "/";
    std::replace(slashed.begin(), slashed.end(), '\\', '/');
    if (slashed.find("/../") != std::string::npos || name[0] == '/' || name[0] == '-') {
        throw refused(text::quoted(name) + " looks like a path or an option, not like a name");
    }
    return name;
}

std::string Node::identifier() const {
    const std::string name = text();
    const auto is_fine = [](char letter) {
        return is_ascii_alnum(letter) || letter == '_' || letter == '.' || letter == '-';
    };
    if (name.size() > 64 || !is_ascii_alnum(name[0]) || !std::all_of(name.begin(), name.end(), is_fine)) {
        throw refused(text::quoted(name) + " is not a name of letters, digits, '_', '.' and '-'");
    }
    return name;
}

std::size_t Node::one_of(const std::string_view* choices, std::size_t count) const {
    const std::string word = text();
    const auto* found = std::find(choices, choices + count, word);
    if (found == choices + count) {
        std::string all;
        for (const auto* choice = choices; choice != choices + count; ++choice) {
            all += (all.empty() ? "" : " or ") + std::string(*choice);
        }
        throw refused("expected " + all + ", found " + text::quoted(word));
    }
    return static_cast<std::size_t>(found - choices);
}

std::string Node::sha256() const {
    const std::string hash = text();
    if (hash.size() != 64 || hash.find_first_not_of("0123456789abcdef") != std::string::npos) {
        throw refused("expected a SHA-256 of 64 lower-case hexadecimal digits");
    }
    return hash;
}

std::string Node::capability() const {
    if (std::holds_alternative<double>(value_->of)) {
        throw refused(found() + " needs quotes: a compute capability is a text, as in '8.6'");
    }
    const std::string words = text();
    const std::size_t dot = words.find('.');
    const bool is_short = (dot == 1 || dot == 2) && words.size() == dot + 2;
    const bool has_digits = words.find_first_not_of("0123456789") == dot &&
                            words.find_first_not_of("0123456789", dot + 1) == std::string::npos;
    if (!is_short || !has_digits) {
        throw refused(text::quoted(words) + " is not a compute capability; write it as '8.6'");
    }
    return dot == 2 && words[0] == '0' ? words.substr(1) : words;
}

std::int64_t Node::integer(std::int64_t low, std::int64_t high) const {
    const std::string range = "a whole number from " + std::to_string(low) + " to " + std::to_string(high);
    if (std::holds_alternative<json::Huge>(value_->of)) {
        throw refused("expected " + range + ", found " + found());
    }
    const auto number = of<std::int64_t>("a whole number");
    if (number < low || number > high) {
        throw refused("expected " + range + ", found " + found());
    }
    return number;
}

double Node::number(double low, double high) const {
    double number = 0;
    if (const auto* whole = std::get_if<std::int64_t>(&value_->of)) {
        number = static_cast<double>(*whole);
    } else if (const auto* huge = std::get_if<json::Huge>(&value_->of)) {
        number = huge->nearest;
    } else {
        number = of<double>("a number");
    }
    if (!std::isfinite(number) || number < low || number > high) {
        throw refused("expected a finite number of at least " + text::general(low) + ", found " + found());
    }
    return number;
}

Shape Node::shape() const {
    const auto sides = list_of([](const Node& side) { return side.integer(1, longest_side); }, 3, 3);
    return {sides[0], sides[1], sides[2]};
}

SpatialRange Node::spatial() const {
    Object sizes = object();
    SpatialRange range;
    range.min = sizes.take("min").shape();
    range.opt = sizes.take("opt").shape();
    range.max = sizes.take("max").shape();
    sizes.finish();
    for (std::size_t axis = 0; axis < 3; ++axis) {
        if (range.min[axis] > range.opt[axis] || range.opt[axis] > range.max[axis]) {
            throw refused(
                "range " + size_text(range.min) + ":" + size_text(range.opt) + ":" + size_text(range.max) + ": axis " +
                "DHW"[axis] + " needs min <= opt <= max, got " + std::to_string(range.min[axis]) + ", " +
                std::to_string(range.opt[axis]) + ", " + std::to_string(range.max[axis]));
        }
    }
    return range;
}

Object::Object(const json::Object& values, const std::string& source, std::string path)
    : values_(&values), source_(&source), path_(std::move(path)), taken_(values.keys.size()) {}

Refused Object::refused(const std::string& reason) const { return about(*source_, path_, reason); }

Node Object::take(std::string_view key) {
    const json::Value* value = values_->find(key);
    if (value == nullptr) {
        throw refused("key '" + std::string(key) + "' is missing");
    }
    taken_[static_cast<std::size_t>(value - values_->values.data())] = true;
    return Node(*value, *source_, path_.empty() ? std::string(key) : path_ + "." + std::string(key));
}

void Object::finish() const {
    std::vector<std::string> left;
    for (std::size_t index = 0; index < taken_.size(); ++index) {
        if (!taken_[index]) {
            left.push_back(text::quoted(values_->keys[index]));
        }
    }
    if (left.empty()) {
        return;
    }
    std::sort(left.begin(), left.end());
    std::string all;
    for (const auto& key : left) {
        all += (all.empty() ? "" : ", ") + key;
    }
    throw refused("unknown key " + all);
}

}  // namespace lhanet::strict
