// Stored values as HU, and whether they can be HU at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include "lhanet/nifti.hpp"

namespace lhanet {

/// Turn `count` stored values of a header's type and byte order into HU.
void decode(const Header& header, const unsigned char* stored, std::size_t count, float* hu);

/// What the values of a scan are, counted piece by piece.
///
/// They count as HU if at least 5 % of the voxels are soft tissue (-200 to 300), at least 0.1 % are fat or air (below
/// -50), and at most 10 % are denser than any large bone (above 700).
class Seen {
public:
    /// Count the next values.
    void add(const float* hu, std::size_t count);

    /// Throws `Refused` for NaN, infinity and a volume of one value.
    void check(const std::string& file) const;

    /// Throws `Refused` for values that do not count as HU.
    void check_hounsfield(const std::string& file) const;

private:
    std::uint64_t voxels_ = 0, bad_ = 0, soft_ = 0, light_ = 0, dense_ = 0;
    float low_ = std::numeric_limits<float>::infinity(), high_ = -std::numeric_limits<float>::infinity();
};

}  // namespace lhanet
