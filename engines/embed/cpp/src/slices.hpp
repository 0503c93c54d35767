// Slices of a scan's labels, made of planes of scores that become known one after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "sparse.hpp"

namespace lhanet {

/// Scores (K,D',H') float32 of one place along W.
using Plane = std::vector<float>;

/// From planes of scores to labels on the scan's grid; an axis is one matrix, a slice a product with three of them.
///
/// A slice (K,D',H') is a sum of planes in double, is brought to the scan's X and then to its Y, and each voxel gets
/// the class of its highest score, the first of equal ones. Planes that no further slice reads are let go.
class Slices {
public:
    /// Matrices from the planes' grid to the scan's; planes have `classes` parts of (D',H').
    Slices(Sparse along_x, Sparse along_y, Sparse along_z, std::size_t classes, std::size_t depth, std::size_t height);

    /// Take the next plane along W.
    void take(Plane plane);

    /// Label the slices that are complete and were not before; `labels` is the whole scan's (Z,Y,X).
    void label(std::vector<std::uint8_t>& labels);

    /// Memory of a plane that is not needed any more, or new memory; what is in it is nobody's.
    Plane spare();

private:
    void label_slice(std::size_t z, std::uint8_t* out);
    void add_planes(std::size_t z, std::size_t k);
    void compare(const double* scores, std::size_t k);

    Sparse along_x_, along_y_, along_z_;
    bool same_x_, same_y_;
    std::size_t classes_, depth_, height_;
    std::deque<Plane> planes_;
    std::vector<Plane> spares_;
    // For each slice, the first plane that it or a later one reads.
    std::vector<std::size_t> needs_;
    // The number of the first plane held, and of the next slice.
    std::size_t oldest_ = 0, next_ = 0;
    std::vector<double> slice_, on_x_, turned_, row_, best_, winner_;
};

}  // namespace lhanet
