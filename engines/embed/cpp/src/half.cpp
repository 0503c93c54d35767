#include "half.hpp"

#include <cstring>

namespace lhanet {

namespace {

// binary16: 1 bit of sign, 5 of exponent (bias 15), 10 of fraction. binary32: 1, 8 (bias 127) and 23.
constexpr std::uint32_t fraction_shift = 23 - 10;

std::uint32_t bits_of(float value) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}

float value_of(std::uint32_t bits) {
    float value = 0;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

std::uint16_t half_of(float value) {
    constexpr std::uint32_t infinity = 0x7f800000, too_large = 0x477ff000, least_normal = 0x38800000;
    const std::uint32_t all = bits_of(value), sign = all >> 16 & 0x8000, bits = all & 0x7fffffff;
    std::uint32_t half = 0;
    if (bits > infinity) {
        half = 0x7e00;
    } else if (bits >= too_large) {
        half = 0x7c00;
    } else if (bits < least_normal) {
        // Beside 0.5 a float's last bit is worth 2^-24, as a small half's is: the addition rounds.
        half = bits_of(value_of(bits) + 0.5F) - bits_of(0.5F);
    } else {
        const std::uint32_t is_odd = bits >> fraction_shift & 1;
        half = (bits - ((127U - 15U) << 23) + 0xfff + is_odd) >> fraction_shift;
    }
    return static_cast<std::uint16_t>(sign | half);
}

}  // namespace

void to_half(const float* from, std::size_t count, std::uint16_t* to) {
    for (std::size_t at = 0; at < count; ++at) {
        to[at] = half_of(from[at]);
    }
}

void from_half(const std::uint16_t* from, std::size_t count, float* to) {
    // Without branches, for there are tens of millions a window. 2^112 makes up for the exponents' other bias, also of
    // numbers without the leading 1.
    const float scale = value_of((127U + 112U) << 23);
    for (std::size_t at = 0; at < count; ++at) {
        const std::uint32_t half = from[at];
        const std::uint32_t finite = bits_of(value_of((half & 0x7fff) << fraction_shift) * scale);
        const std::uint32_t special = (half & 0x7c00) == 0x7c00 ? 0x7f800000U : 0U;
        to[at] = value_of((half & 0x8000) << 16 | finite | special);
    }
}

}  // namespace lhanet
