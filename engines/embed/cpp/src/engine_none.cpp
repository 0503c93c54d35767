#include "lhanet/engine.hpp"
#include "lhanet/error.hpp"

namespace lhanet {

// In the place of engine_tensorrt.cpp where the library is compiled without TensorRT.
std::unique_ptr<Engine> open_engine(const std::filesystem::path& engine, const Manifest& manifest, const Shape&) {
    const bool is_rtx = manifest.backend == "tensorrt-rtx";
    throw Lacks(
        engine.string() + " needs " + (is_rtx ? "TensorRT-RTX" : "TensorRT") +
        ", and this library was compiled without it; configure it with -D" +
        (is_rtx ? "TENSORRT_RTX_ROOT" : "TensorRT_ROOT") + "=DIR");
}

}  // namespace lhanet
