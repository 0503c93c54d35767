// The manifest that lies beside an engine as `<engine>.json`: what the engine is, and how a scan becomes its input.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace lhanet {

/// Three sides in voxels: (D,H,W) of the network's grid, or (X,Y,Z) of a scan, as it is said where it is used.
using Shape = std::array<std::int64_t, 3>;

enum class ElementType { float32, float16, int8, uint8, int32, int64, boolean };

/// An input or output of the engine; -1 stands for a side that depends on the window.
struct Tensor {
    std::string name;
    ElementType dtype = ElementType::float32;
    std::vector<std::int64_t> shape;
};

/// The sizes (D,H,W) that a profile of the engine serves.
struct SpatialRange {
    Shape min{}, opt{}, max{};
};

enum class Blending { gaussian, constant };

/// How a CT in HU becomes the network's input, and how windows are laid and blended. Lengths in mm.
struct Preprocessing {
    std::array<double, 3> spacing_mm{};
    double clip_low_hu = 0, clip_high_hu = 0;
    Shape patch{};
    double overlap = 0;
    Blending blending = Blending::gaussian;
    double blending_sigma_divisor = 0;
};

/// What an application has to know of an engine.
struct Manifest {
    std::string engine_sha256;
    std::int64_t engine_bytes = 0;
    std::string backend;  ///< "tensorrt-rtx" or "tensorrt"
    std::string backend_version;
    std::vector<std::string> compute_capabilities;  ///< such as "8.6"
    std::string precision;
    std::vector<SpatialRange> profiles;
    Tensor input;   ///< (N,1,D,H,W)
    Tensor output;  ///< named after what it holds: "logits", "probabilities", "coarse" or "labels"
    std::vector<std::string> labels;  ///< class names, background first
    Preprocessing preprocessing;
};

/// The checked manifest of an engine. Throws `Refused` where it is missing, damaged, of a newer schema or not one.
Manifest read_manifest(const std::filesystem::path& engine);

/// The engine's bytes, read once, after their size and SHA-256 matched the manifest's.
///
/// Deserialize what this returns, never the file: it may be another by then. Throws `Refused` for other bytes, and
/// where other users of this machine could have replaced engine and manifest together.
std::vector<char> verified_engine_bytes(const std::filesystem::path& engine, const Manifest& manifest);

}  // namespace lhanet
