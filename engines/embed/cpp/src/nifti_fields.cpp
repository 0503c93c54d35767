#include "nifti_fields.hpp"

#include <cstring>

namespace lhanet {

Fields::Fields(unsigned char* data, int version) : data_(data), version_(version) {
    // The first number is the header's size, below 65536: of its two outer bytes one is 0.
    big_endian_ = data_[0] == 0;
}

std::uint64_t Fields::bits(std::size_t at, std::size_t bytes) const {
    std::uint64_t bits = 0;
    for (std::size_t index = 0; index < bytes; ++index) {
        bits = bits << 8 | data_[at + (big_endian_ ? index : bytes - 1 - index)];
    }
    return bits;
}

std::int64_t Fields::whole(std::size_t at, std::size_t bytes) const {
    const std::uint64_t found = bits(at, bytes);
    switch (bytes) {
        case 2: return static_cast<std::int16_t>(found);
        case 4: return static_cast<std::int32_t>(found);
        default: return static_cast<std::int64_t>(found);
    }
}

double Fields::real(std::size_t at) const {
    if (version_ == 1) {
        const auto found = static_cast<std::uint32_t>(bits(at, 4));
        float value = 0;
        std::memcpy(&value, &found, sizeof value);
        return static_cast<double>(value);
    }
    const std::uint64_t found = bits(at, 8);
    double value = 0;
    std::memcpy(&value, &found, sizeof value);
    return value;
}

void Fields::put(std::size_t at, std::size_t bytes, std::uint64_t bits) {
    for (std::size_t index = 0; index < bytes; ++index) {
        data_[at + (big_endian_ ? bytes - 1 - index : index)] = static_cast<unsigned char>(bits >> 8 * index);
    }
}

void Fields::put_real(std::size_t at, double value) {
    if (version_ == 1) {
        const auto narrow = static_cast<float>(value);
        std::uint32_t bits = 0;
        std::memcpy(&bits, &narrow, sizeof bits);
        put(at, 4, bits);
    } else {
        std::uint64_t bits = 0;
        std::memcpy(&bits, &value, sizeof bits);
        put(at, 8, bits);
    }
}

std::int64_t Fields::dim(std::size_t index) const {
    return version_ == 1 ? whole(40 + 2 * index, 2) : whole(16 + 8 * index, 8);
}

double Fields::pixdim(std::size_t index) const { return real((version_ == 1 ? 76 : 104) + real_bytes() * index); }

// A float in NIfTI-1, a whole number in NIfTI-2.
double Fields::vox_offset() const { return version_ == 1 ? real(108) : static_cast<double>(whole(168, 8)); }

double Fields::quaternion(std::size_t index) const { return real((version_ == 1 ? 256 : 352) + real_bytes() * index); }

double Fields::qoffset(std::size_t index) const { return real((version_ == 1 ? 268 : 376) + real_bytes() * index); }

double Fields::srow(std::size_t row, std::size_t column) const {
    return real((version_ == 1 ? 280 : 400) + real_bytes() * (4 * row + column));
}

void Fields::set_labels() {
    const bool is_first = version_ == 1;
    put(is_first ? 70 : 12, 2, 2);  // datatype: unsigned bytes
    put(is_first ? 72 : 14, 2, 8);  // bitpix
    if (is_first) {
        put_real(108, 352);
    } else {
        put(168, 8, 544);
    }
    put_real(is_first ? 112 : 176, 1);  // scl_slope
    put_real(is_first ? 116 : 184, 0);  // scl_inter
    // How to show a CT in grey says nothing about labels.
    put_real(is_first ? 124 : 192, 0);  // cal_max
    put_real(is_first ? 128 : 200, 0);  // cal_min
}

}  // namespace lhanet
