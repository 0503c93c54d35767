#include "sha256.hpp"

#include <algorithm>
#include <cstring>

namespace lhanet {

namespace {

// First 32 bits of the fractional parts of the cube roots of the first 64 primes (section 4.2.2).
constexpr std::array<std::uint32_t, 64> constants = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

constexpr std::uint32_t turned(std::uint32_t word, int bits) { return word >> bits | word << (32 - bits); }

}  // namespace

void Sha256::block(const unsigned char* data) {
    std::array<std::uint32_t, 64> words;
    for (std::size_t t = 0; t < 16; ++t) {
        const unsigned char* at = data + 4 * t;
        words[t] = std::uint32_t{at[0]} << 24 | std::uint32_t{at[1]} << 16 | std::uint32_t{at[2]} << 8 | at[3];
    }
    for (std::size_t t = 16; t < 64; ++t) {
        const std::uint32_t early = words[t - 15], late = words[t - 2];
        words[t] = words[t - 16] + (turned(early, 7) ^ turned(early, 18) ^ early >> 3) + words[t - 7] +
                   (turned(late, 17) ^ turned(late, 19) ^ late >> 10);
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (std::size_t t = 0; t < 64; ++t) {
        const std::uint32_t first =
            h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + constants[t] + words[t];
        const std::uint32_t second = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g;
        g = f;
        f = e;
        e = d + first;
        d = c;
        c = b;
        b = a;
        a = first + second;
    }
    const std::array<std::uint32_t, 8> added = {a, b, c, d, e, f, g, h};
    for (std::size_t index = 0; index < state_.size(); ++index) {
        state_[index] += added[index];
    }
}

void Sha256::update(const void* data, std::size_t count) {
    const auto* from = static_cast<const unsigned char*>(data);
    bytes_ += count;
    while (count > 0) {
        if (rest_bytes_ == 0 && count >= rest_.size()) {
            block(from);
            from += rest_.size();
            count -= rest_.size();
            continue;
        }
        const std::size_t taken = std::min(count, rest_.size() - rest_bytes_);
        std::memcpy(rest_.data() + rest_bytes_, from, taken);
        rest_bytes_ += taken;
        from += taken;
        count -= taken;
        if (rest_bytes_ == rest_.size()) {
            block(rest_.data());
            rest_bytes_ = 0;
        }
    }
}

std::string Sha256::hex() {
    // A one, zeros, and the length in bits: whole blocks (section 5.1.1).
    const std::uint64_t bits = bytes_ * 8;
    const std::array<unsigned char, 64> padding{0x80};
    update(padding.data(), 1 + (119 - rest_bytes_) % 64);
    std::array<unsigned char, 8> length{};
    for (std::size_t index = 0; index < 8; ++index) {
        length[index] = static_cast<unsigned char>(bits >> (56 - 8 * index));
    }
    update(length.data(), length.size());
    constexpr char digits[] = "0123456789abcdef";
    std::string out;
    for (const std::uint32_t word : state_) {
        for (int shift = 28; shift >= 0; shift -= 4) {
            out += digits[word >> shift & 0xf];
        }
    }
    return out;
}

}  // namespace lhanet
