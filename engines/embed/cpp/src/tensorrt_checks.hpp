// What is looked at before an engine is deserialized, and what TensorRT says when it cannot be.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <string>
#include <vector>

#include <NvInferRuntime.h>

#include "cuda.hpp"
#include "lhanet/error.hpp"
#include "lhanet/manifest.hpp"
#include "text.hpp"

namespace lhanet::tensorrt {

#ifdef LHANET_TENSORRT_RTX
inline constexpr const char* backend = "tensorrt-rtx";
#else
inline constexpr const char* backend = "tensorrt";
#endif

/// A backend's name for people.
inline std::string title_of(const std::string& name) { return name == "tensorrt-rtx" ? "TensorRT-RTX" : "TensorRT"; }

/// A logger that remembers the latest errors, so that a null result can be explained.
class ErrorLog final : public nvinfer1::ILogger {
public:
    void log(Severity severity, const nvinfer1::AsciiChar* text) noexcept override {
        if (severity != Severity::kERROR && severity != Severity::kINTERNAL_ERROR) {
            return;
        }
        try {
            const std::lock_guard<std::mutex> lock(mutex_);
            lines_.emplace_back(text);
            if (lines_.size() > most_lines) {
                lines_.pop_front();
            }
        } catch (const std::exception&) {
            // Without memory for a message there is none.
        }
    }

    /// The error for a null or false result, with TensorRT's own last words.
    [[noreturn]] void fail(const std::string& action, const std::string& path) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const std::string last = lines_.empty() ? "TensorRT gave no reason" : lines_.back();
        if (std::any_of(lines_.begin(), lines_.end(), is_out_of_memory)) {
            throw Lacks("not enough GPU memory to " + action + " (" + path + "): " + last);
        }
        throw Refused(title_of(backend) + " could not " + action + " (" + path + "): " + last);
    }

    /// Forget what was said.
    void clear() {
        const std::lock_guard<std::mutex> lock(mutex_);
        lines_.clear();
    }

private:
    static constexpr std::size_t most_lines = 8;

    static bool is_out_of_memory(const std::string& line) {
        std::string squeezed = text::lower(line);
        const auto is_gap = [](char letter) { return letter == ' ' || letter == '_'; };
        squeezed.erase(std::remove_if(squeezed.begin(), squeezed.end(), is_gap), squeezed.end());
        const auto words = {"outofmemory", "badalloc", "memoryallocation", "failedallocation"};
        return std::any_of(words.begin(), words.end(), [&](const char* word) {
            return squeezed.find(word) != std::string::npos;
        });
    }

    std::mutex mutex_;
    std::deque<std::string> lines_;
};

/// Words with something between them.
inline std::string joined(const std::vector<std::string>& words, const std::string& between) {
    std::string text;
    for (const std::string& word : words) {
        text += (text.empty() ? "" : between) + word;
    }
    return text;
}

/// The name of the GPU that is current. Throws `Lacks` without one, `Refused` where the engine is for another kind.
inline std::string matching_gpu(const std::string& path, const Manifest& manifest) {
    int count = 0, device = 0;
    const cudaError_t found = cudaGetDeviceCount(&count);
    if (found != cudaSuccess || count < 1 || cudaGetDevice(&device) != cudaSuccess) {
        throw Lacks(
            path + " needs an NVIDIA GPU of compute capability " + joined(manifest.compute_capabilities, " or ") +
            ", and there is none here, or no driver for it" +
            (found == cudaSuccess ? "" : std::string(" (") + cudaGetErrorString(found) + ")"));
    }
    cudaDeviceProp properties{};
    cuda::check(cudaGetDeviceProperties(&properties, device), "say what it is");
    const std::string capability = std::to_string(properties.major) + "." + std::to_string(properties.minor);
    const auto& known = manifest.compute_capabilities;
    if (std::find(known.begin(), known.end(), capability) == known.end()) {
        throw Refused(
            path + " was built for compute capability " + joined(known, " and ") + "; this GPU, " + properties.name +
            ", has " + capability + ". Build it again for this GPU");
    }
    return properties.name;
}

/// Whether a release is the library's: its numbers up to what is none, such as the "post1" of a Python package.
inline bool is_release(const std::string& release, const std::array<std::int32_t, 4>& library) {
    std::size_t begin = 0, compared = 0;
    for (; compared < library.size() && begin < release.size(); ++compared) {
        const std::size_t end = std::min(release.find('.', begin), release.size());
        const std::string part = release.substr(begin, end - begin);
        if (part.empty() || part.find_first_not_of("0123456789") != std::string::npos) {
            break;
        }
        if (part != std::to_string(library[compared])) {
            return false;
        }
        begin = end + 1;
    }
    return compared >= 2;
}

/// Throws `Refused` for an engine of another library or another release than the one that is linked.
inline void check_library(const std::string& path, const Manifest& manifest) {
    if (manifest.backend != backend) {
        throw Refused(
            path + " was built with " + title_of(manifest.backend) + ", this library was compiled for " +
            title_of(backend) + "; use the other one, or build the engine again with: lhanet-export trt --backend " +
            backend);
    }
    const std::array<std::int32_t, 4> library = {
        getInferLibMajorVersion(), getInferLibMinorVersion(), getInferLibPatchVersion(), getInferLibBuildVersion()};
    if (!is_release(manifest.backend_version, library)) {
        std::vector<std::string> numbers;
        for (const std::int32_t number : library) {
            numbers.push_back(std::to_string(number));
        }
        throw Refused(
            path + " was built with " + title_of(backend) + " " + manifest.backend_version + ", installed is " +
            joined(numbers, ".") + ", and engines do not carry over between releases; build it again with: " +
            "lhanet-export trt");
    }
}

}  // namespace lhanet::tensorrt
