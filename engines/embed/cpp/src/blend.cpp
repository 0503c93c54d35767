#include "blend.hpp"

#include <algorithm>
#include <cstddef>
#include <deque>
#include <utility>

#include "linear.hpp"
#include "slices.hpp"
#include "sparse.hpp"

namespace lhanet {

namespace {

std::size_t size(std::int64_t side) { return static_cast<std::size_t>(side); }

// An axis of `n` of the network's voxels onto `m` of the scan's.
Sparse interpolation(std::int64_t n, std::int64_t m) {
    const Taps taps = linear_taps(n, m);
    RowBuilder builder;
    for (std::size_t row = 0; row < size(m); ++row) {
        if (n == m) {
            // The tap's share need not be 0 to the last bit.
            builder.add(row, 1);
        } else {
            builder.add(taps.first[row], 1 - taps.share[row]);
            builder.add(taps.second[row], taps.share[row]);
        }
        builder.finish_row();
    }
    return std::move(builder.matrix);
}

// From the cells of all windows of an axis to its voxels, blended.
Sparse resized_shares(const Axis& axis, std::int64_t cells) {
    const Taps taps = linear_taps(cells, axis.patch);
    RowBuilder builder;
    std::size_t begin = 0;
    for (std::int64_t voxel = 0; voxel < axis.side; ++voxel) {
        // Windows begin one after the other, so those that hold a voxel do, too.
        while (axis.starts[begin] + axis.patch <= voxel) {
            ++begin;
        }
        for (std::size_t window = begin; window < axis.starts.size() && axis.starts[window] <= voxel; ++window) {
            const std::size_t inside = size(voxel - axis.starts[window]);
            const double share = axis.shares[window][inside];
            builder.add(window * size(cells) + taps.first[inside], share * (1 - taps.share[inside]));
            builder.add(window * size(cells) + taps.second[inside], share * taps.share[inside]);
        }
        builder.finish_row();
    }
    return std::move(builder.matrix);
}

Sparse coarse_matrix(const Axis& axis, std::int64_t side, std::int64_t cells) {
    return product(interpolation(axis.side, side), resized_shares(axis, cells), axis.starts.size() * size(cells));
}

class CoarseBlend final : public Blend {
public:
    CoarseBlend(const Tiling& tiling, const Shape& scan, const std::array<std::int64_t, 4>& scores)
        : classes_(size(scores[0])),
          cells_{size(scores[1]), size(scores[2]), size(scores[3])},
          depth_(tiling.axes[0].starts.size() * cells_[0]),
          height_(tiling.axes[1].starts.size() * cells_[1]),
          slices_(
              coarse_matrix(tiling.axes[0], scan[0], scores[1]), coarse_matrix(tiling.axes[1], scan[1], scores[2]),
              coarse_matrix(tiling.axes[2], scan[2], scores[3]), classes_, depth_, height_) {
        new_row();
    }

    void add(const Window& window, const float* scores) override {
        const std::size_t i = window.index[0] * cells_[0], j = window.index[1] * cells_[1];
        for (std::size_t k = 0; k < classes_; ++k) {
            for (std::size_t d = 0; d < cells_[0]; ++d) {
                for (std::size_t h = 0; h < cells_[1]; ++h) {
                    const std::size_t to = (k * depth_ + i + d) * height_ + j + h;
                    for (std::size_t w = 0; w < cells_[2]; ++w) {
                        row_[w][to] = *scores++;
                    }
                }
            }
        }
    }

    void finish_row(std::vector<std::uint8_t>& labels) override {
        for (Plane& plane : row_) {
            slices_.take(std::move(plane));
        }
        slices_.label(labels);
        new_row();
    }

private:
    // Every place of it is written by a window of the row.
    void new_row() {
        row_.clear();
        for (std::size_t w = 0; w < cells_[2]; ++w) {
            row_.push_back(slices_.spare());
        }
    }

    std::size_t classes_;
    std::array<std::size_t, 3> cells_;
    std::size_t depth_, height_;
    Slices slices_;
    std::vector<Plane> row_;
};

class VoxelBlend final : public Blend {
public:
    VoxelBlend(const Tiling& tiling, const Shape& scan, std::int64_t classes)
        : axes_(tiling.axes),
          classes_(size(classes)),
          slices_(
              interpolation(axes_[0].side, scan[0]), interpolation(axes_[1].side, scan[1]),
              interpolation(axes_[2].side, scan[2]), classes_, size(axes_[0].side), size(axes_[1].side)),
          turned_(size(axes_[1].patch * axes_[2].patch)) {}

    void add(const Window& window, const float* scores) override {
        while (sums_.size() < size(axes_[2].patch)) {
            sums_.push_back(slices_.spare());
            std::fill(sums_.back().begin(), sums_.back().end(), 0.0F);
        }
        const std::size_t depth = inside(0, window), height = inside(1, window);
        const std::size_t patch_depth = size(axes_[0].patch), area = size(axes_[1].patch * axes_[2].patch);
        const auto& along_w = axes_[2].shares[window.index[2]];
        for (std::size_t d = 0; d < depth; ++d) {
            const std::vector<float> shares = shares_of(window, d, height);
            for (std::size_t k = 0; k < classes_; ++k) {
                turn(scores + (k * patch_depth + d) * area);
                const std::size_t row = k * size(axes_[0].side) + size(window.start[0]) + d;
                add_plane(row * size(axes_[1].side) + size(window.start[1]), shares, along_w);
            }
        }
    }

    void finish_row(std::vector<std::uint8_t>& labels) override {
        const Axis& width = axes_[2];
        const std::int64_t end = row_ + 1 < width.starts.size() ? width.starts[row_ + 1] : width.side;
        for (std::int64_t at = width.starts[row_]; at < end; ++at) {
            slices_.take(std::move(sums_.front()));
            sums_.pop_front();
        }
        ++row_;
        slices_.label(labels);
    }

private:
    std::size_t inside(std::size_t axis, const Window& window) const {
        return size(std::min(axes_[axis].patch, axes_[axis].side - window.start[axis]));
    }

    // A window's shares along H at its d-th voxel along D.
    std::vector<float> shares_of(const Window& window, std::size_t d, std::size_t height) const {
        const double share = axes_[0].shares[window.index[0]][d];
        const auto& along_h = axes_[1].shares[window.index[1]];
        std::vector<float> shares(height);
        for (std::size_t h = 0; h < height; ++h) {
            shares[h] = static_cast<float>(share * along_h[h]);
        }
        return shares;
    }

    // (h,w) to (w,h), in tiles that stay in the nearest cache.
    void turn(const float* plane) {
        constexpr std::size_t tile = 16;
        const std::size_t height = size(axes_[1].patch), width = size(axes_[2].patch);
        for (std::size_t h = 0; h < height; h += tile) {
            const std::size_t h_end = std::min(h + tile, height);
            for (std::size_t w = 0; w < width; w += tile) {
                const std::size_t w_end = std::min(w + tile, width);
                for (std::size_t to = w; to < w_end; ++to) {
                    for (std::size_t from = h; from < h_end; ++from) {
                        turned_[to * height + from] = plane[from * width + to];
                    }
                }
            }
        }
    }

    void add_plane(std::size_t where, const std::vector<float>& shares, const std::vector<double>& along_w) {
        const std::size_t patch_height = size(axes_[1].patch), height = shares.size();
        const float* share_h = shares.data();
        for (std::size_t w = 0; w < along_w.size(); ++w) {
            const auto share = static_cast<float>(along_w[w]);
            const float* from = turned_.data() + w * patch_height;
            float* to = sums_[w].data() + where;
            for (std::size_t h = 0; h < height; ++h) {
                to[h] += from[h] * (share_h[h] * share);
            }
        }
    }

    std::array<Axis, 3> axes_;
    std::size_t classes_;
    Slices slices_;
    std::vector<float> turned_;
    // The planes that are not complete, from the row's first on.
    std::deque<Plane> sums_;
    std::size_t row_ = 0;
};

}  // namespace

std::unique_ptr<Blend> blend_of(const Tiling& tiling, const Shape& scan, const std::array<std::int64_t, 4>& scores) {
    const Shape grid{scores[1], scores[2], scores[3]};
    if (grid == tiling.patch()) {
        return std::make_unique<VoxelBlend>(tiling, scan, scores[0]);
    }
    return std::make_unique<CoarseBlend>(tiling, scan, scores);
}

}  // namespace lhanet
