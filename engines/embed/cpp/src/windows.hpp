// Windows that cover a volume, and how much each of them counts at every voxel.
//
// Windows and weights are products of the three axes, so an axis says all: where its windows begin, and for each window
// the share that it has at each of its voxels. At every voxel the shares of all windows sum up to 1.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "lhanet/manifest.hpp"
#include "preprocess.hpp"

namespace lhanet {

/// The windows of one axis; a side shorter than the patch has one window, which reaches beyond its end.
struct Axis {
    std::int64_t side = 0, patch = 0;
    std::vector<std::int64_t> starts;
    /// For each window, what part of the result at each of its voxels it has.
    std::vector<std::vector<double>> shares;
};

/// One window: its number along each axis and the voxels (D,H,W) that it begins with.
struct Window {
    std::array<std::size_t, 3> index{};
    Shape start{};
};

/// The windows of a volume, one axis for each of D, H and W; rows of windows lie along W.
struct Tiling {
    std::array<Axis, 3> axes;

    Shape patch() const;
    std::int64_t windows() const;
    std::size_t rows() const;
    /// How many windows a row has.
    std::size_t in_row() const;
    /// A window of a row, first to last along D and H.
    Window window(std::size_t row, std::size_t number) const;
};

/// Windows of `how.patch` that cover every voxel of (D,H,W), neighbours sharing at least `how.overlap` of a side.
///
/// Along an axis of n voxels and windows of p, with s = floor(p * (1 - overlap)) but at least 1, there are
/// ceil((n - p) / s) + 1 of them, and the i-th of m begins at i * (n - p) / (m - 1), rounded half up. A Gaussian has
/// its middle in the window's and sigma = p / `blending_sigma_divisor`. Throws `Refused` for an overlap that is none.
Tiling tiling_of(const Shape& shape, const Preprocessing& how);

/// Copy a window (D,H,W) out of an image; what lies beyond the image is its lowest value, which is air.
void copy_window(const Image& image, const Window& window, const Shape& patch, float* out);

}  // namespace lhanet
