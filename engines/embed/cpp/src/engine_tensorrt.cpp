// Engines of TensorRT, or with LHANET_TENSORRT_RTX of TensorRT-RTX, on an NVIDIA GPU.
//
//     host --in--> staging --compute--> input, engine, output --compute--> staging --out--> host
//
// The engine's own input and output stay where they are, which is what CUDA graphs need. Copies to and from the host
// use staging buffers on streams of their own, so that those of one slot run beside the network's work on the other.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <NvInferRuntime.h>

#include "cuda.hpp"
#include "half.hpp"
#include "lhanet/engine.hpp"
#include "lhanet/error.hpp"
#include "profile.hpp"
#include "tensorrt_checks.hpp"
#include "text.hpp"
#ifdef LHANET_TENSORRT_RTX
#include "kernel_cache.hpp"
#endif

namespace lhanet {

namespace {

// An input or output of the engine for windows of one size.
struct Binding {
    Tensor tensor;
    std::vector<std::int64_t> shape;
    std::size_t elements = 1;

    bool is_half() const { return tensor.dtype == ElementType::float16; }
    std::size_t bytes() const { return elements * (is_half() ? sizeof(std::uint16_t) : sizeof(float)); }
};

class TensorRtEngine final : public Engine {
public:
    TensorRtEngine(
        const std::filesystem::path& path, const Manifest& manifest, const Shape& patch, const std::string& gpu)
        : path_(path.string()), name_(manifest.backend + " " + manifest.precision + " on " + gpu) {
        deserialize(path, manifest);
        input_.tensor = manifest.input;
        output_.tensor = manifest.output;
        check_tensor(input_.tensor, nvinfer1::TensorIOMode::kINPUT);
        check_tensor(output_.tensor, nvinfer1::TensorIOMode::kOUTPUT);
        make_context(path);
        set_shape(profile_of(manifest, patch), {batch_of(manifest), 1, patch[0], patch[1], patch[2]});
        if (output_.shape[1] != static_cast<std::int64_t>(manifest.labels.size())) {
            throw Refused(
                path_ + " gives scores of " + std::to_string(output_.shape[1]) + " classes, its manifest names " +
                std::to_string(manifest.labels.size()) + "; build both again");
        }
        allocate();
        warm_up();
    }

    ~TensorRtEngine() override {
        // Nothing may be under way in memory that goes.
        for (const cuda::Stream* stream : {&in_, &compute_, &out_}) {
            cudaStreamSynchronize(stream->get());
        }
    }

    std::string name() const override { return name_; }

    std::int64_t batch() const override { return input_.shape[0]; }

    std::array<std::int64_t, 4> scores_shape() const override {
        return {output_.shape[1], output_.shape[2], output_.shape[3], output_.shape[4]};
    }

    float* windows(int slot) override { return at(slot).windows(); }

    void start(int slot) override {
        Slot& one = at(slot);
        const void* windows = one.given.get();
        if (input_.is_half()) {
            to_half(one.windows(), input_.elements, static_cast<std::uint16_t*>(one.half_windows.get()));
            windows = one.half_windows.get();
        }
        // A batch is copied in while the one before is computed, once that has left the staging buffer.
        must(cudaStreamWaitEvent(in_.get(), taken_.get(), 0));
        must(cudaMemcpyAsync(arriving_.get(), windows, input_.bytes(), cudaMemcpyHostToDevice, in_.get()));
        must(cudaEventRecord(arrived_.get(), in_.get()));
        must(cudaStreamWaitEvent(compute_.get(), arrived_.get(), 0));
        const auto within = cudaMemcpyDeviceToDevice;
        must(cudaMemcpyAsync(image_.get(), arriving_.get(), input_.bytes(), within, compute_.get()));
        must(cudaEventRecord(taken_.get(), compute_.get()));
        if (replay_) {
            must(cudaGraphLaunch(replay_.get(), compute_.get()));
        } else if (!context_->enqueueV3(compute_.get())) {
            lacking("run");
        }
        must(cudaStreamWaitEvent(compute_.get(), left_.get(), 0));
        must(cudaMemcpyAsync(leaving_.get(), scores_.get(), output_.bytes(), within, compute_.get()));
        must(cudaEventRecord(computed_.get(), compute_.get()));
        must(cudaStreamWaitEvent(out_.get(), computed_.get(), 0));
        must(cudaMemcpyAsync(one.found.get(), leaving_.get(), output_.bytes(), cudaMemcpyDeviceToHost, out_.get()));
        must(cudaEventRecord(left_.get(), out_.get()));
        must(cudaEventRecord(one.done.get(), out_.get()));
        one.is_started = true;
    }

    const float* wait(int slot) override {
        Slot& one = at(slot);
        if (!one.is_started) {
            throw std::logic_error("the slot was not started");
        }
        must(cudaEventSynchronize(one.done.get()));
        if (!output_.is_half()) {
            return static_cast<const float*>(one.found.get());
        }
        from_half(static_cast<const std::uint16_t*>(one.found.get()), output_.elements, one.scores.data());
        return one.scores.data();
    }

private:
    // Page-locked memory of the host for one batch.
    struct Slot {
        cuda::HostMemory given, half_windows, found;
        std::vector<float> scores;
        cuda::Event done;
        bool is_started = false;

        float* windows() const { return static_cast<float*>(given.get()); }
    };

    Slot& at(int slot) {
        if (slot < 0 || slot >= slots) {
            throw std::logic_error("an engine has two slots");
        }
        return slots_[static_cast<std::size_t>(slot)];
    }

    void must(cudaError_t code) const { cuda::check(code, "run " + path_); }

    void must(bool is_done, const std::string& action) {
        if (!is_done) {
            log_.fail(action, path_);
        }
    }

    // What fails after everything was checked is the GPU's fault, not the engine's.
    [[noreturn]] void lacking(const std::string& action) {
        try {
            log_.fail(action, path_);
        } catch (const Refused& error) {
            throw Lacks(error.what());
        }
    }

    void deserialize(const std::filesystem::path& path, const Manifest& manifest) {
        // The bytes that were hashed are the bytes that are deserialized.
        const std::vector<char> raw = verified_engine_bytes(path, manifest);
        runtime_.reset(nvinfer1::createInferRuntime(log_));
        must(runtime_ != nullptr, "start");
        // `setEngineHostCodeAllowed` stays off, as it is by default: no code of the plan's own runs on the host.
        engine_.reset(runtime_->deserializeCudaEngine(raw.data(), raw.size()));
        must(engine_ != nullptr, "deserialize the engine");
    }

    void check_tensor(const Tensor& tensor, nvinfer1::TensorIOMode mode) const {
        const char* name = tensor.name.c_str();
        const bool is_half = tensor.dtype == ElementType::float16;
        if (!is_half && tensor.dtype != ElementType::float32) {
            throw Refused(path_ + ": '" + tensor.name + "' holds neither float32 nor float16; export the model anew");
        }
        const nvinfer1::Dims shape = engine_->getTensorShape(name);
        bool is_same = engine_->getNbIOTensors() == 2 && engine_->getTensorIOMode(name) == mode &&
            engine_->getTensorDataType(name) == (is_half ? nvinfer1::DataType::kHALF : nvinfer1::DataType::kFLOAT) &&
            shape.nbDims == 5 && tensor.shape.size() == 5;
        for (std::size_t axis = 0; is_same && axis < 5; ++axis) {
            const std::int64_t side = shape.d[axis];
            is_same = side == tensor.shape[axis] || side == -1 || tensor.shape[axis] == -1;
        }
        if (!is_same) {
            throw Refused(
                path_ + ": '" + tensor.name + "' is not what its manifest says; the manifest is of another engine, " +
                "build both again");
        }
    }

    void make_context(const std::filesystem::path& path) {
#ifdef LHANET_TENSORRT_RTX
        config_.reset(engine_->createRuntimeConfig());
        must(config_ != nullptr, "configure the engine");
        // TensorRT-RTX knows itself when its kernels are final, so that capturing them is worth while.
        must(config_->setCudaGraphStrategy(nvinfer1::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE), "set up CUDA graphs");
        kernels_ = std::make_unique<KernelCache>(path, *config_);
        context_.reset(engine_->createExecutionContext(config_.get()));
#else
        static_cast<void>(path);
        context_.reset(engine_->createExecutionContext());
#endif
        must(context_ != nullptr, "create an execution context");
    }

    void set_shape(std::size_t profile, const std::vector<std::int64_t>& shape) {
        const char* input = input_.tensor.name.c_str();
        const auto index = static_cast<std::int32_t>(profile);
        must(index < engine_->getNbOptimizationProfiles(), "find profile " + std::to_string(index));
        if (index != 0) {
            must(context_->setOptimizationProfileAsync(index, compute_.get()), "switch profiles");
            must(cudaStreamSynchronize(compute_.get()));
        }
        const auto batch_at = [&](nvinfer1::OptProfileSelector which) {
            return static_cast<std::int64_t>(engine_->getProfileShape(input, index, which).d[0]);
        };
        const std::int64_t least = batch_at(nvinfer1::OptProfileSelector::kMIN);
        const std::int64_t most = batch_at(nvinfer1::OptProfileSelector::kMAX);
        if (shape[0] < least || shape[0] > most) {
            throw Refused(
                path_ + " takes " + std::to_string(least) + " to " + std::to_string(most) + " volumes at a time, not " +
                std::to_string(shape[0]));
        }
        nvinfer1::Dims dims{};
        dims.nbDims = 5;
        std::copy(shape.begin(), shape.end(), dims.d);
        must(context_->setInputShape(input, dims), "take the shape " + text::sides(shape));
        size(input_);
        size(output_);
        if (input_.shape != shape || output_.shape[0] != shape[0]) {
            throw Refused(path_ + " does not give a window's scores for a window; build it again");
        }
    }

    void size(Binding& binding) {
        const nvinfer1::Dims dims = context_->getTensorShape(binding.tensor.name.c_str());
        bool is_known = dims.nbDims == 5;
        for (std::int32_t axis = 0; axis < 5; ++axis) {
            is_known = is_known && dims.d[axis] > 0 && dims.d[axis] <= most_side;
        }
        must(is_known, "say what '" + binding.tensor.name + "' is for such windows");
        binding.shape.assign(dims.d, dims.d + dims.nbDims);
        binding.elements = 1;
        for (const std::int64_t side : binding.shape) {
            binding.elements *= static_cast<std::size_t>(side);
            // A product of five sides might not fit into 64 bits.
            must(binding.elements <= most_elements, "be given so large windows");
        }
    }

    void allocate() {
        image_ = cuda::on_device(input_.bytes());
        arriving_ = cuda::on_device(input_.bytes());
        scores_ = cuda::on_device(output_.bytes());
        leaving_ = cuda::on_device(output_.bytes());
        for (Slot& slot : slots_) {
            slot.given = cuda::on_host(input_.elements * sizeof(float));
            slot.found = cuda::on_host(output_.bytes());
            slot.half_windows = input_.is_half() ? cuda::on_host(input_.bytes()) : cuda::HostMemory();
            slot.scores.resize(output_.is_half() ? output_.elements : 0);
            slot.done = cuda::new_event();
        }
        must(context_->setTensorAddress(input_.tensor.name.c_str(), image_.get()), "use the input's buffer");
        must(context_->setTensorAddress(output_.tensor.name.c_str(), scores_.get()), "use the output's buffer");
    }

    // The first run sets things up that a graph cannot hold, and is where a GPU without room says so.
    void warm_up() {
        must(cudaMemsetAsync(image_.get(), 0, input_.bytes(), compute_.get()));
        if (!context_->enqueueV3(compute_.get())) {
            lacking("run");
        }
        must(cudaStreamSynchronize(compute_.get()));
#ifndef LHANET_TENSORRT_RTX
        capture();
#endif
    }

    // Record the engine's kernels, to start them all at once. Engines that cannot be recorded are run kernel by kernel:
    // slower, but nothing that anybody could do something about, so nobody is told.
    void capture() {
        if (cudaStreamBeginCapture(compute_.get(), cudaStreamCaptureModeThreadLocal) == cudaSuccess) {
            const bool is_queued = context_->enqueueV3(compute_.get());
            cudaGraph_t recorded = nullptr;
            const bool is_recorded = cudaStreamEndCapture(compute_.get(), &recorded) == cudaSuccess;
            const cuda::Graph graph(recorded);
            cudaGraphExec_t executable = nullptr;
            if (is_queued && is_recorded && cudaGraphInstantiateWithFlags(&executable, recorded, 0) == cudaSuccess) {
                replay_.reset(executable);
            }
        }
        if (!replay_) {
            cudaGetLastError();
            log_.clear();
        }
    }

    static constexpr std::int64_t most_side = std::int64_t{1} << 20;
    static constexpr std::size_t most_elements = std::size_t{1} << 36;

    // In this order: what comes later uses what comes before, and goes first.
    std::string path_, name_;
    tensorrt::ErrorLog log_;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
#ifdef LHANET_TENSORRT_RTX
    std::unique_ptr<nvinfer1::IRuntimeConfig> config_;
    std::unique_ptr<KernelCache> kernels_;
#endif
    cuda::Stream in_ = cuda::new_stream(), compute_ = cuda::new_stream(), out_ = cuda::new_stream();
    cuda::Event arrived_ = cuda::new_event(), taken_ = cuda::new_event(), computed_ = cuda::new_event(),
                left_ = cuda::new_event();
    Binding input_, output_;
    cuda::DeviceMemory image_, arriving_, scores_, leaving_;
    std::array<Slot, slots> slots_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    cuda::GraphExec replay_;
};

}  // namespace

std::unique_ptr<Engine> open_engine(const std::filesystem::path& engine, const Manifest& manifest, const Shape& patch) {
    const std::string path = engine.string();
    const std::string gpu = tensorrt::matching_gpu(path, manifest);
    tensorrt::check_library(path, manifest);
    check_output(manifest);
    profile_of(manifest, patch);
    try {
        return std::make_unique<TensorRtEngine>(engine, manifest, patch, gpu);
    } catch (const std::bad_alloc&) {
        throw Lacks(path + " needs more memory than there is");
    } catch (const Lacks& error) {
        // What the GPU has no room for does not name the engine.
        const std::string reason = error.what();
        throw Lacks(reason.find(path) == std::string::npos ? path + ": " + reason : reason);
    }
}

}  // namespace lhanet
