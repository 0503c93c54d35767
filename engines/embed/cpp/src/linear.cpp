#include "linear.hpp"

#include <algorithm>

namespace lhanet {

Taps linear_taps(std::int64_t samples, std::int64_t results) {
    Taps taps;
    const auto count = static_cast<std::size_t>(results);
    const auto last = static_cast<std::size_t>(samples - 1);
    taps.first.reserve(count);
    taps.second.reserve(count);
    taps.share.reserve(count);
    for (std::int64_t index = 0; index < results; ++index) {
        const double middle = static_cast<double>(index) + 0.5;
        const double source = std::clamp(
            middle * static_cast<double>(samples) / static_cast<double>(results) - 0.5, 0.0,
            static_cast<double>(samples - 1));
        const auto first = static_cast<std::size_t>(source);
        taps.first.push_back(first);
        taps.second.push_back(std::min(first + 1, last));
        taps.share.push_back(source - static_cast<double>(first));
    }
    return taps;
}

}  // namespace lhanet
