#include "lhanet/segment.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "blend.hpp"
#include "lhanet/error.hpp"
#include "preprocess.hpp"
#include "text.hpp"
#include "windows.hpp"

namespace lhanet {

namespace {

constexpr std::int64_t most_labels = 256;

// Whether there is NaN or infinity: all bits of the exponent are set. As whole numbers, which are compared in parallel.
bool all_finite(const float* values, std::size_t count) {
    constexpr std::uint32_t exponent = 0x7f800000;
    std::uint32_t bad = 0;
    for (std::size_t at = 0; at < count; ++at) {
        std::uint32_t bits = 0;
        std::memcpy(&bits, values + at, sizeof(bits));
        bad |= static_cast<std::uint32_t>((bits & exponent) == exponent);
    }
    return bad == 0;
}

// Whether each class has one score everywhere, asked window by window.
class Sameness {
public:
    void add(const float* scores, std::size_t classes, std::size_t cells) {
        seen_ += cells;
        if (first_.empty()) {
            for (std::size_t k = 0; k < classes; ++k) {
                first_.push_back(scores[k * cells]);
            }
        }
        for (std::size_t k = 0; is_same_ && k < classes; ++k) {
            const float* begin = scores + k * cells;
            is_same_ = std::all_of(begin, begin + cells, [&](float value) { return value == first_[k]; });
        }
    }

    bool is_everywhere() const { return is_same_ && seen_ > 1; }

private:
    std::vector<float> first_;
    std::size_t seen_ = 0;
    bool is_same_ = true;
};

// Windows of one row that are run at a time.
struct Group {
    std::size_t row, first, count;
};

class Segmentation {
public:
    Segmentation(
        Image image, const Shape& scan, Engine& engine, const Preprocessing& how,
        const std::function<void(std::int64_t, std::int64_t)>& advance)
        : image_(std::move(image)),
          engine_(engine),
          advance_(advance),
          tiling_(tiling_of(image_.shape, how)),
          batch_(static_cast<std::size_t>(engine.batch())),
          scores_shape_(engine.scores_shape()),
          blend_(blend_of(tiling_, scan, scores_shape_)),
          labels_(static_cast<std::size_t>(scan[0] * scan[1] * scan[2])) {}

    // One slot is filled while the other one is run, and read while the next one is.
    std::vector<std::uint8_t> run() {
        int slot = 0;
        Group before{}, next{};
        for (bool is_first = true; next.row < tiling_.rows(); is_first = false) {
            next.count = std::min(batch_, tiling_.in_row() - next.first);
            fill(slot, next);
            engine_.start(slot);
            slot = 1 - slot;
            if (!is_first) {
                take(slot, before);
            }
            before = next;
            next.first += next.count;
            if (next.first == tiling_.in_row()) {
                next = {next.row + 1, 0, 0};
            }
        }
        take(1 - slot, before);
        if (sameness_.is_everywhere()) {
            throw Refused(
                "the network gives the same scores everywhere; no labels are made of that. Does the model pass "
                "lhanet-export verify?");
        }
        return std::move(labels_);
    }

private:
    void fill(int slot, const Group& group) {
        const Shape patch = tiling_.patch();
        const auto voxels = static_cast<std::size_t>(patch[0] * patch[1] * patch[2]);
        float* windows = engine_.windows(slot);
        for (std::size_t index = 0; index < batch_; ++index) {
            // Where there are fewer than the engine takes, the last one comes more than once.
            if (index < group.count) {
                copy_window(image_, tiling_.window(group.row, group.first + index), patch, windows + index * voxels);
            } else {
                std::copy_n(windows + (index - 1) * voxels, voxels, windows + index * voxels);
            }
        }
    }

    void take(int slot, const Group& group) {
        const float* scores = engine_.wait(slot);
        const auto classes = static_cast<std::size_t>(scores_shape_[0]);
        const auto cells = static_cast<std::size_t>(scores_shape_[1] * scores_shape_[2] * scores_shape_[3]);
        for (std::size_t index = 0; index < group.count; ++index, scores += classes * cells) {
            const Window window = tiling_.window(group.row, group.first + index);
            if (!all_finite(scores, classes * cells)) {
                throw Refused(
                    "the network gives NaN or infinity in the window at " +
                    text::sides({window.start.begin(), window.start.end()}) +
                    "; no labels are made of that. Does the model pass lhanet-export verify on such scans?");
            }
            sameness_.add(scores, classes, cells);
            blend_->add(window, scores);
            ++done_;
            if (advance_) {
                advance_(done_, tiling_.windows());
            }
        }
        if (group.first + group.count == tiling_.in_row()) {
            blend_->finish_row(labels_);
        }
    }

    Image image_;
    Engine& engine_;
    const std::function<void(std::int64_t, std::int64_t)>& advance_;
    Tiling tiling_;
    std::size_t batch_;
    std::array<std::int64_t, 4> scores_shape_;
    std::unique_ptr<Blend> blend_;
    Sameness sameness_;
    std::vector<std::uint8_t> labels_;
    std::int64_t done_ = 0;
};

void check_engine(const Engine& engine) {
    const auto shape = engine.scores_shape();
    if (engine.batch() < 1 || std::any_of(shape.begin(), shape.end(), [](std::int64_t side) { return side < 1; })) {
        throw std::logic_error("an engine has a batch and scores of at least 1");
    }
    if (shape[0] > most_labels) {
        throw Refused(
            "the engine has " + std::to_string(shape[0]) + " classes; a label map of 8 bits has " +
            std::to_string(most_labels));
    }
}

}  // namespace

std::vector<std::uint8_t> segment(
    ScanFile& scan, Engine& engine, const Preprocessing& how,
    const std::function<void(std::int64_t, std::int64_t)>& advance) {
    const std::string name = scan.path().string();
    try {
        check_engine(engine);
        return Segmentation(preprocess(scan, how), scan.header().shape, engine, how, advance).run();
    } catch (const Refused& error) {
        // What is wrong with values rather than with a file does not name it.
        const std::string reason = error.what();
        throw Refused(reason.find(name) == std::string::npos ? name + ": " + reason : reason);
    } catch (const std::bad_alloc&) {
        throw Lacks(name + " needs more memory than there is; crop it, or build the engine with --output coarse");
    }
}

}  // namespace lhanet
