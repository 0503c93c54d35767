// Kernels that TensorRT-RTX compiled for the GPU that is here, kept beside the engine for the next start.
#pragma once

#include <cstddef>
#include <exception>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include <NvInferRuntime.h>
#include <unistd.h>

#include "file.hpp"
#include "owner.hpp"

namespace lhanet {

/// The runtime cache of an engine, in `<engine>.cache`: read when it is made, written when it goes.
///
/// Kernels are code, so the file counts only where nobody else could have written it. TensorRT-RTX refuses those of
/// another GPU, driver or release by itself. Without the cache everything works, the first run takes longer; so nothing
/// that is wrong with it is an error.
class KernelCache {
public:
    KernelCache(const std::filesystem::path& engine, nvinfer1::IRuntimeConfig& config)
        : path_(engine), cache_(config.createRuntimeCache()) {
        path_ += ".cache";
        if (!cache_) {
            return;
        }
        read();
        if (!known_.empty() && !cache_->deserialize(known_.data(), known_.size())) {
            known_.clear();  // another machine's
        }
        if (!config.setRuntimeCache(*cache_)) {
            cache_.reset();
        }
    }

    ~KernelCache() {
        try {
            write();
        } catch (const std::exception&) {
            std::error_code ignored;
            std::filesystem::remove(temporary(), ignored);
        }
    }

    KernelCache(const KernelCache&) = delete;
    KernelCache& operator=(const KernelCache&) = delete;

private:
    // Kernels of one network are some MB; more is not what this library wrote.
    static constexpr long long most_bytes = 1LL << 30;

    std::filesystem::path temporary() const {
        std::filesystem::path path = path_;
        return path += "." + std::to_string(::getpid());
    }

    void read() {
        try {
            File file = File::reading(path_);
            check_owner(path_, file.status());
            check_owner(folder_of(path_));
            if (file.status().st_size <= most_bytes) {
                known_.resize(static_cast<std::size_t>(file.status().st_size));
                known_.resize(file.read(known_.data(), known_.size()));
            }
        } catch (const std::exception&) {
            known_.clear();  // the first start, or somebody else's file
        }
    }

    void write() const {
        const std::unique_ptr<nvinfer1::IHostMemory> kernels(cache_ ? cache_->serialize() : nullptr);
        if (!kernels || kernels->size() == 0) {
            return;
        }
        const auto* begin = static_cast<const unsigned char*>(kernels->data());
        if (known_ == std::vector<unsigned char>(begin, begin + kernels->size())) {
            return;
        }
        File file = File::making(temporary());
        file.write(begin, kernels->size());
        file.sync();
        file.close();
        std::filesystem::rename(temporary(), path_);
    }

    std::filesystem::path path_;
    std::vector<unsigned char> known_;
    std::unique_ptr<nvinfer1::IRuntimeCache> cache_;
};

}  // namespace lhanet
