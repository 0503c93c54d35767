// The command line of lhanet-segment.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "lhanet/manifest.hpp"

namespace app {

/// What the user asked for; what is not there is taken from the manifest.
struct Options {
    bool help = false, null = false, assume_hu = false, largest_component = false;
    std::optional<lhanet::Shape> patch;
    std::optional<double> overlap;
    std::optional<lhanet::Blending> blending;
    std::filesystem::path engine, scan, labels;
};

/// The text of `--help`.
extern const char* const help;

/// Options from the arguments after the program's name. Throws `lhanet::Refused` for what it does not know.
Options parse(const std::vector<std::string>& arguments);

}  // namespace app
