#include "nifti_affine.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <optional>

#include "lhanet/error.hpp"
#include "text.hpp"

namespace lhanet {

namespace {

using Sides = std::array<double, 3>;

// Spacing in mm of any CT of a body, with room on both sides.
constexpr double least_spacing_mm = 0.1, most_spacing_mm = 50;
// Cosine between two axes of the affine up to which they count as perpendicular.
constexpr double most_shear = 1e-3;
// No scanner's coordinates reach so far (a kilometre); only damage does.
constexpr double farthest_mm = 1e6;

std::string in_mm(const Sides& sides) {
    return text::general(sides[0], 4) + " x " + text::general(sides[1], 4) + " x " + text::general(sides[2], 4);
}

Affine sform_of(const Fields& fields) {
    Affine affine{};
    for (std::size_t row = 0; row < 3; ++row) {
        for (std::size_t column = 0; column < 4; ++column) {
            affine[row][column] = fields.srow(row, column);
        }
    }
    affine[3][3] = 1;
    return affine;
}

// By the rules of nifti1.h. As nibabel does it, in the widest type there is, because a half turn has w = 0, and the
// root of what rounding leaves there would turn the volume: below a few roundings of the file's floats it counts as 0.
Affine qform_of(const std::string& file, const Fields& fields) {
    const auto no_rotation = [&](const std::string& why) {
        return Refused(file + " has a qform that is no rotation: " + why + "; write its affine anew");
    };
    const long double x = fields.quaternion(0), y = fields.quaternion(1), z = fields.quaternion(2);
    const double rounding = fields.version() == 1 ? static_cast<double>(std::numeric_limits<float>::epsilon())
                                                  : std::numeric_limits<double>::epsilon();
    const long double threshold = 3 * static_cast<long double>(rounding);
    const long double square = 1 - (x * x + y * y + z * z);
    if (square < 0 && !(std::fabs(square) < threshold)) {
        std::array<char, 32> found{};
        std::snprintf(found.data(), found.size(), "%Le", square);
        throw no_rotation(std::string("w2 should be positive, but is ") + found.data());
    }
    const long double w = std::fabs(square) < threshold ? 0 : std::sqrt(square);
    // 0 means 1 (nifti1.h).
    const double mirror = fields.pixdim(0) == 0 ? 1 : fields.pixdim(0);
    if (mirror != 1 && mirror != -1) {
        throw no_rotation("qfac (pixdim[0]) should be 1 or -1");
    }
    const long double s = 2 / (w * w + x * x + y * y + z * z);
    const long double xs = x * s, ys = y * s, zs = z * s;
    const long double wx = w * xs, wy = w * ys, wz = w * zs;
    const long double xx = x * xs, xy = x * ys, xz = x * zs;
    const long double yy = y * ys, yz = y * zs, zz = z * zs;
    const long double rotation[3][3] = {
        {1 - (yy + zz), xy - wz, xz + wy},
        {xy + wz, 1 - (xx + zz), yz - wx},
        {xz - wy, yz + wx, 1 - (xx + yy)},
    };
    Affine affine{};
    for (std::size_t row = 0; row < 3; ++row) {
        for (std::size_t column = 0; column < 3; ++column) {
            const double side = fields.pixdim(column + 1) * (column == 2 ? mirror : 1);
            affine[row][column] = static_cast<double>(rotation[row][column] * static_cast<long double>(side));
        }
        affine[row][3] = fields.qoffset(row);
    }
    affine[3][3] = 1;
    return affine;
}

bool is_set(const std::string& file, const std::string& name, std::int64_t code) {
    if (code < 0 || code > 5) {
        throw Refused(
            file + " has " + name + "_code " + std::to_string(code) + "; NIfTI knows 0 to 5, the header is damaged");
    }
    return code != 0;
}

double determinant(const double (&m)[3][3]) {
    return m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0]) +
           m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0]);
}

void check(const std::string& file, const std::string& name, const Affine& affine, const Sides& sides) {
    for (const auto& row : affine) {
        // So that NaN is refused, too.
        if (!std::all_of(row.begin(), row.end(), [](double value) { return std::fabs(value) <= farthest_mm; })) {
            throw Refused(
                file + " has NaN or a place beyond a kilometre in its " + name + "; write its affine anew");
        }
    }
    const Sides spacing = spacing_of(affine);
    double axes[3][3] = {};
    for (std::size_t row = 0; row < 3; ++row) {
        for (std::size_t column = 0; column < 3; ++column) {
            axes[row][column] = spacing[column] > 0 ? affine[row][column] / spacing[column] : 0;
        }
    }
    // An axis of length 0 makes the determinant 0.
    if (std::fabs(determinant(axes)) < 1e-3) {
        throw Refused(
            file + " has a singular " + name + ": its axes do not span a volume; write its affine anew");
    }
    double shear = 0, off = 0;
    for (std::size_t one = 0; one < 3; ++one) {
        for (std::size_t other = 0; other < 3; ++other) {
            const double cosine =
                axes[0][one] * axes[0][other] + axes[1][one] * axes[1][other] + axes[2][one] * axes[2][other];
            shear = std::max(shear, std::fabs(cosine - (one == other ? 1 : 0)));
        }
        off = std::max(off, std::fabs(spacing[one] / sides[one] - 1));
    }
    if (shear > most_shear) {
        throw Refused(
            file + " has a sheared " + name + ": the cosine between two axes is " + text::general(shear, 3) +
            ", such as a tilted gantry gives; resample the scan to perpendicular axes");
    }
    if (off > 1e-3) {
        throw Refused(
            file + ": voxels are " + in_mm(spacing) + " mm by its " + name + " and " + in_mm(sides) +
            " mm by pixdim; correct the one that is wrong");
    }
}

double corners_apart_mm(const Affine& first, const Affine& second, const Shape& shape) {
    double most = 0;
    for (int corner = 0; corner < 8; ++corner) {
        double square = 0;
        for (std::size_t row = 0; row < 3; ++row) {
            double apart = first[row][3] - second[row][3];
            for (std::size_t axis = 0; axis < 3; ++axis) {
                const bool is_far = (corner >> axis & 1) != 0;
                apart += is_far ? (first[row][axis] - second[row][axis]) * static_cast<double>(shape[axis] - 1) : 0;
            }
            square += apart * apart;
        }
        most = std::max(most, std::sqrt(square));
    }
    return most;
}

}  // namespace

std::array<double, 3> spacing_of(const Affine& affine) {
    Sides sides{};
    for (std::size_t axis = 0; axis < 3; ++axis) {
        const double x = affine[0][axis], y = affine[1][axis], z = affine[2][axis];
        sides[axis] = std::sqrt(x * x + y * y + z * z);
    }
    return sides;
}

Affine affine_of(const std::string& file, const Fields& fields, const Shape& shape) {
    const Sides sides = {fields.pixdim(1), fields.pixdim(2), fields.pixdim(3)};
    const auto is_fine = [](double side) { return side >= least_spacing_mm && side <= most_spacing_mm; };
    if (!std::all_of(sides.begin(), sides.end(), is_fine)) {
        throw Refused(
            file + " has pixdim " + in_mm(sides) + "; a CT's voxels have sides of " +
            text::general(least_spacing_mm) + " to " + text::general(most_spacing_mm) + " mm");
    }
    // 0 is "unknown", which many programs write and mean mm.
    const std::int64_t unit = fields.units() & 7;
    if (unit != 0 && unit != 2) {
        const std::string found = unit == 1 ? "metres" : unit == 3 ? "micrometres" : "unit " + std::to_string(unit);
        throw Refused(file + " gives lengths in " + found + " (xyzt_units); write the header in mm");
    }
    std::optional<Affine> sform, qform;
    if (is_set(file, "sform", fields.sform_code())) {
        sform = sform_of(fields);
    }
    if (is_set(file, "qform", fields.qform_code())) {
        qform = qform_of(file, fields);
    }
    if (!sform && !qform) {
        throw Refused(
            file + " does not say how its axes lie (sform_code and qform_code are 0); convert the scan anew, or "
                   "write its affine");
    }
    if (sform) {
        check(file, "sform", *sform, sides);
    }
    if (qform) {
        check(file, "qform", *qform, sides);
    }
    if (sform && qform) {
        const double apart = corners_apart_mm(*sform, *qform, shape);
        // Half a voxel is far more than rounding makes of a quaternion and less than any real difference.
        if (apart > 0.5 * *std::min_element(sides.begin(), sides.end())) {
            throw Refused(
                file + ": sform and qform put a corner of the volume " + text::general(apart, 3) +
                " mm apart; keep the one that is right");
        }
    }
    return sform ? *sform : *qform;
}

}  // namespace lhanet
