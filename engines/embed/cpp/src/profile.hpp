// Which sizes an engine serves.
#pragma once

#include <cstddef>

#include "lhanet/manifest.hpp"

namespace lhanet {

/// The index of the first profile that serves windows of `patch` (D,H,W). Throws `Refused` if none does.
std::size_t profile_of(const Manifest& manifest, const Shape& patch);

/// How many windows an engine is given at a time: what its input says, 1 where it takes any number.
std::int64_t batch_of(const Manifest& manifest);

/// Throws `Refused` for an engine whose output cannot be blended: labels, or more classes than a label map has.
void check_output(const Manifest& manifest);

}  // namespace lhanet
