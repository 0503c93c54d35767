#include "nifti_header.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string_view>
#include <tuple>
#include <utility>

#include "lhanet/error.hpp"
#include "nifti_affine.hpp"
#include "nifti_fields.hpp"
#include "text.hpp"

namespace lhanet {

namespace {

using std::string_view_literals::operator""sv;

// A larger scan is 2 GB in float32; 2048 slices of 512 x 512 are the limit.
constexpr std::int64_t most_voxels = std::int64_t{1} << 29;
// Bytes between header and voxels; header extensions hold at most a DICOM header.
constexpr double most_offset = 1 << 26;
// CT in 8 bits over its whole range has a slope of 16.
constexpr double most_slope = 1e3, most_intercept = 1e6;

// A product of sides above 0, or the largest number where it would be larger.
std::int64_t product(const std::vector<std::int64_t>& sides) {
    std::int64_t voxels = 1;
    for (const std::int64_t side : sides) {
        if (side > std::numeric_limits<std::int64_t>::max() / voxels) {
            return std::numeric_limits<std::int64_t>::max();
        }
        voxels *= side;
    }
    return voxels;
}

void check_magic(const std::string& file, const std::vector<unsigned char>& start, int version) {
    const auto magic = version == 1 ? "n+1\0"sv : "n+2\0\r\n\x1a\n"sv;
    const auto pair = version == 1 ? "ni1\0"sv : "ni2\0\r\n\x1a\n"sv;
    const unsigned char* found = start.data() + (version == 1 ? 344 : 4);
    if (std::memcmp(found, pair.data(), pair.size()) == 0) {
        throw Refused(file + " says that its voxels are in an .img file; convert the pair to one .nii.gz");
    }
    if (std::memcmp(found, magic.data(), magic.size()) != 0) {
        throw Refused(
            file + " has the magic " + text::bytes(found, magic.size()) +
            ", not NIfTI's: ANALYZE, or damaged; convert the scan anew");
    }
}

Shape shape_of(const std::string& file, const Fields& fields) {
    const std::int64_t count = fields.dim(0);
    if (count < 1 || count > 7) {
        throw Refused(
            file + " has " + std::to_string(count) +
            " dimensions by its header; a volume has 3, the header may be damaged");
    }
    std::vector<std::int64_t> sides;
    for (std::size_t index = 1; index <= static_cast<std::size_t>(count); ++index) {
        sides.push_back(fields.dim(index));
    }
    const std::string has = file + " has the shape " + text::sides(sides);
    if (*std::min_element(sides.begin(), sides.end()) < 1) {
        throw Refused(has + " by its header; no side can be below 1");
    }
    const auto behind = sides.begin() + std::min<std::int64_t>(count, 3);
    if (std::any_of(behind, sides.end(), [](std::int64_t side) { return side > 1; })) {
        throw Refused(has + ", several volumes; write the one that is meant alone");
    }
    if (count < 3 || *std::min_element(sides.begin(), behind) == 1) {
        throw Refused(has + ", a single slice; a volume of 2 or more is needed");
    }
    const Shape shape = {sides[0], sides[1], sides[2]};
    sides.resize(3);
    const std::int64_t voxels = product(sides);
    if (voxels > most_voxels) {
        const bool is_least = voxels == std::numeric_limits<std::int64_t>::max();
        throw Refused(
            file + " has " + text::grouped(static_cast<std::uint64_t>(voxels)) + (is_least ? " or more" : "") +
            " voxels by its header " + text::sides(sides) + ", more than the " + text::grouped(most_voxels) +
            " that are taken; crop it, or check that the header is not damaged");
    }
    return shape;
}

// Slope and intercept; a slope of 0 means that values are stored as they are (nifti1.h).
std::pair<double, double> scaling_of(const std::string& file, const Fields& fields) {
    const double slope = fields.slope(), intercept = fields.intercept();
    if (slope == 0 && intercept == 0) {
        return {1, 0};
    }
    // An intercept beside a slope of 0 does not count by the letter, but somebody may have meant it.
    const double size = std::fabs(slope);
    if (!(size > 0 && size <= most_slope && std::fabs(intercept) <= most_intercept)) {
        throw Refused(
            file + " has scl_slope " + text::general(slope) + " and scl_inter " + text::general(intercept) +
            ", by which no CT is stored; write it anew in HU");
    }
    return {slope, intercept};
}

const char* other_type(int datatype) {
    switch (datatype) {
        case 1: return "single bits";
        case 128: return "RGB colours";
        case 1536: return "128-bit floats";
        case 2304: return "RGBA colours";
        case 32:
        case 1792:
        case 2048: return "complex numbers";
        default: return "an unknown data type";
    }
}

int datatype_of(const std::string& file, const Fields& fields) {
    const auto datatype = static_cast<int>(fields.datatype());
    const std::size_t bytes = bytes_of(datatype);
    if (bytes == 0) {
        throw Refused(
            file + " holds " + other_type(datatype) + " (datatype " + std::to_string(datatype) +
            "); a CT holds integers or floats of 8 to 64 bits");
    }
    if (fields.bitpix() != static_cast<std::int64_t>(8 * bytes)) {
        throw Refused(
            file + " has bitpix " + std::to_string(fields.bitpix()) + ", but its datatype " +
            std::to_string(datatype) + " takes " + std::to_string(8 * bytes) + "; the header is damaged");
    }
    return datatype;
}

std::int64_t offset_of(const std::string& file, const Fields& fields) {
    const double offset = fields.vox_offset();
    const auto least = static_cast<double>(header_bytes(fields.version()) + 4);
    if (!(offset >= least && offset <= most_offset && std::floor(offset) == offset)) {
        throw Refused(
            file + " has vox_offset " + text::general(offset) + "; voxels begin at byte " + text::general(least) +
            " or soon after");
    }
    return static_cast<std::int64_t>(offset);
}

}  // namespace

std::array<double, 3> Header::spacing_mm() const { return spacing_of(affine); }

std::size_t bytes_of(int datatype) {
    switch (datatype) {
        case 2:    // uint8
        case 256:  // int8
            return 1;
        case 4:    // int16
        case 512:  // uint16
            return 2;
        case 8:    // int32
        case 16:   // float32
        case 768:  // uint32
            return 4;
        case 64:    // float64
        case 1024:  // int64
        case 1280:  // uint64
            return 8;
        default:
            return 0;
    }
}

int version_of(const std::vector<unsigned char>& start) {
    for (const int version : {1, 2}) {
        const auto size = header_bytes(version);
        const auto low = static_cast<unsigned char>(size & 0xff), high = static_cast<unsigned char>(size >> 8);
        const unsigned char little[4] = {low, high, 0, 0}, big[4] = {0, 0, high, low};
        if (start.size() >= 4 &&
            (std::memcmp(start.data(), little, 4) == 0 || std::memcmp(start.data(), big, 4) == 0)) {
            return version;
        }
    }
    return 0;
}

Header header_from_bytes(const std::string& file, std::vector<unsigned char> start) {
    const int version = version_of(start);
    if (version == 0) {
        throw Refused(file + " is no NIfTI file: it begins with neither 348 nor 540; convert the scan to NIfTI");
    }
    if (start.size() < header_bytes(version)) {
        throw Refused(file + " ends within its header; the file was cut off, copy it again");
    }
    check_magic(file, start, version);
    const Fields fields(start.data(), version);
    Header header;
    header.shape = shape_of(file, fields);
    std::tie(header.slope, header.intercept) = scaling_of(file, fields);
    header.datatype = datatype_of(file, fields);
    header.big_endian = fields.big_endian();
    header.offset = offset_of(file, fields);
    header.affine = affine_of(file, fields, header.shape);
    start.resize(header_bytes(version));
    header.raw = std::move(start);
    return header;
}

std::vector<unsigned char> header_for_labels(const Header& header) {
    std::vector<unsigned char> raw = header.raw;
    Fields(raw.data(), version_of(raw)).set_labels();
    return raw;
}

}  // namespace lhanet
