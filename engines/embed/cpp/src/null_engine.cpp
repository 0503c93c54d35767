#include <cstddef>
#include <stdexcept>
#include <utility>
#include <vector>

#include "lhanet/engine.hpp"
#include "lhanet/error.hpp"
#include "profile.hpp"

namespace lhanet {

namespace {

// Voxels along an axis that a cell of coarse scores stands for.
constexpr std::int64_t coarse = 16;

// The rule of lhanet_export/runners/null.py, operation by operation in float32.
class NullEngine final : public Engine {
public:
    NullEngine(const Manifest& manifest, const Shape& patch) : patch_(patch), batch_(batch_of(manifest)) {
        check_output(manifest);
        profile_of(manifest, patch);
        if (manifest.labels.size() < 2) {
            throw Refused("the manifest names " + std::to_string(manifest.labels.size()) + " classes; 2 are the least");
        }
        shape_ = {static_cast<std::int64_t>(manifest.labels.size()), patch[0], patch[1], patch[2]};
        for (std::size_t axis = 0; manifest.output.name == "coarse" && axis < 3; ++axis) {
            shape_[axis + 1] = (patch[axis] + coarse - 1) / coarse;
        }
        for (Slot& slot : slots_) {
            slot.windows.resize(static_cast<std::size_t>(batch_ * patch[0] * patch[1] * patch[2]));
            slot.scores.resize(static_cast<std::size_t>(batch_ * shape_[0] * shape_[1] * shape_[2] * shape_[3]));
        }
    }

    std::string name() const override { return "null: no network, labels by brightness"; }

    std::int64_t batch() const override { return batch_; }

    std::array<std::int64_t, 4> scores_shape() const override { return shape_; }

    float* windows(int slot) override { return at(slot).windows.data(); }

    void start(int slot) override {
        Slot& started = at(slot);
        const float* window = started.windows.data();
        float* scores = started.scores.data();
        for (std::int64_t n = 0; n < batch_; ++n) {
            for (std::int64_t k = 0; k < shape_[0]; ++k) {
                scores = score(window, k, scores);
            }
            window += patch_[0] * patch_[1] * patch_[2];
        }
    }

    const float* wait(int slot) override { return at(slot).scores.data(); }

private:
    struct Slot {
        std::vector<float> windows, scores;
    };

    Slot& at(int slot) {
        if (slot < 0 || slot >= slots) {
            throw std::logic_error("an engine has two slots");
        }
        return slots_[static_cast<std::size_t>(slot)];
    }

    // The voxel that a cell reads.
    std::int64_t read(std::size_t axis, std::int64_t cell) const {
        return (2 * cell + 1) * patch_[axis] / (2 * shape_[axis + 1]);
    }

    // The scores of a class in a window; where the next ones go.
    float* score(const float* window, std::int64_t k, float* to) const {
        const auto classes = static_cast<double>(shape_[0]);
        const auto middle = static_cast<float>(-1.7 + 3.4 * static_cast<double>(k) / (classes - 1));
        for (std::int64_t d = 0; d < shape_[1]; ++d) {
            for (std::int64_t h = 0; h < shape_[2]; ++h) {
                const float* row = window + (read(0, d) * patch_[1] + read(1, h)) * patch_[2];
                for (std::int64_t w = 0; w < shape_[3]; ++w) {
                    const float away = row[read(2, w)] - middle;
                    const std::int64_t place = (5 * d + 3 * h + w) % 7;
                    *to++ = -(away * away) + static_cast<float>(place * (k % 3)) * 0.03125F;
                }
            }
        }
        return to;
    }

    Shape patch_;
    std::int64_t batch_;
    std::array<std::int64_t, 4> shape_{};
    std::array<Slot, slots> slots_;
};

}  // namespace

std::unique_ptr<Engine> open_null_engine(const Manifest& manifest, const Shape& patch) {
    return std::make_unique<NullEngine>(manifest, patch);
}

}  // namespace lhanet
