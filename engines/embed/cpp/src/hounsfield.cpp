#include "hounsfield.hpp"

#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "lhanet/error.hpp"
#include "text.hpp"

namespace lhanet {

namespace {

// CT numbers are 16 bits wide in every file that a scanner writes, signed or not.
constexpr double least_hu = -32768, most_hu = 65535;

template <std::size_t bytes>
using Bits = std::conditional_t<
    bytes == 1, std::uint8_t,
    std::conditional_t<bytes == 2, std::uint16_t, std::conditional_t<bytes == 4, std::uint32_t, std::uint64_t>>>;

template <typename T, bool big_endian>
T loaded(const unsigned char* at) {
    Bits<sizeof(T)> bits = 0;
    for (std::size_t index = 0; index < sizeof(T); ++index) {
        const std::size_t shift = 8 * (big_endian ? sizeof(T) - 1 - index : index);
        bits = static_cast<Bits<sizeof(T)>>(bits | static_cast<Bits<sizeof(T)>>(at[index]) << shift);
    }
    T value{};
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <typename T, bool big_endian>
void decode_as(const Header& header, const unsigned char* stored, std::size_t count, float* hu) {
    const double slope = header.slope, intercept = header.intercept;
    const bool is_scaled = slope != 1 || intercept != 0;
    for (std::size_t index = 0; index < count; ++index) {
        const T value = loaded<T, big_endian>(stored + sizeof(T) * index);
        // As double, so that a scan stored in two ways gives one result.
        double exact = static_cast<double>(value);
        if (is_scaled) {
            exact = exact * slope + intercept;
        }
        hu[index] = static_cast<float>(exact);
    }
}

template <typename T>
void decode_in_order(const Header& header, const unsigned char* stored, std::size_t count, float* hu) {
    if (header.big_endian) {
        decode_as<T, true>(header, stored, count, hu);
    } else {
        decode_as<T, false>(header, stored, count, hu);
    }
}

std::string percent(double share) {
    std::array<char, 32> out{};
    std::snprintf(out.data(), out.size(), "%.2f%%", 100 * share);
    return out.data();
}

}  // namespace

void decode(const Header& header, const unsigned char* stored, std::size_t count, float* hu) {
    switch (header.datatype) {
        case 2: return decode_in_order<std::uint8_t>(header, stored, count, hu);
        case 4: return decode_in_order<std::int16_t>(header, stored, count, hu);
        case 8: return decode_in_order<std::int32_t>(header, stored, count, hu);
        case 16: return decode_in_order<float>(header, stored, count, hu);
        case 64: return decode_in_order<double>(header, stored, count, hu);
        case 256: return decode_in_order<std::int8_t>(header, stored, count, hu);
        case 512: return decode_in_order<std::uint16_t>(header, stored, count, hu);
        case 768: return decode_in_order<std::uint32_t>(header, stored, count, hu);
        case 1024: return decode_in_order<std::int64_t>(header, stored, count, hu);
        case 1280: return decode_in_order<std::uint64_t>(header, stored, count, hu);
        default: throw std::logic_error("a header was taken whose data type cannot be decoded");
    }
}

void Seen::add(const float* hu, std::size_t count) {
    std::size_t bad = 0, soft = 0, light = 0, dense = 0;
    for (std::size_t index = 0; index < count; ++index) {
        const float value = hu[index];
        bad += !std::isfinite(value);
        low_ = value < low_ ? value : low_;
        high_ = value > high_ ? value : high_;
        soft += value >= -200.0F && value <= 300.0F;
        light += value < -50.0F;
        dense += value > 700.0F;
    }
    voxels_ += count;
    bad_ += bad;
    soft_ += soft;
    light_ += light;
    dense_ += dense;
}

void Seen::check(const std::string& file) const {
    if (bad_ > 0) {
        throw Refused(
            file + " holds NaN or infinity in " + text::grouped(bad_) + " of " + text::grouped(voxels_) +
            " voxels; fill them with -1024");
    }
    if (!(low_ < high_)) {
        throw Refused(
            file + " holds " + text::general(static_cast<double>(low_)) +
            " in every voxel; there is nothing to segment");
    }
}

void Seen::check_hounsfield(const std::string& file) const {
    const auto voxels = static_cast<double>(voxels_);
    const double soft = static_cast<double>(soft_) / voxels, light = static_cast<double>(light_) / voxels,
                 dense = static_cast<double>(dense_) / voxels;
    const double low = static_cast<double>(low_), high = static_cast<double>(high_);
    std::string reason;
    if (low < least_hu || high > most_hu) {
        reason = "CT numbers fit into 16 bits";
    } else if (soft < 0.05) {
        reason = "soft tissue (-200 to 300 HU) is " + percent(soft) + " of the voxels, expected 5 % or more";
    } else if (light < 0.001) {
        reason = "fat and air (below -50 HU) are " + percent(light) + " of the voxels, expected 0.1 % or more";
    } else if (dense > 0.1) {
        reason = percent(dense) + " of the voxels are above 700 HU, expected 10 % or less";
    } else {
        return;
    }
    throw Refused(
        file + " does not look like CT in HU: values from " + text::general(low) + " to " + text::general(high) + ", " +
        reason + "; convert it (often by subtracting 1024), or say --assume-hu if you know that it is");
}

}  // namespace lhanet
