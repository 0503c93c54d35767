// SHA-256 as FIPS 180-4 defines it (https://csrc.nist.gov/pubs/fips/180-4/upd1/final).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace lhanet {

/// A hash of bytes that come in pieces.
class Sha256 {
public:
    /// Take the next bytes.
    void update(const void* data, std::size_t count);

    /// The hash of all bytes so far in lower-case hex. Nothing can be added after it.
    std::string hex();

private:
    void block(const unsigned char* data);

    // First 32 bits of the fractional parts of the square roots of the first eight primes (section 5.3.3).
    std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<unsigned char, 64> rest_{};
    std::size_t rest_bytes_ = 0;
    std::uint64_t bytes_ = 0;
};

}  // namespace lhanet
