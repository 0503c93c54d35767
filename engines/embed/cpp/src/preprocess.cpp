#include "preprocess.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <utility>

#include "lhanet/error.hpp"
#include "linear.hpp"
#include "text.hpp"

namespace lhanet {

namespace {

// A larger scan is 2 GB in float32.
constexpr double most_voxels = 1 << 29;
// Spacing that differs by less than this share is the same: a header's rounding.
constexpr double same_spacing = 1e-3;
// Standard deviation (HU) of a clipped volume below which it holds nothing.
constexpr double least_deviation_hu = 1e-3;
// Planes that are turned around at a time: 16 floats fill a cache line.
constexpr std::size_t planes_at_a_time = 16;

// An axis to be interpolated; nothing is done along one that keeps its side.
struct Resize {
    Resize(std::int64_t samples, std::int64_t results)
        : is_needed(samples != results), taps(is_needed ? linear_taps(samples, results) : Taps{}) {
        share.assign(taps.share.begin(), taps.share.end());
    }

    bool is_needed;
    Taps taps;
    std::vector<float> share;
};

// In this form equal neighbours give their value exactly.
float between(float low, float high, float share) { return low + (high - low) * share; }

void between(const float* low, const float* high, float share, std::size_t count, float* out) {
    for (std::size_t at = 0; at < count; ++at) {
        out[at] = between(low[at], high[at], share);
    }
}

// Takes planes (H,D) in the order of W, clips them and puts them into an image (D,H,W).
class Collector {
public:
    Collector(Image& image, const Preprocessing& how)
        : image_(image),
          depth_(static_cast<std::size_t>(image.shape[0])),
          height_(static_cast<std::size_t>(image.shape[1])),
          width_(static_cast<std::size_t>(image.shape[2])),
          low_(static_cast<float>(how.clip_low_hu)),
          high_(static_cast<float>(how.clip_high_hu)),
          planes_(std::min(planes_at_a_time, width_) * height_ * depth_) {}

    // Memory for the next plane; `keep` takes what was written into it.
    float* next() { return planes_.data() + held_ * height_ * depth_; }

    void keep() {
        float* plane = next();
        for (std::size_t at = 0; at < height_ * depth_; ++at) {
            const float from_below = plane[at] > low_ ? plane[at] : low_;
            plane[at] = from_below < high_ ? from_below : high_;
        }
        ++held_;
        if (held_ == planes_at_a_time || done_ + held_ == width_) {
            turn();
        }
    }

private:
    void turn() {
        const std::size_t plane = height_ * depth_;
        for (std::size_t h = 0; h < height_; ++h) {
            for (std::size_t d = 0; d < depth_; ++d) {
                const float* from = planes_.data() + h * depth_ + d;
                float* to = image_.voxels.data() + (d * height_ + h) * width_ + done_;
                for (std::size_t w = 0; w < held_; ++w) {
                    to[w] = from[w * plane];
                }
            }
        }
        done_ += held_;
        held_ = 0;
    }

    Image& image_;
    std::size_t depth_, height_, width_;
    float low_, high_;
    std::vector<float> planes_;
    std::size_t held_ = 0, done_ = 0;
};

// Interpolates planes (Y,X) to (H,D), and between them to as many as the image is wide.
class Resampler {
public:
    Resampler(const Shape& scan, Image& image, const Preprocessing& how)
        : x_(static_cast<std::size_t>(scan[0])),
          y_(static_cast<std::size_t>(scan[1])),
          depth_(static_cast<std::size_t>(image.shape[0])),
          height_(static_cast<std::size_t>(image.shape[1])),
          width_(static_cast<std::size_t>(image.shape[2])),
          along_x_(scan[0], image.shape[0]),
          along_y_(scan[1], image.shape[1]),
          along_z_(scan[2], image.shape[2]),
          collector_(image, how) {
        rows_.resize(along_x_.is_needed ? y_ * depth_ : 0);
        last_.resize(along_z_.is_needed ? height_ * depth_ : 0);
        current_.resize(last_.size());
    }

    void take(const float* plane) {
        if (!along_z_.is_needed) {
            across(plane, collector_.next());
            collector_.keep();
            return;
        }
        std::swap(last_, current_);
        across(plane, current_.data());
        const Taps& taps = along_z_.taps;
        for (; done_ < width_ && taps.second[done_] <= number_; ++done_) {
            const auto& low = taps.first[done_] == number_ ? current_ : last_;
            between(low.data(), current_.data(), along_z_.share[done_], current_.size(), collector_.next());
            collector_.keep();
        }
        ++number_;
    }

private:
    void across(const float* plane, float* out) {
        if (along_x_.is_needed) {
            const Taps& taps = along_x_.taps;
            for (std::size_t y = 0; y < y_; ++y) {
                const float* row = plane + y * x_;
                float* to = rows_.data() + y * depth_;
                for (std::size_t d = 0; d < depth_; ++d) {
                    to[d] = between(row[taps.first[d]], row[taps.second[d]], along_x_.share[d]);
                }
            }
            plane = rows_.data();
        }
        if (!along_y_.is_needed) {
            std::copy_n(plane, height_ * depth_, out);
            return;
        }
        for (std::size_t h = 0; h < height_; ++h) {
            const float* low = plane + along_y_.taps.first[h] * depth_;
            const float* high = plane + along_y_.taps.second[h] * depth_;
            between(low, high, along_y_.share[h], depth_, out + h * depth_);
        }
    }

    std::size_t x_, y_, depth_, height_, width_;
    Resize along_x_, along_y_, along_z_;
    Collector collector_;
    std::vector<float> rows_, last_, current_;
    std::size_t number_ = 0, done_ = 0;
};

// What `term` makes of each value, summed up; eight sums side by side hide the latency of an addition.
template <typename Term>
double sum_of(const float* values, std::size_t count, Term term) {
    constexpr std::size_t lanes = 8;
    std::array<double, lanes> sums{};
    std::size_t at = 0;
    for (; at + lanes <= count; at += lanes) {
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            sums[lane] += term(values[at + lane]);
        }
    }
    for (; at < count; ++at) {
        sums[0] += term(values[at]);
    }
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// A number as Python shows it: with a point.
std::string shown(double value) {
    const std::string digits = text::general(value);
    return digits.find_first_not_of("-0123456789") == std::string::npos ? digits + ".0" : digits;
}

std::string range(const Preprocessing& how) {
    return "(" + shown(how.clip_low_hu) + ", " + shown(how.clip_high_hu) + ")";
}

std::string lengths(const std::array<double, 3>& mm) {
    return "(" + shown(mm[0]) + ", " + shown(mm[1]) + ", " + shown(mm[2]) + ")";
}

void standardize(Image& image, const Preprocessing& how) {
    const auto slab = static_cast<std::size_t>(image.shape[1] * image.shape[2]);
    const std::size_t count = image.voxels.size();
    double sum = 0;
    for (std::size_t at = 0; at < count; at += slab) {
        sum += sum_of(image.voxels.data() + at, slab, [](float value) { return static_cast<double>(value); });
    }
    // Differences are float32, their squares are not: as in Python, where NumPy's rules make them so.
    const auto mean = static_cast<float>(sum / static_cast<double>(count));
    double squares = 0;
    for (std::size_t at = 0; at < count; at += slab) {
        squares += sum_of(image.voxels.data() + at, slab, [mean](float value) {
            const double difference = value - mean;
            return difference * difference;
        });
    }
    const double deviation = std::sqrt(squares / static_cast<double>(count));
    // Written so that NaN is refused, too.
    if (!(deviation >= least_deviation_hu)) {
        throw Refused(
            "a volume of " + text::sides({image.shape.begin(), image.shape.end()}) +
            " voxels is constant or not a number within " + range(how) +
            " HU; there is nothing to segment, check that it is a CT in HU");
    }
    const auto divisor = static_cast<float>(deviation);
    float lowest = (image.voxels[0] - mean) / divisor;
    for (float& value : image.voxels) {
        value = (value - mean) / divisor;
        lowest = value < lowest ? value : lowest;
    }
    image.lowest = lowest;
}

}  // namespace

Shape grid_shape(const Shape& scan, const std::array<double, 3>& spacing_mm, const Preprocessing& how) {
    Shape grid{};
    double voxels = 1;
    for (std::size_t axis = 0; axis < 3; ++axis) {
        const double step = spacing_mm[axis], target = how.spacing_mm[axis];
        if (!(std::isfinite(step) && step > 0 && std::isfinite(target) && target > 0)) {
            throw Refused(
                "spacing " + lengths(spacing_mm) + " or " + lengths(how.spacing_mm) +
                " mm holds something that is no length above 0");
        }
        const auto side = static_cast<double>(scan[axis]);
        // To even, as Python rounds; the rounding mode is the default one.
        const double sides =
            std::abs(step / target - 1) <= same_spacing ? side : std::max(1.0, std::nearbyint(side * step / target));
        voxels *= sides;
        // What does not fit is refused below.
        grid[axis] = sides <= most_voxels ? static_cast<std::int64_t>(sides) : std::int64_t{1} << 30;
    }
    if (voxels > most_voxels) {
        throw Refused(
            "a scan of " + text::sides({scan.begin(), scan.end()}) + " voxels of " + lengths(spacing_mm) +
            " mm becomes " + text::sides({grid.begin(), grid.end()}) + " at " + lengths(how.spacing_mm) +
            " mm, more than " + text::grouped(static_cast<std::uint64_t>(most_voxels)) +
            " voxels; check its spacing, or crop it");
    }
    return grid;
}

Image preprocess(ScanFile& scan, const Preprocessing& how) {
    if (!(std::isfinite(how.clip_low_hu) && std::isfinite(how.clip_high_hu) && how.clip_low_hu < how.clip_high_hu)) {
        throw Refused(
            "preprocessing: clip_hu " + range(how) + " is not a range of HU; give the lower value first");
    }
    const Header& header = scan.header();
    Image image;
    image.shape = grid_shape(header.shape, header.spacing_mm(), how);
    image.voxels.resize(static_cast<std::size_t>(image.shape[0] * image.shape[1] * image.shape[2]));
    {
        Resampler resampler(header.shape, image, how);
        const auto plane = static_cast<std::size_t>(header.shape[0] * header.shape[1]);
        std::vector<float> hu;
        for (std::int64_t count = scan.next_planes(hu); count > 0; count = scan.next_planes(hu)) {
            for (std::int64_t index = 0; index < count; ++index) {
                resampler.take(hu.data() + static_cast<std::size_t>(index) * plane);
            }
        }
    }
    standardize(image, how);
    return image;
}

}  // namespace lhanet
