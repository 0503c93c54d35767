// Linear interpolation of an axis between two grids of the same extent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lhanet {

/// Which of an axis' samples each result reads: both taps, and the share of the second one.
struct Taps {
    std::vector<std::size_t> first, second;
    std::vector<double> share;
};

/// The taps of `results` results on `samples` samples.
///
/// Result i reads at (i + 0.5) * samples / results - 0.5, held within the axis: samples are the middles of voxels.
Taps linear_taps(std::int64_t samples, std::int64_t results);

}  // namespace lhanet
