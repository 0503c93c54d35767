// What CUDA lends: streams, events, memory, graphs. All of it is given back when it goes out of scope.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include <cuda_runtime_api.h>

#include "lhanet/error.hpp"

namespace lhanet::cuda {

template <typename Handle, cudaError_t (*give_back)(Handle)>
struct GiveBack {
    using pointer = Handle;
    void operator()(Handle handle) const noexcept { give_back(handle); }
};

using Stream = std::unique_ptr<CUstream_st, GiveBack<cudaStream_t, cudaStreamDestroy>>;
using Event = std::unique_ptr<CUevent_st, GiveBack<cudaEvent_t, cudaEventDestroy>>;
using Graph = std::unique_ptr<CUgraph_st, GiveBack<cudaGraph_t, cudaGraphDestroy>>;
using GraphExec = std::unique_ptr<CUgraphExec_st, GiveBack<cudaGraphExec_t, cudaGraphExecDestroy>>;
using DeviceMemory = std::unique_ptr<void, GiveBack<void*, cudaFree>>;
using HostMemory = std::unique_ptr<void, GiveBack<void*, cudaFreeHost>>;

/// Throws `Lacks` for anything but success; `action` is what did not work.
inline void check(cudaError_t code, const std::string& action) {
    if (code == cudaSuccess) {
        return;
    }
    // An error that does not stay is forgotten by asking for it; the next call shall not find it.
    cudaGetLastError();
    const std::string reason = cudaGetErrorString(code);
    if (code == cudaErrorMemoryAllocation) {
        throw Lacks("not enough GPU memory to " + action + ": " + reason);
    }
    throw Lacks("the GPU failed to " + action + ": " + reason);
}

inline Stream new_stream() {
    cudaStream_t stream = nullptr;
    // TensorRT synchronizes the whole device around work on the default stream, and others wait for it.
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "make a stream");
    return Stream(stream);
}

inline Event new_event() {
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "make an event");
    return Event(event);
}

inline DeviceMemory on_device(std::size_t bytes) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "allocate " + std::to_string(bytes) + " bytes");
    return DeviceMemory(memory);
}

/// Page-locked memory of the host, from which copies run beside everything else.
inline HostMemory on_host(std::size_t bytes) {
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), "lock " + std::to_string(bytes) + " bytes of memory");
    return HostMemory(memory);
}

}  // namespace lhanet::cuda
