#include "text.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <iterator>

namespace lhanet::text {

namespace {

struct Range {
    char32_t first, last;
};

// Categories Cc, Cf, Cs, Co, Zs, Zl, Zp and noncharacters of Unicode 14, without U+0020. Code points that Unicode has
// not given away yet are left out: which ones they are differs from one Python to the next, too.
constexpr Range unseen[] = {
    {0x0, 0x1f}, {0x7f, 0xa0}, {0xad, 0xad}, {0x600, 0x605}, {0x61c, 0x61c}, {0x6dd, 0x6dd}, {0x70f, 0x70f},
    {0x890, 0x891}, {0x8e2, 0x8e2}, {0x1680, 0x1680}, {0x180e, 0x180e}, {0x2000, 0x200f}, {0x2028, 0x202f},
    {0x205f, 0x2064}, {0x2066, 0x206f}, {0x3000, 0x3000}, {0xd800, 0xf8ff}, {0xfdd0, 0xfdef}, {0xfeff, 0xfeff},
    {0xfff9, 0xfffb}, {0xfffe, 0xffff}, {0x110bd, 0x110bd}, {0x110cd, 0x110cd}, {0x13430, 0x13438},
    {0x1bca0, 0x1bca3}, {0x1d173, 0x1d17a}, {0x1fffe, 0x1ffff}, {0x2fffe, 0x2ffff}, {0x3fffe, 0x3ffff},
    {0x4fffe, 0x4ffff}, {0x5fffe, 0x5ffff}, {0x6fffe, 0x6ffff}, {0x7fffe, 0x7ffff}, {0x8fffe, 0x8ffff},
    {0x9fffe, 0x9ffff}, {0xafffe, 0xaffff}, {0xbfffe, 0xbffff}, {0xcfffe, 0xcffff}, {0xdfffe, 0xdffff},
    {0xe0001, 0xe0001}, {0xe0020, 0xe007f}, {0xefffe, 0x10ffff},
};

constexpr std::size_t most_shown = 60;

std::string hex(char32_t value, int digits) {
    std::array<char, 16> out{};
    std::snprintf(out.data(), out.size(), "%0*x", digits, static_cast<unsigned>(value));
    return out.data();
}

}  // namespace

std::string general(double value, int digits) {
    if (std::isnan(value)) {
        return "nan";
    }
    std::array<char, 64> out{};
    std::snprintf(out.data(), out.size(), "%.*g", digits, value);
    return out.data();
}

std::string grouped(std::uint64_t value) {
    std::string digits = std::to_string(value);
    for (std::size_t at = digits.size(); at > 3;) {
        at -= 3;
        digits.insert(at, ",");
    }
    return digits;
}

std::string sides(const std::vector<std::int64_t>& sides) {
    std::string out = "(";
    for (std::size_t axis = 0; axis < sides.size(); ++axis) {
        out += (axis == 0 ? "" : ", ") + std::to_string(sides[axis]);
    }
    return out + (sides.size() == 1 ? ",)" : ")");
}

std::string bytes(const unsigned char* data, std::size_t count) {
    const auto* end = data + count;
    const bool has_single = std::find(data, end, '\'') != end;
    const char quote = has_single && std::find(data, end, '"') == end ? '"' : '\'';
    std::string out = std::string("b") + quote;
    for (const auto* at = data; at != end; ++at) {
        const char letter = static_cast<char>(*at);
        if (letter == quote || letter == '\\') {
            out += std::string("\\") + letter;
        } else if (letter == '\t' || letter == '\n' || letter == '\r') {
            out += letter == '\t' ? "\\t" : letter == '\n' ? "\\n" : "\\r";
        } else if (*at < 0x20 || *at >= 0x7f) {
            out += "\\x" + hex(*at, 2);
        } else {
            out += letter;
        }
    }
    return out + quote;
}

std::optional<std::vector<char32_t>> code_points(std::string_view utf8, bool with_surrogates) {
    std::vector<char32_t> points;
    points.reserve(utf8.size());
    for (std::size_t at = 0; at < utf8.size();) {
        const auto lead = static_cast<unsigned char>(utf8[at]);
        if ((lead >= 0x80 && lead < 0xc2) || lead > 0xf4) {
            return std::nullopt;
        }
        const std::size_t more = lead < 0x80 ? 0 : lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
        if (utf8.size() - at <= more) {
            return std::nullopt;
        }
        char32_t point = more == 0 ? lead : lead & (0x3fU >> more);
        for (std::size_t index = 1; index <= more; ++index) {
            const auto byte = static_cast<unsigned char>(utf8[at + index]);
            if ((byte & 0xc0) != 0x80) {
                return std::nullopt;
            }
            point = point << 6 | (byte & 0x3fU);
        }
        // A shorter spelling of the same character, half of a pair, or beyond Unicode.
        const bool is_surrogate = point >= 0xd800 && point <= 0xdfff;
        if ((more == 2 && point < 0x800) || (more == 3 && point < 0x10000) || point > 0x10ffff ||
            (is_surrogate && !with_surrogates)) {
            return std::nullopt;
        }
        points.push_back(point);
        at += more + 1;
    }
    return points;
}

void append_utf8(std::string& text, char32_t point) {
    const auto tail = [&](int shift) { text += static_cast<char>(0x80 | (point >> shift & 0x3f)); };
    if (point < 0x80) {
        text += static_cast<char>(point);
    } else if (point < 0x800) {
        text += static_cast<char>(0xc0 | point >> 6);
        tail(0);
    } else if (point < 0x10000) {
        text += static_cast<char>(0xe0 | point >> 12);
        tail(6);
        tail(0);
    } else {
        text += static_cast<char>(0xf0 | point >> 18);
        tail(12);
        tail(6);
        tail(0);
    }
}

bool is_printable(char32_t point) {
    const auto* range = std::lower_bound(
        std::begin(unseen), std::end(unseen), point,
        [](const Range& one, char32_t wanted) { return one.last < wanted; });
    return range == std::end(unseen) || point < range->first;
}

std::string quoted(std::string_view text) {
    const auto points = code_points(text, true);
    if (!points) {
        const auto shown = std::string(text.substr(0, most_shown));
        return bytes(reinterpret_cast<const unsigned char*>(shown.data()), shown.size());
    }
    const bool has_single = text.find('\'') != std::string_view::npos;
    const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
    std::string out(1, quote);
    for (std::size_t index = 0; index < points->size() && index < most_shown; ++index) {
        const char32_t point = (*points)[index];
        if (point == static_cast<char32_t>(quote) || point == '\\') {
            out += '\\';
            out += static_cast<char>(point);
        } else if (point == '\t' || point == '\n' || point == '\r') {
            out += point == '\t' ? "\\t" : point == '\n' ? "\\n" : "\\r";
        } else if (is_printable(point)) {
            append_utf8(out, point);
        } else {
            out += point < 0x100     ? "\\x" + hex(point, 2)
                   : point < 0x10000 ? "\\u" + hex(point, 4)
                                     : "\\U" + hex(point, 8);
        }
    }
    return out + quote;
}

std::string lower(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](char letter) {
        return letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter - 'A' + 'a') : letter;
    });
    return text;
}

bool ends_with(std::string_view text, std::string_view end) {
    return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

}  // namespace lhanet::text
