#include "lhanet/manifest.hpp"

#include <algorithm>
#include <array>
#include <new>
#include <string_view>
#include <system_error>
#include <utility>

#include "file.hpp"
#include "lhanet/error.hpp"
#include "owner.hpp"
#include "sha256.hpp"
#include "strict.hpp"
#include "text.hpp"

namespace lhanet {

namespace {

using strict::Node;
using strict::Object;

constexpr std::int64_t schema_read = 1;
constexpr std::int64_t largest_engine_bytes = std::int64_t{1} << 36;
// A Gaussian that is narrower still has weights at the window's edge that a double rounds to 0, from 77 on.
constexpr double most_sigma_divisor = 64;
constexpr std::array<std::string_view, 2> backends = {"tensorrt-rtx", "tensorrt"};
constexpr std::array<std::string_view, 3> precisions = {"fp32", "fp16", "int8"};
constexpr std::array<std::string_view, 2> blendings = {"gaussian", "constant"};
// In the order of `ElementType`.
constexpr std::array<std::string_view, 7> element_types = {"float32", "float16", "int8", "uint8",
                                                           "int32",   "int64",   "bool"};

std::filesystem::path sidecar_of(const std::filesystem::path& engine) {
    std::filesystem::path sidecar = engine;
    return sidecar += ".json";
}

Tensor tensor_from(const Node& node) {
    Object tensor = node.object();
    Tensor found;
    found.name = tensor.take("name").identifier();
    found.dtype = static_cast<ElementType>(tensor.take("dtype").one_of(element_types));
    const auto side = [](const Node& item) { return item.integer(-1, std::int64_t{1} << 20); };
    found.shape = tensor.take("shape").list_of(side, 4, 5);
    tensor.finish();
    return found;
}

void engine_into(Manifest& manifest, const Node& node) {
    Object engine = node.object();
    Object memory = engine.take("device_memory").object();
    const Node inputs_node = engine.take("inputs");
    manifest.engine_sha256 = engine.take("sha256").sha256();
    manifest.engine_bytes = engine.take("bytes").integer(1, largest_engine_bytes);
    manifest.backend = backends[engine.take("backend").one_of(backends)];
    manifest.backend_version = engine.take("backend_version").identifier();
    const auto capability = [](const Node& item) { return item.capability(); };
    manifest.compute_capabilities = engine.take("compute_capabilities").list_of(capability, 1, 16);
    manifest.precision = precisions[engine.take("precision").one_of(precisions)];
    const auto spatial = [](const Node& item) { return item.spatial(); };
    manifest.profiles = engine.take("profiles").list_of(spatial, 1, 16);
    const auto inputs = inputs_node.list_of(tensor_from, 1, 1);
    const Node outputs_node = engine.take("outputs");
    const auto outputs = outputs_node.list_of(tensor_from, 1, 16);
    memory.take_if("weights_bytes", [](const Node& bytes) { bytes.integer(0); });
    memory.take_if("activation_bytes", [](const Node& bytes) { bytes.integer(0); });
    memory.finish();
    engine.finish();
    manifest.input = inputs[0];
    if (manifest.input.name != "image" || manifest.input.shape.size() != 5 || manifest.input.shape[1] != 1) {
        throw inputs_node.refused("expected one input 'image' of shape (N,1,D,H,W)");
    }
    // Python's manifest may have several, its runners take one.
    if (outputs.size() != 1) {
        throw outputs_node.refused(std::to_string(outputs.size()) + " outputs; an application takes one");
    }
    manifest.output = outputs[0];
}

std::int64_t classes_of(const Node& node) {
    Object known = node.object();
    known.take("sha256").sha256();
    known.take("preset").identifier();
    const std::int64_t classes = known.take("num_classes").integer(2, 4096);
    known.take("base_channels").integer(1, 4096);
    known.take_if("epoch", [](const Node& epoch) { epoch.integer(0); });
    return classes;
}

void check_build(const Node& node) {
    Object known = node.object();
    known.take("seconds").number(0);
    known.take("peak_rss_bytes").integer(0);
    for (const char* key : {"lhanet_export", "python", "platform"}) {
        known.take(key).text();
    }
    for (const char* key : {"torch", "onnx"}) {
        known.take_if(key, [](const Node& version) { version.text(); });
    }
}

// A rule that is not known could not be followed.
void check_rule(const Node& node, const std::string& known) {
    const std::string found = node.label();
    if (found != known) {
        throw node.refused(text::quoted(found) + " is not known; this library does '" + known + "'");
    }
}

Preprocessing preprocessing_from(const Node& node) {
    Object known = node.object();
    Preprocessing how;
    const Node clip = known.take("clip_hu");
    const auto bounds = clip.list_of([](const Node& bound) { return bound.number(-1e6, 1e6); }, 2, 2);
    how.clip_low_hu = bounds[0];
    how.clip_high_hu = bounds[1];
    if (!(how.clip_low_hu < how.clip_high_hu)) {
        throw clip.refused(
            "expected the lower bound first, found " + text::general(bounds[0]) + ", " + text::general(bounds[1]));
    }
    const auto sides = known.take("spacing_mm").list_of([](const Node& mm) { return mm.number(1e-3, 1e3); }, 3, 3);
    std::copy(sides.begin(), sides.end(), how.spacing_mm.begin());
    check_rule(known.take("normalization"), "z-score");
    check_rule(known.take("orientation"), "as stored");
    how.patch = known.take("patch").shape();
    how.overlap = known.take("overlap").number(0, 0.95);
    how.blending = static_cast<Blending>(known.take("blending").one_of(blendings));
    how.blending_sigma_divisor = known.take("blending_sigma_divisor").number(0.1, most_sigma_divisor);
    known.finish();
    return how;
}

Manifest manifest_from(const json::Object& facts, const std::string& source) {
    Object document(facts, source, "");
    const std::int64_t schema = document.take("schema").integer(0);
    if (schema != schema_read) {
        const bool is_newer = schema > schema_read;
        throw document.refused(
            "schema " + std::to_string(schema) + " is " + (is_newer ? "newer than " : "not ") +
            std::to_string(schema_read) + ", which this library reads; " +
            (is_newer ? "update the application" : "build the engine again"));
    }
    Object onnx = document.take("onnx").object();
    const Node checkpoint = document.take("checkpoint");
    const Node labels_node = document.take("labels");
    Manifest manifest;
    engine_into(manifest, document.take("engine"));
    onnx.take("sha256").sha256();
    onnx.take("opset").integer(1, 1000);
    onnx.take("head").identifier();
    const auto classes = static_cast<std::size_t>(classes_of(checkpoint));
    manifest.labels = labels_node.list_of([](const Node& name) { return name.label(); }, 2, 4096);
    manifest.preprocessing = preprocessing_from(document.take("preprocessing"));
    document.take("verification").facts();
    check_build(document.take("build"));
    onnx.finish();
    document.finish();
    auto sorted = manifest.labels;
    std::sort(sorted.begin(), sorted.end());
    if (sorted.size() != classes || std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
        throw labels_node.refused(
            "expected " + std::to_string(classes) + " different names, one a class; found " +
            std::to_string(sorted.size()));
    }
    return manifest;
}

std::vector<char> checked_bytes(const std::filesystem::path& engine, const Manifest& manifest) {
    File file = File::reading(engine);
    check_owner(engine, file.status());
    check_owner(sidecar_of(engine), status_of(sidecar_of(engine)));
    check_owner(folder_of(engine), status_of(folder_of(engine)));
    const auto size = file.status().st_size;
    if (size != manifest.engine_bytes) {
        throw Refused(
            engine.string() + " has " + std::to_string(size) + " bytes, its manifest says " +
            std::to_string(manifest.engine_bytes) +
            ": the file is cut off or another one; copy or build it again");
    }
    std::vector<char> raw(static_cast<std::size_t>(size));
    raw.resize(file.read(reinterpret_cast<unsigned char*>(raw.data()), raw.size()));
    Sha256 hash;
    hash.update(raw.data(), raw.size());
    // In case the file is growing.
    unsigned char more = 0;
    hash.update(&more, file.read(&more, 1));
    const std::string found = hash.hex();
    if (found != manifest.engine_sha256) {
        throw Refused(
            engine.string() + " is not the file that its manifest describes (sha256 " + found.substr(0, 12) +
            "..., recorded " + manifest.engine_sha256.substr(0, 12) +
            "...): damaged or replaced; copy or build it again");
    }
    return raw;
}

}  // namespace

Manifest read_manifest(const std::filesystem::path& engine) {
    const std::filesystem::path given = without_slash(engine), path = sidecar_of(given);
    try {
        if (!is_file(path)) {
            throw Refused(
                given.string() + " has no manifest " + path.filename().string() +
                " beside it; without one nothing says what the engine is");
        }
    } catch (const std::system_error& error) {
        throw Refused("cannot read " + path.string() + ": " + reason(error.code().value()));
    }
    return manifest_from(json::read_object(path), path.string());
}

std::vector<char> verified_engine_bytes(const std::filesystem::path& engine, const Manifest& manifest) {
    const std::filesystem::path given = without_slash(engine);
    try {
        if (!is_file(given)) {
            throw Refused("there is no engine file " + given.string());
        }
        return checked_bytes(given, manifest);
    } catch (const std::system_error& error) {
        throw Refused("cannot read " + given.string() + ": " + reason(error.code().value()));
    } catch (const std::bad_alloc&) {
        throw Lacks(given.string() + " needs more memory than there is");
    }
}

}  // namespace lhanet
