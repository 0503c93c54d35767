// Where a NIfTI header says that its voxels are.
#pragma once

#include <array>
#include <string>

#include "lhanet/manifest.hpp"
#include "nifti_fields.hpp"

namespace lhanet {

/// From indices to mm, as `Header::affine`.
using Affine = std::array<std::array<double, 4>, 4>;

/// Voxel sides (x, y, z) in mm: the lengths of the affine's columns.
std::array<double, 3> spacing_of(const Affine& affine);

/// The one affine that a header gives, sform before qform, after all that it says about lengths agrees.
///
/// Throws `Refused` naming `file`, the field and what to do.
Affine affine_of(const std::string& file, const Fields& fields, const Shape& shape);

}  // namespace lhanet
