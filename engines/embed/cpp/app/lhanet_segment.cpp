// lhanet-segment: a CT scan becomes a segmentation, with an engine and its manifest and nothing else.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <memory>
#include <new>
#include <string>
#include <system_error>
#include <vector>

#include <unistd.h>

#include "lhanet/engine.hpp"
#include "lhanet/error.hpp"
#include "lhanet/manifest.hpp"
#include "lhanet/nifti.hpp"
#include "lhanet/segment.hpp"
#include "options.hpp"

namespace {

namespace fs = std::filesystem;

constexpr int done = 0, our_bug = 1, refused = 2, lacking = 3;

/// A line on stderr that says how far the windows are, where somebody looks at it.
class Progress {
public:
    Progress() : is_seen_(::isatty(STDERR_FILENO) == 1) {}
    ~Progress() { clear(); }
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;

    void show(std::int64_t windows, std::int64_t of) {
        if (is_seen_) {
            std::fprintf(stderr, "\r%lld of %lld windows", static_cast<long long>(windows), static_cast<long long>(of));
            is_shown_ = true;
        }
    }

    void clear() {
        if (is_shown_) {
            std::fputs("\r\033[K", stderr);
            is_shown_ = false;
        }
    }

private:
    bool is_seen_, is_shown_ = false;
};

bool ends_in(const std::string& text, const std::string& end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

std::string lower(std::string text) {
    for (char& letter : text) {
        letter = letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter - 'A' + 'a') : letter;
    }
    return text;
}

/// Refuse a target that cannot be written safely: a folder, a device, or one of the inputs.
void check_output_path(const fs::path& target, const std::vector<fs::path>& inputs) {
    const std::string name = lower(target.filename().string());
    if (!(ends_in(name, ".nii") || ends_in(name, ".nii.gz")) || fs::is_directory(target)) {
        throw lhanet::Refused(target.string() + " should be a file that ends in .nii or .nii.gz");
    }
    if (!fs::exists(target)) {
        return;
    }
    if (!fs::is_regular_file(target)) {
        throw lhanet::Refused(target.string() + " exists and is not a regular file; name another output");
    }
    for (const fs::path& input : inputs) {
        if (fs::exists(input) && fs::equivalent(target, input)) {
            throw lhanet::Refused(target.string() + " is an input of this command; name another output");
        }
    }
}

void segment(const app::Options& options) {
    fs::path sidecar = options.engine;
    sidecar += ".json";
    check_output_path(options.labels, {options.engine, sidecar, options.scan});
    const lhanet::Manifest manifest = lhanet::read_manifest(options.engine);
    lhanet::Preprocessing how = manifest.preprocessing;
    how.patch = options.patch.value_or(how.patch);
    how.overlap = options.overlap.value_or(how.overlap);
    how.blending = options.blending.value_or(how.blending);
    if (manifest.output.name == "labels") {
        throw lhanet::Refused(
            options.engine.string() +
            " gives labels, of which no windows can be blended; export it with --output coarse");
    }
    // Before the engine, which takes seconds to open.
    lhanet::ScanFile scan(options.scan, options.assume_hu);
    if (options.null) {
        lhanet::verified_engine_bytes(options.engine, manifest);
    }
    const std::unique_ptr<lhanet::Engine> engine = options.null
        ? lhanet::open_null_engine(manifest, how.patch)
        : lhanet::open_engine(options.engine, manifest, how.patch);
    std::vector<std::uint8_t> labels;
    {
        Progress progress;
        labels = lhanet::segment(
            scan, *engine, how, [&](std::int64_t windows, std::int64_t of) { progress.show(windows, of); });
    }
    if (options.largest_component) {
        lhanet::keep_largest(labels, scan.header().shape);
    }
    lhanet::write_labels(options.labels, scan.header(), labels);
}

/// One line: a message may hold a file's name, and that anything.
void complain(const char* text) {
    std::string line = "error: ";
    for (const char* at = text; *at != '\0'; ++at) {
        const auto byte = static_cast<unsigned char>(*at);
        line += byte < 0x20 || byte == 0x7f ? '?' : *at;
    }
    std::fprintf(stderr, "%s\n", line.c_str());
}

int run(int count, char** arguments) {
    try {
        const app::Options options = app::parse({arguments + 1, arguments + count});
        if (options.help) {
            std::fputs(app::help, stdout);
            return std::fflush(stdout) == 0 ? done : lacking;
        }
        segment(options);
        return done;
    } catch (const lhanet::Refused& error) {
        complain(error.what());
        return refused;
    } catch (const lhanet::Lacks& error) {
        complain(error.what());
        return lacking;
    } catch (const std::bad_alloc&) {
        complain("not enough memory; crop the scan, or use a machine with more");
        return lacking;
    } catch (const fs::filesystem_error& error) {
        complain(error.what());
        return refused;
    } catch (const std::exception& error) {
        complain((std::string("this is a fault of lhanet-segment, please report it: ") + error.what()).c_str());
        return our_bug;
    }
}

}  // namespace

int main(int count, char** arguments) { return run(count, arguments); }
