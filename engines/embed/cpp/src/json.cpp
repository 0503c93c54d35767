#include "json.hpp"

#include <charconv>
#include <cmath>
#include <locale>
#include <sstream>
#include <system_error>
#include <unordered_set>
#include <utility>

#include "file.hpp"
#include "lhanet/error.hpp"
#include "text.hpp"

namespace lhanet::json {

namespace {

constexpr std::size_t most_bytes = std::size_t{1} << 20;
// Python's interpreter stops a little below its 1000 calls; a manifest is 5 deep.
constexpr int most_nesting = 900;
// Python's int() stops here, because its time grows with the square.
constexpr std::size_t most_digits = 4300;

bool is_digit(char letter) { return letter >= '0' && letter <= '9'; }

class Parser {
public:
    explicit Parser(std::string_view text) : text_(text) {}

    Value document() {
        Value value = this->value(0);
        space();
        if (at_ != text_.size()) {
            fail("there is something behind its end");
        }
        return value;
    }

private:
    [[noreturn]] void fail(const std::string& reason) const {
        throw Refused(reason + " (byte " + std::to_string(at_) + ")");
    }

    // NUL at the end, which is in no place of JSON what is expected.
    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

    bool take(char letter) {
        if (peek() != letter) {
            return false;
        }
        ++at_;
        return true;
    }

    bool take(std::string_view word) {
        if (text_.substr(at_, word.size()) != word) {
            return false;
        }
        at_ += word.size();
        return true;
    }

    void space() {
        while (at_ < text_.size() && std::string_view(" \t\n\r").find(text_[at_]) != std::string_view::npos) {
            ++at_;
        }
    }

    Value value(int depth) {
        if (depth > most_nesting) {
            fail("it is nested too deep");
        }
        space();
        for (const std::string_view name : {"NaN", "Infinity", "-Infinity"}) {
            if (take(name)) {
                fail(std::string(name) + " is not a number that JSON knows");
            }
        }
        if (take("null")) {
            return {nullptr};
        }
        if (take("true")) {
            return {true};
        }
        if (take("false")) {
            return {false};
        }
        if (take('"')) {
            return {string()};
        }
        if (take('[')) {
            return {list(depth)};
        }
        if (take('{')) {
            return {object(depth)};
        }
        return number();
    }

    List list(int depth) {
        List items;
        space();
        if (take(']')) {
            return items;
        }
        while (true) {
            items.push_back(value(depth + 1));
            space();
            if (take(']')) {
                return items;
            }
            if (!take(',')) {
                fail("expected ',' or ']'");
            }
        }
    }

    Object object(int depth) {
        Object found;
        std::unordered_set<std::string> seen;
        space();
        if (take('}')) {
            return found;
        }
        while (true) {
            space();
            if (!take('"')) {
                fail("expected a key in double quotes");
            }
            found.keys.push_back(string());
            if (!seen.insert(found.keys.back()).second) {
                fail("key " + text::quoted(found.keys.back()) + " occurs twice");
            }
            space();
            if (!take(':')) {
                fail("expected ':'");
            }
            found.values.push_back(value(depth + 1));
            space();
            if (take('}')) {
                return found;
            }
            if (!take(',')) {
                fail("expected ',' or '}'");
            }
        }
    }

    std::string string() {
        std::string out;
        while (true) {
            if (at_ == text_.size()) {
                fail("a text does not end");
            }
            const char letter = text_[at_];
            if (static_cast<unsigned char>(letter) < 0x20) {
                fail("a text holds a control character");
            }
            ++at_;
            if (letter == '"') {
                return out;
            }
            if (letter == '\\') {
                escape(out);
            } else {
                out += letter;
            }
        }
    }

    void escape(std::string& out) {
        constexpr std::string_view names = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
        const std::size_t index = names.find(peek());
        if (at_ < text_.size() && index != std::string_view::npos) {
            out += meanings[index];
            ++at_;
            return;
        }
        if (!take('u')) {
            fail("a text holds an escape that JSON does not know");
        }
        char32_t point = four_digits();
        if (point >= 0xd800 && point <= 0xdbff && text_.substr(at_, 2) == "\\u") {
            const std::size_t before = at_;
            at_ += 2;
            const char32_t second = four_digits();
            if (second >= 0xdc00 && second <= 0xdfff) {
                point = 0x10000 + ((point - 0xd800) << 10 | (second - 0xdc00));
            } else {
                at_ = before;
            }
        }
        text::append_utf8(out, point);
    }

    char32_t four_digits() {
        const auto digits = text_.substr(at_, 4);
        unsigned value = 0;
        const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
        if (digits.size() != 4 || error != std::errc() || end != digits.data() + 4) {
            fail("a text holds an escape of other than four digits");
        }
        at_ += 4;
        return value;
    }

    Value number() {
        const std::size_t start = at_;
        take('-');
        const std::size_t first = at_;
        if (!take('0')) {
            digits("expected a value");
        }
        const std::size_t length = at_ - first;
        bool is_whole = true;
        if (take('.')) {
            is_whole = false;
            digits("expected a digit");
        }
        if (peek() == 'e' || peek() == 'E') {
            is_whole = false;
            ++at_;
            if (!take('-')) {
                take('+');
            }
            digits("expected a digit");
        }
        const auto found = text_.substr(start, at_ - start);
        if (!is_whole) {
            const double value = nearest(found);
            if (!std::isfinite(value)) {
                fail(std::string(found.substr(0, 40)) + " is beyond the range of a double");
            }
            return {value};
        }
        if (length > most_digits) {
            fail("a number has more than " + std::to_string(most_digits) + " digits");
        }
        std::int64_t value = 0;
        if (std::from_chars(found.data(), found.data() + found.size(), value).ec == std::errc()) {
            return {value};
        }
        return {Huge{nearest(found)}};
    }

    void digits(const char* or_else) {
        if (!is_digit(peek())) {
            fail(or_else);
        }
        while (is_digit(peek())) {
            ++at_;
        }
    }

    // Not strtod, which reads "1.5" as 1 where the application's language has a decimal comma. An exponent that makes
    // it infinite gives infinity, one that makes it vanish 0.
    static double nearest(std::string_view number) {
        std::istringstream stream{std::string(number)};
        stream.imbue(std::locale::classic());
        double value = 0;
        stream >> value;
        return stream.fail() ? HUGE_VAL : value;
    }

    std::string_view text_;
    std::size_t at_ = 0;
};

const char* name_of(const Value& value) {
    constexpr const char* names[] = {"null", "true or false", "number", "number", "number", "text", "list", "object"};
    return names[value.of.index()];
}

std::string contents(const std::filesystem::path& path) {
    try {
        File file = File::reading(path);
        // One more byte than allowed tells a file that is too large.
        std::string raw(most_bytes + 1, '\0');
        raw.resize(file.read(reinterpret_cast<unsigned char*>(raw.data()), raw.size()));
        return raw;
    } catch (const std::system_error& error) {
        throw Refused("cannot read " + path.string() + ": " + reason(error.code().value()));
    }
}

}  // namespace

const Value* Object::find(std::string_view key) const {
    for (std::size_t index = 0; index < keys.size(); ++index) {
        if (keys[index] == key) {
            return &values[index];
        }
    }
    return nullptr;
}

Value parse(std::string_view text) {
    if (!text::code_points(text)) {
        throw Refused("it is not UTF-8");
    }
    return Parser(text).document();
}

Object read_object(const std::filesystem::path& path) {
    const std::string raw = contents(path);
    if (raw.size() > most_bytes) {
        throw Refused(
            path.string() + " is larger than " + std::to_string(most_bytes) +
            " bytes; this is no manifest of this toolkit");
    }
    Value value;
    try {
        value = parse(raw);
    } catch (const Refused& error) {
        throw Refused(path.string() + " is not valid JSON: " + error.what());
    }
    if (auto* object = std::get_if<Object>(&value.of)) {
        return std::move(*object);
    }
    throw Refused(path.string() + " holds a JSON " + name_of(value) + ", not an object");
}

}  // namespace lhanet::json
