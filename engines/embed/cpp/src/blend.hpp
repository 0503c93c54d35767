// Scores of overlapping windows become labels on the scan's own grid, slice by slice, in memory that no depth fills.
//
// Every step between a window's scores and the scan's voxels is linear along each axis by itself: the resize from a
// coarse grid to the window, the window's share in the blend, and the interpolation from the network's voxels to the
// scan's. So an axis is one sparse matrix. Scores on a coarse grid stay as they are until their slice is computed;
// scores of every voxel are added up in planes that live as long as a window reaches into them.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "lhanet/manifest.hpp"
#include "windows.hpp"

namespace lhanet {

/// Takes the scores of windows, row after row along W, and labels slices as soon as nothing changes their scores.
class Blend {
public:
    virtual ~Blend() = default;
    Blend(const Blend&) = delete;
    Blend& operator=(const Blend&) = delete;

    /// Take the scores (K,d,h,w) of a window of the row that is under way.
    virtual void add(const Window& window, const float* scores) = 0;

    /// End the row, and label the slices that are complete now and were not before; `labels` is the whole scan's.
    virtual void finish_row(std::vector<std::uint8_t>& labels) = 0;

protected:
    Blend() = default;
};

/// A blend of windows onto a scan (X,Y,Z), for scores (K,d,h,w) of each voxel of a window or of a coarser grid.
std::unique_ptr<Blend> blend_of(const Tiling& tiling, const Shape& scan, const std::array<std::int64_t, 4>& scores);

}  // namespace lhanet
