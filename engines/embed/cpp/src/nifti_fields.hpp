// The numbers in the header of a NIfTI file, as they stand there.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lhanet {

/// Numbers of a header by their place in it, in its byte order.
class Fields {
public:
    /// Looks at the bytes, which must outlive it.
    Fields(unsigned char* data, int version);

    int version() const { return version_; }
    bool big_endian() const { return big_endian_; }

    std::int64_t dim(std::size_t index) const;
    std::int64_t datatype() const { return whole(version_ == 1 ? 70 : 12, 2); }
    std::int64_t bitpix() const { return whole(version_ == 1 ? 72 : 14, 2); }
    double pixdim(std::size_t index) const;
    double vox_offset() const;
    double slope() const { return real(version_ == 1 ? 112 : 176); }
    double intercept() const { return real(version_ == 1 ? 116 : 184); }
    std::int64_t units() const { return version_ == 1 ? data_[123] : whole(500, 4); }
    std::int64_t qform_code() const { return version_ == 1 ? whole(252, 2) : whole(344, 4); }
    std::int64_t sform_code() const { return version_ == 1 ? whole(254, 2) : whole(348, 4); }
    double quaternion(std::size_t index) const;
    double qoffset(std::size_t index) const;
    double srow(std::size_t row, std::size_t column) const;

    /// Say that voxels are uint8, begin 4 bytes after the header, and mean what is stored.
    void set_labels();

private:
    std::int64_t whole(std::size_t at, std::size_t bytes) const;
    double real(std::size_t at) const;
    // The version's floats, which are 4 bytes in NIfTI-1 and 8 in NIfTI-2.
    std::size_t real_bytes() const { return version_ == 1 ? 4 : 8; }
    void put(std::size_t at, std::size_t bytes, std::uint64_t bits);
    void put_real(std::size_t at, double value);
    std::uint64_t bits(std::size_t at, std::size_t bytes) const;

    unsigned char* data_;
    int version_;
    bool big_endian_;
};

}  // namespace lhanet
