#include "profile.hpp"

#include <string>

#include "lhanet/error.hpp"

namespace lhanet {

namespace {

constexpr std::size_t most_labels = 256;

std::string by_sides(const Shape& shape) {
    return std::to_string(shape[0]) + "x" + std::to_string(shape[1]) + "x" + std::to_string(shape[2]);
}

bool serves(const SpatialRange& range, const Shape& shape) {
    for (std::size_t axis = 0; axis < 3; ++axis) {
        if (shape[axis] < range.min[axis] || shape[axis] > range.max[axis]) {
            return false;
        }
    }
    return true;
}

}  // namespace

std::size_t profile_of(const Manifest& manifest, const Shape& patch) {
    std::string served;
    for (std::size_t index = 0; index < manifest.profiles.size(); ++index) {
        const SpatialRange& range = manifest.profiles[index];
        if (serves(range, patch)) {
            return index;
        }
        served += index == 0 ? "" : ", ";
        served += by_sides(range.min) + ":" + by_sides(range.opt) + ":" + by_sides(range.max);
    }
    throw Refused("a volume of " + by_sides(patch) + " is outside the engine's range " + served);
}

std::int64_t batch_of(const Manifest& manifest) {
    const auto& shape = manifest.input.shape;
    return !shape.empty() && shape[0] > 0 ? shape[0] : 1;
}

void check_output(const Manifest& manifest) {
    if (manifest.output.name == "labels") {
        throw Refused("the engine gives labels, of which no windows can be blended; export it with --output coarse");
    }
    if (manifest.labels.size() > most_labels) {
        throw Refused(
            "the engine has " + std::to_string(manifest.labels.size()) + " classes; a label map of 8 bits has " +
            std::to_string(most_labels));
    }
}

}  // namespace lhanet
