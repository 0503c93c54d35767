// CT volumes from `.nii` and `.nii.gz` files, checked to the last byte, and label maps on the same grid.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lhanet/manifest.hpp"

namespace lhanet {

/// What a NIfTI header says about its voxels, taken only where it is certain.
struct Header {
    Shape shape{};  ///< (X,Y,Z), X fastest in the file
    int datatype = 0;  ///< NIfTI's code
    bool big_endian = false;
    std::int64_t offset = 0;  ///< bytes from the file's beginning to the first voxel
    double slope = 1, intercept = 0;
    std::array<std::array<double, 4>, 4> affine{};  ///< from indices (X,Y,Z) to mm (RAS)
    std::vector<unsigned char> raw;  ///< the header's own bytes: 348 of NIfTI-1, 540 of NIfTI-2

    /// Voxel sides (x, y, z) in mm: the lengths of the affine's columns.
    std::array<double, 3> spacing_mm() const;
    std::int64_t voxels() const { return shape[0] * shape[1] * shape[2]; }
};

/// A CT whose header is checked when it is opened and whose voxels are read once, from the first to the last.
///
/// All functions throw `Refused` naming the file, what is wrong with it and what to do.
class ScanFile {
public:
    explicit ScanFile(std::filesystem::path path, bool assume_hu = false);
    ~ScanFile();
    ScanFile(const ScanFile&) = delete;
    ScanFile& operator=(const ScanFile&) = delete;

    const std::filesystem::path& path() const;
    const Header& header() const;

    /// The next planes (count,Y,X) along Z in HU, X fastest, slope and intercept applied; 0 after the last one.
    ///
    /// After the last plane the file must end, a packed one must have its checksum, and the values are judged as a
    /// whole: nothing made of them may be used before this has returned 0.
    std::int64_t next_planes(std::vector<float>& hu);

private:
    class Reader;
    std::unique_ptr<Reader> reader_;
};

/// Write labels, (Z,Y,X) with X fastest, on the grid of `header`, packed if the name ends in `.gz`.
///
/// The file has the header's version, byte order, shape, affines and units. It appears under its name when it is whole;
/// after a failure the folder is as it was. A folder that is missing is made. Throws `Lacks` for a disk that is full or
/// a folder that cannot be written, `Refused` for a target that is there and no regular file.
void write_labels(const std::filesystem::path& path, const Header& header, const std::vector<std::uint8_t>& labels);

}  // namespace lhanet
