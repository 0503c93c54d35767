// From a scan to its labels: preprocessing, windows, blending.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "lhanet/engine.hpp"
#include "lhanet/manifest.hpp"
#include "lhanet/nifti.hpp"

namespace lhanet {

/// The labels of a scan on its own grid: (Z,Y,X) with X fastest, as many as the header has voxels.
///
/// Reads the scan to its end. Memory: the scan on the network's grid (4 bytes a voxel), the labels (1 byte), and as
/// many slices of scores as windows overlap. `advance` is called after each window with how many are done and how many
/// there are. Throws `Refused` for a scan that cannot be used and for scores that are not finite or the same
/// everywhere, `Lacks` for what the machine lacks.
std::vector<std::uint8_t> segment(
    ScanFile& scan, Engine& engine, const Preprocessing& how,
    const std::function<void(std::int64_t, std::int64_t)>& advance = {});

/// Of each organ leave the largest piece: voxels that touch at a face, an edge or a corner. Says how many were removed.
///
/// Of two pieces of one size the one that begins first in (Z,Y,X) is kept.
std::int64_t keep_largest(std::vector<std::uint8_t>& labels, const Shape& shape);

}  // namespace lhanet
