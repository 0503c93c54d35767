// The bytes of a file as they are, or as they were before gzip packed them.
#pragma once

#include <cstddef>
#include <memory>
#include <stdexcept>

#include "file.hpp"

namespace lhanet {

/// What is wrong with a packed file.
class Damaged : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// Bytes that are read once, from the first to the last.
class BytesIn {
public:
    virtual ~BytesIn() = default;
    BytesIn(const BytesIn&) = delete;
    BytesIn& operator=(const BytesIn&) = delete;

    /// Up to `count` bytes; fewer only at the end. Throws `Damaged`, and `std::system_error` for a file that fails.
    virtual std::size_t read(unsigned char* to, std::size_t count) = 0;

protected:
    BytesIn() = default;
};

/// The bytes of a file as they are.
std::unique_ptr<BytesIn> plain(File file);

/// What gzip packed, in one member or several, with zeros between and behind them.
///
/// Takes and refuses what Python's `gzip` does: a member's checksum and size count, its header's checksum and unknown
/// flags do not. Inflates no more than is asked for; the check of the last member's checksum comes with the call that
/// reads past its end.
std::unique_ptr<BytesIn> unpacked(File file);

}  // namespace lhanet
