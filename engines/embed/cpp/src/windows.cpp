#include "windows.hpp"

#include <algorithm>
#include <cmath>

#include "lhanet/error.hpp"
#include "text.hpp"

namespace lhanet {

namespace {

// More windows along an axis than any overlap that helps would make.
constexpr double most_overlap = 0.95;

std::vector<std::int64_t> starts_of(std::int64_t side, std::int64_t patch, double overlap) {
    const std::int64_t room = side - patch;
    if (room <= 0) {
        return {0};
    }
    // What is a rounding error below a whole number is that number.
    const double step_at_most = std::floor(static_cast<double>(patch) * (1 - overlap) + 1e-6);
    const std::int64_t step = std::max(std::int64_t{1}, static_cast<std::int64_t>(step_at_most));
    const std::int64_t gaps = (room + step - 1) / step;
    std::vector<std::int64_t> starts;
    starts.reserve(static_cast<std::size_t>(gaps + 1));
    for (std::int64_t index = 0; index <= gaps; ++index) {
        starts.push_back((2 * index * room + gaps) / (2 * gaps));
    }
    return starts;
}

std::vector<double> weights_of(std::int64_t patch, const Preprocessing& how) {
    std::vector<double> weights(static_cast<std::size_t>(patch), 1.0);
    if (how.blending == Blending::constant) {
        return weights;
    }
    const auto side = static_cast<double>(patch);
    const double middle = (side - 1) / 2, sigma = side / how.blending_sigma_divisor;
    for (std::size_t at = 0; at < weights.size(); ++at) {
        const double distance = (static_cast<double>(at) - middle) / sigma;
        weights[at] = std::exp(-0.5 * (distance * distance));
    }
    return weights;
}

Axis axis_of(std::int64_t side, std::int64_t patch, const Preprocessing& how) {
    Axis axis;
    axis.side = side;
    axis.patch = patch;
    axis.starts = starts_of(side, patch, how.overlap);
    const std::vector<double> weights = weights_of(patch, how);
    std::vector<double> total(static_cast<std::size_t>(std::max(side, patch)), 0.0);
    for (const std::int64_t start : axis.starts) {
        for (std::size_t at = 0; at < weights.size(); ++at) {
            total[static_cast<std::size_t>(start) + at] += weights[at];
        }
    }
    axis.shares.reserve(axis.starts.size());
    for (const std::int64_t start : axis.starts) {
        std::vector<double> share(weights.size());
        for (std::size_t at = 0; at < weights.size(); ++at) {
            share[at] = weights[at] / total[static_cast<std::size_t>(start) + at];
        }
        axis.shares.push_back(std::move(share));
    }
    return axis;
}

}  // namespace

Shape Tiling::patch() const { return {axes[0].patch, axes[1].patch, axes[2].patch}; }

std::int64_t Tiling::windows() const { return static_cast<std::int64_t>(rows() * in_row()); }

std::size_t Tiling::rows() const { return axes[2].starts.size(); }

std::size_t Tiling::in_row() const { return axes[0].starts.size() * axes[1].starts.size(); }

Window Tiling::window(std::size_t row, std::size_t number) const {
    const std::size_t across = axes[1].starts.size();
    const std::size_t i = number / across, j = number % across;
    return {{i, j, row}, {axes[0].starts[i], axes[1].starts[j], axes[2].starts[row]}};
}

Tiling tiling_of(const Shape& shape, const Preprocessing& how) {
    if (!(how.overlap >= 0 && how.overlap <= most_overlap)) {
        throw Refused(
            "an overlap of " + text::general(how.overlap) + " is no share of a window; give 0 to " +
            text::general(most_overlap) + ", often 0.5");
    }
    if (std::any_of(how.patch.begin(), how.patch.end(), [](std::int64_t side) { return side < 1; })) {
        throw Refused(
            "a window of " + text::sides({how.patch.begin(), how.patch.end()}) + " voxels has a side below 1");
    }
    return {{axis_of(shape[0], how.patch[0], how), axis_of(shape[1], how.patch[1], how),
             axis_of(shape[2], how.patch[2], how)}};
}

void copy_window(const Image& image, const Window& window, const Shape& patch, float* out) {
    Shape inside{};
    bool is_whole = true;
    for (std::size_t axis = 0; axis < 3; ++axis) {
        inside[axis] = std::min(patch[axis], image.shape[axis] - window.start[axis]);
        is_whole = is_whole && inside[axis] == patch[axis];
    }
    if (!is_whole) {
        std::fill_n(out, patch[0] * patch[1] * patch[2], image.lowest);
    }
    for (std::int64_t d = 0; d < inside[0]; ++d) {
        for (std::int64_t h = 0; h < inside[1]; ++h) {
            const std::int64_t row = (window.start[0] + d) * image.shape[1] + window.start[1] + h;
            const float* from = image.voxels.data() + row * image.shape[2] + window.start[2];
            std::copy_n(from, inside[2], out + (d * patch[1] + h) * patch[2]);
        }
    }
}

}  // namespace lhanet
