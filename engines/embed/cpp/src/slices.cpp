#include "slices.hpp"

#include <algorithm>
#include <limits>
#include <utility>

namespace lhanet {

namespace {

// out (columns,rows) of in (rows,columns), in tiles that stay in the nearest cache.
void transpose(const double* in, std::size_t rows, std::size_t columns, double* out) {
    constexpr std::size_t tile = 16;
    for (std::size_t r = 0; r < rows; r += tile) {
        for (std::size_t c = 0; c < columns; c += tile) {
            for (std::size_t column = c; column < std::min(c + tile, columns); ++column) {
                for (std::size_t row = r; row < std::min(r + tile, rows); ++row) {
                    out[column * rows + row] = in[row * columns + column];
                }
            }
        }
    }
}

}  // namespace

Slices::Slices(
    Sparse along_x, Sparse along_y, Sparse along_z, std::size_t classes, std::size_t depth, std::size_t height)
    : along_x_(std::move(along_x)),
      along_y_(std::move(along_y)),
      along_z_(std::move(along_z)),
      same_x_(along_x_.is_identity()),
      same_y_(along_y_.is_identity()),
      classes_(classes),
      depth_(depth),
      height_(height),
      needs_(along_z_.rows()),
      slice_(depth * height),
      on_x_(same_x_ ? 0 : along_x_.rows() * height),
      turned_(classes * along_x_.rows() * height),
      row_(same_y_ ? 0 : along_x_.rows()),
      best_(along_x_.rows()),
      winner_(along_x_.rows()) {
    std::size_t first = std::numeric_limits<std::size_t>::max();
    for (std::size_t z = needs_.size(); z-- > 0;) {
        for (std::size_t at = along_z_.begins[z]; at < along_z_.begins[z + 1]; ++at) {
            first = std::min(first, along_z_.columns[at]);
        }
        needs_[z] = first;
    }
}

void Slices::take(Plane plane) { planes_.push_back(std::move(plane)); }

Plane Slices::spare() {
    if (spares_.empty()) {
        return Plane(classes_ * depth_ * height_);
    }
    Plane plane = std::move(spares_.back());
    spares_.pop_back();
    return plane;
}

void Slices::label(std::vector<std::uint8_t>& labels) {
    const std::size_t area = along_x_.rows() * along_y_.rows();
    for (; next_ < along_z_.rows(); ++next_) {
        std::size_t end = 0;
        for (std::size_t at = along_z_.begins[next_]; at < along_z_.begins[next_ + 1]; ++at) {
            end = std::max(end, along_z_.columns[at] + 1);
        }
        if (end > oldest_ + planes_.size()) {
            break;
        }
        label_slice(next_, labels.data() + next_ * area);
    }
    for (; !planes_.empty() && (next_ == needs_.size() || oldest_ < needs_[next_]); ++oldest_) {
        spares_.push_back(std::move(planes_.front()));
        planes_.pop_front();
    }
}

void Slices::label_slice(std::size_t z, std::uint8_t* out) {
    const std::size_t x = along_x_.rows(), y = along_y_.rows(), area = x * height_;
    for (std::size_t k = 0; k < classes_; ++k) {
        add_planes(z, k);
        const double* on_x = slice_.data();
        if (!same_x_) {
            for (std::size_t row = 0; row < x; ++row) {
                combine_row(along_x_, row, slice_.data(), height_, height_, on_x_.data() + row * height_);
            }
            on_x = on_x_.data();
        }
        transpose(on_x, x, height_, turned_.data() + k * area);
    }
    for (std::size_t row = 0; row < y; ++row) {
        for (std::size_t k = 0; k < classes_; ++k) {
            const double* scores = turned_.data() + k * area + row * x;
            if (!same_y_) {
                combine_row(along_y_, row, turned_.data() + k * area, x, x, row_.data());
                scores = row_.data();
            }
            compare(scores, k);
        }
        for (std::size_t i = 0; i < x; ++i) {
            out[row * x + i] = static_cast<std::uint8_t>(winner_[i]);
        }
    }
}

// The scores of a class on the slice (D',H').
void Slices::add_planes(std::size_t z, std::size_t k) {
    const std::size_t area = depth_ * height_;
    std::fill(slice_.begin(), slice_.end(), 0.0);
    for (std::size_t at = along_z_.begins[z]; at < along_z_.begins[z + 1]; ++at) {
        const float* plane = planes_[along_z_.columns[at] - oldest_].data() + k * area;
        const double weight = along_z_.values[at];
        for (std::size_t i = 0; i < area; ++i) {
            slice_[i] += weight * static_cast<double>(plane[i]);
        }
    }
}

// Keep the better of each voxel's scores, and its class. Numbers of one kind, all read before one is written: that is
// what compilers make code of that compares voxels side by side.
void Slices::compare(const double* scores, std::size_t k) {
    const auto label = static_cast<double>(k);
    const std::size_t count = best_.size();
    if (k == 0) {
        std::copy_n(scores, count, best_.begin());
        std::fill(winner_.begin(), winner_.end(), label);
        return;
    }
    double *best = best_.data(), *winner = winner_.data();
    for (std::size_t i = 0; i < count; ++i) {
        const double score = scores[i], before = best[i], winner_before = winner[i];
        const double winner_now = score > before ? label : winner_before;
        best[i] = score > before ? score : before;
        winner[i] = winner_now;
    }
}

}  // namespace lhanet
