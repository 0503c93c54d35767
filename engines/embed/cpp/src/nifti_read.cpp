#include <algorithm>
#include <cstring>
#include <new>
#include <string_view>
#include <system_error>
#include <utility>

#include "bytes_in.hpp"
#include "file.hpp"
#include "hounsfield.hpp"
#include "lhanet/error.hpp"
#include "lhanet/nifti.hpp"
#include "nifti_header.hpp"
#include "text.hpp"

namespace lhanet {

namespace {

// Voxels that are given at a time, in whole planes.
constexpr std::int64_t slab_voxels = std::int64_t{1} << 20;
// Bytes that are decoded at a time: whole voxels of every type.
constexpr std::size_t piece_bytes = std::size_t{1} << 18;
// What a file's kind is told by.
constexpr std::size_t start_bytes = 512;

bool is_packed(const std::filesystem::path& path) {
    return text::ends_with(text::lower(path.filename().string()), ".gz");
}

// What opening and reading may end with, as what this library throws.
template <typename Work>
auto reading(const std::string& file, Work work) {
    try {
        return work();
    } catch (const Damaged& error) {
        throw Refused(file + " is damaged or cut off (" + error.what() + "); copy it again");
    } catch (const std::system_error& error) {
        throw Refused("cannot read " + file + ": " + reason(error.code().value()));
    } catch (const std::bad_alloc&) {
        throw Lacks(file + " needs more memory than there is; crop it");
    }
}

// The file, unless its name or its kind tells already that it is no NIfTI file of its own.
File opened(const std::filesystem::path& path) {
    const std::string file = path.string(), name = text::lower(path.filename().string());
    if (!is_there(path)) {
        throw Refused(file + " does not exist");
    }
    if (!is_file(path)) {
        throw Refused(file + " is a folder or a device; name a .nii or .nii.gz file");
    }
    if (text::ends_with(name, ".img") || text::ends_with(name, ".hdr")) {
        auto other = path;
        other.replace_extension(text::ends_with(name, ".img") ? ".hdr" : ".img");
        const std::string missing =
            is_there(other) ? "" : ", and its other half " + other.filename().string() + " is missing";
        throw Refused(
            file + " is half of a pair of .hdr and .img" + missing + "; convert the pair to one .nii.gz");
    }
    return File::reading(path);
}

bool is_text(const std::vector<unsigned char>& start) {
    return std::all_of(start.begin(), start.end(), [](unsigned char byte) {
        return (byte >= 32 && byte < 127) || byte == '\t' || byte == '\r' || byte == '\n';
    });
}

bool has_at(const std::vector<unsigned char>& start, std::size_t at, std::string_view wanted) {
    return start.size() >= at + wanted.size() && std::memcmp(start.data() + at, wanted.data(), wanted.size()) == 0;
}

// Say what a file is that is no NIfTI, by its first bytes.
void check_kind(const std::string& file, const std::vector<unsigned char>& start, bool packed) {
    if (start.empty()) {
        throw Refused(file + " is empty; copy it again");
    }
    if (has_at(start, 128, "DICM")) {
        throw Refused(file + " is a DICOM file; convert the series to NIfTI, with dcm2niix for example");
    }
    if (has_at(start, 0, "version https://git-lfs")) {
        throw Refused(file + " is a Git LFS pointer, not the scan; fetch it with: git lfs pull");
    }
    if (is_text(start)) {
        throw Refused(
            file + " is text, which begins with " +
            text::bytes(start.data(), std::min<std::size_t>(start.size(), 24)) + "; name a .nii or .nii.gz file");
    }
    const bool has_gzip = has_at(start, 0, "\x1f\x8b");
    if (packed && !has_gzip) {
        throw Refused(file + " is not packed with gzip, although it is named .gz; if it is a .nii, rename it");
    }
    if (!packed && has_gzip) {
        throw Refused(file + " is packed with gzip; if it is a .nii.gz, rename it");
    }
}

}  // namespace

class ScanFile::Reader {
public:
    Reader(std::filesystem::path path, bool assume_hu)
        : path_(without_slash(path)), name_(path_.string()), assume_hu_(assume_hu) {
        reading(name_, [&] {
            File file = opened(path_);
            std::vector<unsigned char> start(start_bytes);
            start.resize(file.read(start.data(), start.size()));
            check_kind(name_, start, is_packed(path_));
            file.rewind();
            content_ = is_packed(path_) ? unpacked(std::move(file)) : plain(std::move(file));
            read_header();
        });
    }

    const std::filesystem::path& path() const { return path_; }
    const Header& header() const { return header_; }

    std::int64_t next_planes(std::vector<float>& hu) {
        if (is_broken_) {
            throw Refused(name_ + " was refused already");
        }
        // Until all has gone well: what comes after a damaged part must not pass for voxels.
        is_broken_ = true;
        const std::int64_t count = reading(name_, [&] { return planes(hu); });
        is_broken_ = false;
        return count;
    }

private:
    void read_header() {
        std::vector<unsigned char> start(header_bytes(1));
        start.resize(content_->read(start.data(), start.size()));
        if (version_of(start) == 2) {
            const std::size_t first = start.size();
            start.resize(header_bytes(2));
            start.resize(first + content_->read(start.data() + first, start.size() - first));
        }
        left_of_header_ = start.size();
        header_ = header_from_bytes(name_, std::move(start));
        left_of_header_ = static_cast<std::size_t>(header_.offset) - left_of_header_;
    }

    std::int64_t planes(std::vector<float>& hu) {
        // Extensions of the header, which say nothing about voxels.
        piece_.resize(piece_bytes);
        while (left_of_header_ > 0) {
            const std::size_t count = std::min(left_of_header_, piece_.size());
            exactly(count);
            left_of_header_ -= count;
        }
        hu.clear();
        const std::int64_t plane = header_.shape[0] * header_.shape[1];
        const std::int64_t count = std::min(std::max<std::int64_t>(1, slab_voxels / plane), header_.shape[2] - done_);
        if (count == 0) {
            finish();
            return 0;
        }
        // Memory grows with what the file has, not with what its header claims.
        hu.reserve(static_cast<std::size_t>(std::min(count * plane, slab_voxels)));
        const std::size_t size = bytes_of(header_.datatype);
        for (auto left = static_cast<std::size_t>(count * plane); left > 0;) {
            const std::size_t voxels = std::min(left, piece_.size() / size), first = hu.size();
            exactly(voxels * size);
            hu.resize(first + voxels);
            decode(header_, piece_.data(), voxels, hu.data() + first);
            seen_.add(hu.data() + first, voxels);
            left -= voxels;
        }
        done_ += count;
        return count;
    }

    // The next `count` bytes into `piece_`.
    void exactly(std::size_t count) {
        if (content_->read(piece_.data(), count) < count) {
            const auto expected =
                static_cast<std::uint64_t>(header_.offset) +
                static_cast<std::uint64_t>(header_.voxels()) * bytes_of(header_.datatype);
            throw Refused(
                name_ + " ends before the " + text::grouped(expected) + " bytes that its header " + shape() +
                " asks for");
        }
    }

    void finish() {
        if (is_whole_) {
            return;
        }
        // Reading on is what makes gzip compare its checksum.
        if (content_->read(piece_.data(), 1) > 0) {
            throw Refused(name_ + " is longer than its header " + shape() + " says; one of the two is damaged");
        }
        seen_.check(name_);
        if (!assume_hu_) {
            seen_.check_hounsfield(name_);
        }
        is_whole_ = true;
    }

    std::string shape() const { return text::sides({header_.shape.begin(), header_.shape.end()}); }

    std::filesystem::path path_;
    std::string name_;
    bool assume_hu_;
    std::unique_ptr<BytesIn> content_;
    Header header_;
    std::size_t left_of_header_ = 0;
    std::vector<unsigned char> piece_;
    std::int64_t done_ = 0;
    Seen seen_;
    bool is_whole_ = false, is_broken_ = false;
};

ScanFile::ScanFile(std::filesystem::path path, bool assume_hu)
    : reader_(std::make_unique<Reader>(std::move(path), assume_hu)) {}

ScanFile::~ScanFile() = default;

const std::filesystem::path& ScanFile::path() const { return reader_->path(); }

const Header& ScanFile::header() const { return reader_->header(); }

std::int64_t ScanFile::next_planes(std::vector<float>& hu) { return reader_->next_planes(hu); }

}  // namespace lhanet
