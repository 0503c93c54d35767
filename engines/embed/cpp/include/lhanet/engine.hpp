// Running an engine on windows: an interface, TensorRT and TensorRT-RTX behind it, and one without a network.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "lhanet/manifest.hpp"

namespace lhanet {

/// An engine that is open for windows of one size. What it allocates, it allocates once.
///
/// There are two slots, each with memory for a batch of windows. While one slot is being run, the other one can be
/// filled or read. One thread at a time; for several threads open an engine in each.
class Engine {
public:
    static constexpr int slots = 2;

    virtual ~Engine() = default;
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    /// Library, precision and device, for people.
    virtual std::string name() const = 0;

    /// How many windows are run at a time.
    virtual std::int64_t batch() const = 0;

    /// What a window's scores are: classes and the grid (K,d,h,w), that of the window's voxels or a coarser one.
    virtual std::array<std::int64_t, 4> scores_shape() const = 0;

    /// Where the windows (N,1,D,H,W) of a slot are to be put. Not to be written between `start` and `wait`.
    virtual float* windows(int slot) = 0;

    /// Begin with the windows of a slot. Throws `Lacks` for what a GPU may fail at; the engine is of no use after it.
    virtual void start(int slot) = 0;

    /// The scores (N,K,d,h,w) of a slot that was started, valid until the slot is started again.
    virtual const float* wait(int slot) = 0;

protected:
    Engine() = default;
};

/// Open an engine file for windows of `patch` (D,H,W).
///
/// The bytes are hashed before they are deserialized. It runs on the CUDA device that is current in this thread, which
/// has to be the current one of every thread that uses it. Throws `Refused` for an engine that is not the manifest's,
/// was built for another release or GPU, or does not serve this size; `Lacks` without GPU, library or memory, and
/// where this library was compiled without TensorRT.
std::unique_ptr<Engine> open_engine(const std::filesystem::path& engine, const Manifest& manifest, const Shape& patch);

/// No network: scores by a voxel's brightness and its place in the window, with the manifest's classes and output.
///
/// For testing an application where there is no GPU; the same rule as `lhanet-export predict --null`. An output named
/// "coarse" has a cell for every 16 voxels of an axis.
std::unique_ptr<Engine> open_null_engine(const Manifest& manifest, const Shape& patch);

}  // namespace lhanet
