#include <algorithm>
#include <array>
#include <cstddef>

#include "lhanet/segment.hpp"

namespace lhanet {

namespace {

// Voxels of one label that follow each other along X.
struct Run {
    std::size_t begin, end;  // in the volume
    std::size_t parent;  // a run of the same piece, of all of them the first one in the end
    std::size_t voxels;  // of the whole piece, at its first run
};

// The runs of a volume in (Z,Y,X), and which of them hang together.
class Pieces {
public:
    Pieces(const std::vector<std::uint8_t>& labels, const Shape& shape)
        : labels_(labels), x_(static_cast<std::size_t>(shape[0])), y_(static_cast<std::size_t>(shape[1])) {
        const std::size_t rows = labels.size() / x_;
        rows_.reserve(rows + 1);
        rows_.push_back(0);
        for (std::size_t row = 0; row < rows; ++row) {
            find_runs(row);
            rows_.push_back(runs_.size());
            const std::size_t y = row % y_;
            // The rows that hold the neighbours that come before: one of this slice, three of the one before it.
            if (y > 0) {
                join(row, row - 1);
            }
            if (row >= y_) {
                const std::size_t above = row - y_;
                for (std::size_t other = y > 0 ? above - 1 : above; other <= above + (y + 1 < y_ ? 1 : 0); ++other) {
                    join(row, other);
                }
            }
        }
        for (std::size_t at = 0; at < runs_.size(); ++at) {
            runs_[at].parent = root(at);
            if (runs_[at].parent != at) {
                runs_[runs_[at].parent].voxels += runs_[at].end - runs_[at].begin;
            }
        }
    }

    const std::vector<Run>& runs() const { return runs_; }

private:
    void find_runs(std::size_t row) {
        const std::size_t end = (row + 1) * x_;
        for (std::size_t at = row * x_; at < end;) {
            const std::uint8_t label = labels_[at];
            const std::size_t begin = at;
            while (at < end && labels_[at] == label) {
                ++at;
            }
            if (label != 0) {
                runs_.push_back({begin, at, runs_.size(), at - begin});
            }
        }
    }

    // Join runs of two rows that touch, be it at an edge or a corner.
    void join(std::size_t row, std::size_t other) {
        const std::size_t shift = (row - other) * x_;
        std::size_t first = rows_[other];
        for (std::size_t at = rows_[row]; at < rows_[row + 1]; ++at) {
            while (first < rows_[other + 1] && runs_[first].end + shift < runs_[at].begin) {
                ++first;
            }
            for (std::size_t to = first; to < rows_[other + 1] && runs_[to].begin + shift <= runs_[at].end; ++to) {
                if (labels_[runs_[to].begin] == labels_[runs_[at].begin]) {
                    const std::size_t a = root(at), b = root(to);
                    runs_[std::max(a, b)].parent = std::min(a, b);
                }
            }
        }
    }

    std::size_t root(std::size_t at) {
        while (runs_[at].parent != at) {
            runs_[at].parent = runs_[runs_[at].parent].parent;
            at = runs_[at].parent;
        }
        return at;
    }

    const std::vector<std::uint8_t>& labels_;
    std::size_t x_, y_;
    std::vector<Run> runs_;
    std::vector<std::size_t> rows_;
};

}  // namespace

std::int64_t keep_largest(std::vector<std::uint8_t>& labels, const Shape& shape) {
    const Pieces pieces(labels, shape);
    const auto& runs = pieces.runs();
    constexpr std::size_t none = static_cast<std::size_t>(-1);
    std::array<std::size_t, 256> largest{};
    largest.fill(none);
    for (std::size_t at = 0; at < runs.size(); ++at) {
        std::size_t& best = largest[labels[runs[at].begin]];
        if (runs[at].parent == at && (best == none || runs[at].voxels > runs[best].voxels)) {
            best = at;
        }
    }
    std::int64_t removed = 0;
    for (const Run& run : runs) {
        if (run.parent != largest[labels[run.begin]]) {
            std::fill_n(labels.begin() + static_cast<std::ptrdiff_t>(run.begin), run.end - run.begin, std::uint8_t{0});
            removed += static_cast<std::int64_t>(run.end - run.begin);
        }
    }
    return removed;
}

}  // namespace lhanet
