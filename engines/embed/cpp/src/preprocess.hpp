// From a scan in HU to what the network takes.
#pragma once

#include <array>
#include <vector>

#include "lhanet/manifest.hpp"
#include "lhanet/nifti.hpp"

namespace lhanet {

/// The network's input: voxels (D,H,W), W fastest, and the lowest value of them.
struct Image {
    Shape shape{};
    std::vector<float> voxels;
    float lowest = 0;
};

/// The sides (D,H,W) that a scan (X,Y,Z) gets: round(side * spacing / target), at least 1, ties to even.
///
/// An axis whose spacing is the target up to a thousandth keeps its side. Throws `Refused` for more voxels than a scan
/// may have.
Shape grid_shape(const Shape& scan, const std::array<double, 3>& spacing_mm, const Preprocessing& how);

/// The network's input of a scan, which is read to its end: resampled, clipped, of mean 0 and standard deviation 1.
///
/// The file's axes X, Y, Z become D, H, W. Memory holds the result and some planes. Throws `Refused` for a volume that
/// is constant once it is clipped.
Image preprocess(ScanFile& scan, const Preprocessing& how);

}  // namespace lhanet
