#include "options.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "lhanet/error.hpp"

namespace app {

namespace {

using lhanet::Refused;

// The same limits as lhanet-export's.
constexpr std::int64_t longest_side = 1024;
constexpr double most_overlap = 0.95;

[[noreturn]] void refuse(const std::string& reason) { throw Refused(reason + "; see lhanet-segment --help"); }

bool is_number(const std::string& text, const char* letters) {
    return !text.empty() && text.find_first_not_of(letters) == std::string::npos;
}

lhanet::Shape patch_from(const std::string& text) {
    lhanet::Shape shape{};
    std::size_t begin = 0;
    for (std::size_t axis = 0; axis < 3; ++axis) {
        const std::size_t end = axis < 2 ? text.find('x', begin) : text.size();
        const std::string side = end == std::string::npos ? "" : text.substr(begin, end - begin);
        if (!is_number(side, "0123456789") || side.size() > 4) {
            refuse("--patch: '" + text + "' is not a size; write depth x height x width in voxels, as in 64x128x128");
        }
        shape[axis] = std::atoi(side.c_str());
        if (shape[axis] < 1 || shape[axis] > longest_side) {
            refuse("--patch: '" + text + "': every side must be 1 to " + std::to_string(longest_side) + " voxels");
        }
        begin = end + 1;
    }
    return shape;
}

double overlap_from(const std::string& text) {
    // Neither "nan" nor what another locale would write.
    char* end = nullptr;
    const double overlap = is_number(text, "0123456789.eE+-") ? std::strtod(text.c_str(), &end) : -1;
    if (end == nullptr || *end != '\0' || !(overlap >= 0 && overlap <= most_overlap)) {
        refuse("--overlap: '" + text + "' is no share of a window; give 0 to 0.95, often 0.5");
    }
    return overlap;
}

lhanet::Blending blending_from(const std::string& text) {
    if (text != "gaussian" && text != "constant") {
        refuse("--blending: '" + text + "' is not known; known are gaussian and constant");
    }
    return text == "gaussian" ? lhanet::Blending::gaussian : lhanet::Blending::constant;
}

// An option, with its value where it has one: `--patch 1x2x3` or `--patch=1x2x3`.
void take(Options& options, const std::vector<std::string>& arguments, std::size_t& at) {
    const std::string& argument = arguments[at];
    const std::size_t equals = argument.find('=');
    const std::string name = argument.substr(0, equals);
    const auto value = [&] {
        if (equals != std::string::npos) {
            return argument.substr(equals + 1);
        }
        if (at + 1 == arguments.size()) {
            refuse(name + " needs a value");
        }
        return arguments[++at];
    };
    if (name == "--patch") {
        options.patch = patch_from(value());
    } else if (name == "--overlap") {
        options.overlap = overlap_from(value());
    } else if (name == "--blending") {
        options.blending = blending_from(value());
    } else if (argument == "--null") {
        options.null = true;
    } else if (argument == "--assume-hu") {
        options.assume_hu = true;
    } else if (argument == "--largest-component") {
        options.largest_component = true;
    } else if (argument == "-h" || argument == "--help") {
        options.help = true;
    } else {
        refuse("there is no option '" + argument + "'");
    }
}

}  // namespace

const char* const help =
    "Usage: lhanet-segment [OPTIONS] ENGINE SCAN LABELS\n"
    "\n"
    "Segment SCAN, a CT in HU as .nii or .nii.gz, with ENGINE, whose manifest lies beside it as ENGINE.json.\n"
    "LABELS (.nii or .nii.gz) gets the scan's grid, affine and header.\n"
    "\n"
    "Options:\n"
    "  --patch DxHxW         Size of a window in voxels of the network's grid. Default: what the manifest says.\n"
    "  --overlap SHARE       What neighbouring windows share of a side, 0 to 0.95. Default: what the manifest says.\n"
    "  --blending KIND       gaussian or constant. Default: what the manifest says.\n"
    "  --largest-component   Of each organ keep the largest piece only.\n"
    "  --assume-hu           Take values that do not look like HU.\n"
    "  --null                Without the network: labels by brightness, for testing where there is no GPU.\n"
    "  -h, --help            Show this.\n"
    "\n"
    "Exit codes: 0 done; 1 a fault of this program; 2 refused input; 3 the machine lacks something (a GPU, a library,\n"
    "memory, disk).\n";

Options parse(const std::vector<std::string>& arguments) {
    Options options;
    std::vector<std::string> paths;
    bool is_over = false;
    for (std::size_t at = 0; at < arguments.size(); ++at) {
        const std::string& argument = arguments[at];
        if (!is_over && argument == "--") {
            is_over = true;
        } else if (!is_over && argument.size() > 1 && argument[0] == '-') {
            take(options, arguments, at);
        } else {
            paths.push_back(argument);
        }
    }
    if (options.help) {
        return options;
    }
    if (paths.size() != 3 || std::any_of(paths.begin(), paths.end(), [](const auto& path) { return path.empty(); })) {
        refuse("expected ENGINE, SCAN and LABELS, found " + std::to_string(paths.size()) + " names");
    }
    options.engine = paths[0];
    options.scan = paths[1];
    options.labels = paths[2];
    return options;
}

}  // namespace app
