#include "bytes_in.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include <zlib.h>

#include "text.hpp"

namespace lhanet {

namespace {

constexpr std::size_t buffer_bytes = std::size_t{1} << 17;
// The header of a gzip member (RFC 1952, section 2.3).
constexpr unsigned char deflated = 8;
constexpr int has_checksum = 2, has_extra = 4, has_name = 8, has_comment = 16;

class Plain final : public BytesIn {
public:
    explicit Plain(File file) : file_(std::move(file)) {}

    std::size_t read(unsigned char* to, std::size_t count) override { return file_.read(to, count); }

private:
    File file_;
};

class Unpacked final : public BytesIn {
public:
    explicit Unpacked(File file) : file_(std::move(file)), buffer_(buffer_bytes) {
        // Bare deflate: zlib's own reading of gzip's headers refuses flags that Python's passes over.
        must(inflateInit2(&stream_, -MAX_WBITS));
    }

    ~Unpacked() override { inflateEnd(&stream_); }

    std::size_t read(unsigned char* to, std::size_t count) override {
        std::size_t done = 0;
        while (done < count) {
            if (place_ == Place::behind_member) {
                check_member();
                pass_zeros();
                place_ = Place::before_member;
            }
            if (place_ == Place::before_member) {
                if (!begin_member()) {
                    break;
                }
                place_ = Place::in_member;
            }
            done += inflated(to + done, count - done);
        }
        return done;
    }

private:
    enum class Place { before_member, in_member, behind_member };

    static void must(int answer) {
        if (answer == Z_MEM_ERROR) {
            throw std::bad_alloc();
        }
        if (answer != Z_OK) {
            throw std::logic_error("zlib refused to begin");
        }
    }

    [[noreturn]] static void cut_off() {
        throw Damaged("Compressed file ended before the end-of-stream marker was reached");
    }

    bool has_more() {
        if (stream_.avail_in == 0) {
            stream_.next_in = buffer_.data();
            stream_.avail_in = static_cast<uInt>(file_.read(buffer_.data(), buffer_.size()));
        }
        return stream_.avail_in > 0;
    }

    unsigned char byte() {
        if (!has_more()) {
            cut_off();
        }
        --stream_.avail_in;
        return *stream_.next_in++;
    }

    std::uint32_t four_bytes() {
        std::uint32_t value = 0;
        for (int shift = 0; shift < 32; shift += 8) {
            value |= std::uint32_t{byte()} << shift;
        }
        return value;
    }

    // False at the end of the file.
    bool begin_member() {
        if (!has_more()) {
            return false;
        }
        std::array<unsigned char, 2> magic{byte(), 0};
        const std::size_t found = has_more() ? 2 : 1;
        if (found == 2) {
            magic[1] = byte();
        }
        if (found != 2 || magic[0] != 0x1f || magic[1] != 0x8b) {
            throw Damaged("Not a gzipped file (" + text::bytes(magic.data(), found) + ")");
        }
        const unsigned char method = byte(), flags = byte();
        // Time, level and system.
        pass(6);
        if (method != deflated) {
            throw Damaged("Unknown compression method");
        }
        if ((flags & has_extra) != 0) {
            const unsigned low = byte();
            pass(low + 256U * byte());
        }
        for (const int flag : {has_name, has_comment}) {
            while ((flags & flag) != 0 && byte() != 0) {
            }
        }
        if ((flags & has_checksum) != 0) {
            pass(2);
        }
        must(inflateReset(&stream_));
        checksum_ = static_cast<std::uint32_t>(crc32(0, nullptr, 0));
        size_ = 0;
        return true;
    }

    void pass(unsigned count) {
        while (count-- > 0) {
            byte();
        }
    }

    std::size_t inflated(unsigned char* to, std::size_t count) {
        has_more();
        const uInt before = stream_.avail_in;
        stream_.next_out = to;
        stream_.avail_out = static_cast<uInt>(std::min<std::size_t>(count, std::numeric_limits<uInt>::max()));
        const uInt room = stream_.avail_out;
        const int answer = inflate(&stream_, Z_NO_FLUSH);
        const uInt made = room - stream_.avail_out;
        if (answer == Z_MEM_ERROR) {
            throw std::bad_alloc();
        }
        if (answer != Z_OK && answer != Z_BUF_ERROR && answer != Z_STREAM_END) {
            throw Damaged(
                "Error " + std::to_string(answer) + " while decompressing data: " +
                (stream_.msg == nullptr ? "no reason given" : stream_.msg));
        }
        if (answer == Z_STREAM_END) {
            place_ = Place::behind_member;
        } else if (made == 0 && before == 0) {
            cut_off();
        }
        checksum_ = static_cast<std::uint32_t>(crc32(checksum_, to, made));
        size_ += made;
        return made;
    }

    void check_member() {
        const std::uint32_t checksum = four_bytes(), size = four_bytes();
        if (checksum != checksum_) {
            throw Damaged("CRC check failed " + hex(checksum) + " != " + hex(checksum_));
        }
        // Of more than 4 GiB, gzip counts the rest.
        if (size != static_cast<std::uint32_t>(size_)) {
            throw Damaged("Incorrect length of data produced");
        }
    }

    static std::string hex(std::uint32_t value) {
        std::array<char, 16> out{};
        std::snprintf(out.data(), out.size(), "0x%x", static_cast<unsigned>(value));
        return out.data();
    }

    // Tapes and block devices leave zeros behind.
    void pass_zeros() {
        while (has_more() && *stream_.next_in == 0) {
            byte();
        }
    }

    File file_;
    std::vector<unsigned char> buffer_;
    z_stream stream_{};
    Place place_ = Place::before_member;
    std::uint32_t checksum_ = 0;
    std::uint64_t size_ = 0;
};

}  // namespace

std::unique_ptr<BytesIn> plain(File file) { return std::make_unique<Plain>(std::move(file)); }

std::unique_ptr<BytesIn> unpacked(File file) { return std::make_unique<Unpacked>(std::move(file)); }

}  // namespace lhanet
