// Numbers of 16 bits (IEEE 754 binary16), as engines of FP16 take and give them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lhanet {

/// Round numbers to 16 bits, ties to even; what is too large becomes infinity.
void to_half(const float* from, std::size_t count, std::uint16_t* to);

/// The exact values of numbers of 16 bits.
void from_half(const std::uint16_t* from, std::size_t count, float* to);

}  // namespace lhanet
