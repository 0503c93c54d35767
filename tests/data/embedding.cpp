// An application that brings its own engine: what one writes to embed the library, and a look at its insides.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include <lhanet/engine.hpp>
#include <lhanet/error.hpp>
#include <lhanet/segment.hpp>

#include "half.hpp"

namespace {

// Two classes: below the scan's mean, and above. Its slots insist on being used in turn.
class Sign final : public lhanet::Engine {
public:
    Sign(const lhanet::Shape& patch, std::string kind)
        : patch_(patch), voxels_(static_cast<std::size_t>(patch[0] * patch[1] * patch[2])), kind_(std::move(kind)) {
        for (Slot& slot : slots_) {
            slot.windows.resize(2 * voxels_);
            slot.scores.resize(4 * voxels_);
        }
    }

    std::string name() const override { return "sign"; }
    std::int64_t batch() const override { return 2; }
    std::array<std::int64_t, 4> scores_shape() const override { return {2, patch_[0], patch_[1], patch_[2]}; }
    float* windows(int slot) override { return at(slot, false).windows.data(); }

    void start(int slot) override {
        Slot& one = at(slot, false);
        one.is_under_way = true;
        for (std::size_t index = 0; index < 2 * voxels_; ++index) {
            const std::size_t window = index / voxels_, voxel = index % voxels_;
            float* scores = one.scores.data() + 2 * window * voxels_ + voxel;
            scores[0] = kind_ == "constant" ? 1.0F : -one.windows[index];
            scores[voxels_] = kind_ == "constant" ? 2.0F : one.windows[index];
        }
        ++started_;
        if (kind_ == "nan") {
            one.scores[voxels_ + 3] = std::numeric_limits<float>::quiet_NaN();
        } else if (kind_ == "infinity") {
            one.scores[0] = -std::numeric_limits<float>::infinity();
        } else if (kind_ == "last") {
            one.scores.back() = std::numeric_limits<float>::infinity();
        }
    }

    const float* wait(int slot) override {
        Slot& one = at(slot, true);
        one.is_under_way = false;
        return one.scores.data();
    }

private:
    struct Slot {
        std::vector<float> windows, scores;
        bool is_under_way = false;
    };

    Slot& at(int slot, bool is_under_way) {
        Slot& one = slots_.at(static_cast<std::size_t>(slot));
        if (one.is_under_way != is_under_way) {
            throw std::logic_error("a slot is used out of turn");
        }
        return one;
    }

    lhanet::Shape patch_;
    std::size_t voxels_;
    std::string kind_;
    std::array<Slot, slots> slots_;
    int started_ = 0;
};

int segment(const std::string& kind, const char* path) {
    lhanet::Preprocessing how;
    how.spacing_mm = {1.5, 1.5, 1.5};
    how.clip_low_hu = -200;
    how.clip_high_hu = 300;
    how.blending_sigma_divisor = 4;
    lhanet::ScanFile scan(path, true);
    const lhanet::Header& header = scan.header();
    // Two windows along the first axis, one along the others.
    for (std::size_t axis = 0; axis < 3; ++axis) {
        how.patch[axis] = static_cast<std::int64_t>(
            static_cast<double>(header.shape[axis]) * header.spacing_mm()[axis] / 1.5 + 0.5);
    }
    how.patch[0] -= 7;
    Sign engine(how.patch, kind);
    std::string last;
    const auto labels = lhanet::segment(scan, engine, how, [&](std::int64_t windows, std::int64_t of) {
        last = std::to_string(windows) + " of " + std::to_string(of) + " windows";
    });
    std::size_t above = 0;
    for (const std::uint8_t label : labels) {
        above += label;
    }
    std::printf("%s\n%zu of %zu voxels\n", last.c_str(), above, labels.size());
    return above > 0 && above < labels.size() ? 0 : 1;
}

// 65536 numbers of 16 bits come in and leave as floats; floats come in and leave as numbers of 16 bits.
void convert() {
    std::vector<std::uint16_t> halves(1 << 16);
    std::vector<float> values(halves.size());
    if (std::fread(halves.data(), sizeof(halves[0]), halves.size(), stdin) != halves.size()) {
        throw std::runtime_error("too little input");
    }
    lhanet::from_half(halves.data(), halves.size(), values.data());
    std::fwrite(values.data(), sizeof(values[0]), values.size(), stdout);
    for (std::size_t count = 0; (count = std::fread(values.data(), sizeof(values[0]), values.size(), stdin)) > 0;) {
        lhanet::to_half(values.data(), count, halves.data());
        std::fwrite(halves.data(), sizeof(halves[0]), count, stdout);
    }
}

}  // namespace

int main(int count, char** arguments) {
    try {
        if (count == 2 && std::strcmp(arguments[1], "half") == 0) {
            convert();
            return 0;
        }
        return count == 3 ? segment(arguments[1], arguments[2]) : 1;
    } catch (const lhanet::Refused& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 2;
    }
}
