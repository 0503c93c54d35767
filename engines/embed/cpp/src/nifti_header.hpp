// What the header of a NIfTI file says about its voxels, taken only where it is certain.
//
// The fields and their meaning: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h and nifti2.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "lhanet/nifti.hpp"

namespace lhanet {

/// Bytes of a header of NIfTI-1 or NIfTI-2, which are also the first number in it.
constexpr std::size_t header_bytes(int version) { return version == 1 ? 348 : 540; }

/// 1 or 2 where a file begins like a NIfTI header of that version, in either byte order; else 0.
int version_of(const std::vector<unsigned char>& start);

/// The header of one 3-D volume from the first 348 bytes (NIfTI-1) or 540 (NIfTI-2) of a file.
///
/// Axes of one sample after the third are dropped. Throws `Refused` naming `file`, the field and what to do.
Header header_from_bytes(const std::string& file, std::vector<unsigned char> start);

/// Bytes that a voxel of one of NIfTI's number types takes; 0 for other types.
std::size_t bytes_of(int datatype);

/// The bytes of a header for uint8 voxels on the grid of another one: its version, byte order, shape and place.
///
/// Extensions are left out; voxels follow 4 bytes after it.
std::vector<unsigned char> header_for_labels(const Header& header);

}  // namespace lhanet
