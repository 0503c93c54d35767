#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <limits>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include <signal.h>
#include <unistd.h>
#include <zlib.h>

#include "file.hpp"
#include "lhanet/error.hpp"
#include "lhanet/nifti.hpp"
#include "nifti_header.hpp"
#include "text.hpp"

namespace lhanet {

namespace {

namespace fs = std::filesystem;

// Label maps shrink to a hundredth at the fastest level already.
constexpr int level = 1;
constexpr std::size_t buffer_bytes = std::size_t{1} << 17;
constexpr unsigned char unknown_system = 255;

// Bytes that go into a file, packed or not.
class BytesOut {
public:
    BytesOut(File& file, bool is_packed) : file_(file), is_packed_(is_packed) {
        if (!is_packed_) {
            return;
        }
        buffer_.resize(buffer_bytes);
        if (deflateInit2(&stream_, level, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY) != Z_OK) {
            throw std::bad_alloc();
        }
        // No name, no time, no system: the same labels give the same bytes, which are Python's, too.
        head_.os = unknown_system;
        deflateSetHeader(&stream_, &head_);
    }

    ~BytesOut() {
        if (is_packed_) {
            deflateEnd(&stream_);
        }
    }

    BytesOut(const BytesOut&) = delete;
    BytesOut& operator=(const BytesOut&) = delete;

    void write(const std::vector<unsigned char>& bytes) {
        if (!is_packed_) {
            file_.write(bytes.data(), bytes.size());
            return;
        }
        for (std::size_t done = 0; done < bytes.size();) {
            const std::size_t count = std::min<std::size_t>(bytes.size() - done, std::numeric_limits<uInt>::max());
            // zlib's interface is older than const; it does not write there.
            stream_.next_in = const_cast<unsigned char*>(bytes.data() + done);
            stream_.avail_in = static_cast<uInt>(count);
            while (stream_.avail_in > 0) {
                pack(Z_NO_FLUSH);
            }
            done += count;
        }
    }

    void finish() {
        while (is_packed_ && pack(Z_FINISH) != Z_STREAM_END) {
        }
    }

private:
    int pack(int flush) {
        stream_.next_out = buffer_.data();
        stream_.avail_out = static_cast<uInt>(buffer_.size());
        const int answer = deflate(&stream_, flush);
        if (answer == Z_STREAM_ERROR) {
            throw std::logic_error("zlib lost its place");
        }
        file_.write(buffer_.data(), buffer_.size() - stream_.avail_out);
        return answer;
    }

    File& file_;
    bool is_packed_;
    std::vector<unsigned char> buffer_;
    z_stream stream_{};
    gz_header head_{};
};

std::string host_name() {
    std::array<char, 256> name{};
    // Cut at the array's end, as names that are too long are.
    ::gethostname(name.data(), name.size() - 1);
    return name.data();
}

// Begin of the names of temporary folders of this machine; Python's side gives them the same and sweeps them, too.
std::string staging_prefix() { return ".lhanet-export-" + host_name() + "-"; }

// Remove temporary folders of processes of this machine that are no more.
void sweep(const fs::path& folder) {
    const std::string prefix = staging_prefix();
    std::error_code none;
    for (const auto& entry : fs::directory_iterator(folder, none)) {
        const std::string name = entry.path().filename().string();
        if (name.compare(0, prefix.size(), prefix) != 0) {
            continue;
        }
        const std::string owner = name.substr(prefix.size(), name.find('-', prefix.size()) - prefix.size());
        const bool is_number = !owner.empty() && owner.size() < 10 &&
                               owner.find_first_not_of("0123456789") == std::string::npos;
        if (is_number && ::kill(static_cast<pid_t>(std::stol(owner)), 0) < 0 && errno == ESRCH) {
            fs::remove_all(entry.path(), none);
        }
    }
}

// Folders that were missing on the way to a file; removed again if they stay empty.
class MadeFolders {
public:
    explicit MadeFolders(const fs::path& folder) {
        std::vector<fs::path> missing;
        for (fs::path at = folder; !at.empty() && !is_there(at); at = at.parent_path()) {
            missing.push_back(at);
        }
        for (auto at = missing.rbegin(); at != missing.rend(); ++at) {
            if (fs::create_directory(*at)) {
                made_.push_back(*at);
            }
        }
    }

    ~MadeFolders() {
        std::error_code none;
        for (auto at = made_.rbegin(); at != made_.rend(); ++at) {
            fs::remove(*at, none);  // which takes no folder that holds something
        }
    }

    MadeFolders(const MadeFolders&) = delete;
    MadeFolders& operator=(const MadeFolders&) = delete;

private:
    std::vector<fs::path> made_;
};

// A temporary folder on the disk that the result goes to; gone when this goes out of scope.
class Scratch {
public:
    explicit Scratch(const fs::path& folder) {
        std::string name = (folder / (staging_prefix() + std::to_string(::getpid()) + "-XXXXXX")).string();
        if (::mkdtemp(name.data()) == nullptr) {
            throw std::system_error(errno, std::generic_category());
        }
        path_ = name;
    }

    ~Scratch() {
        std::error_code none;
        fs::remove_all(path_, none);
    }

    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    const fs::path& path() const { return path_; }

private:
    fs::path path_;
};

void check_target(const fs::path& path) {
    if (is_there(path) && !is_file(path)) {
        throw Refused(path.string() + " exists and is not a regular file; name another output");
    }
}

void write_and_publish(const fs::path& path, const Header& header, const std::vector<std::uint8_t>& labels) {
    const fs::path folder = folder_of(path);
    check_target(path);
    const MadeFolders made(folder);
    sweep(folder);
    const Scratch scratch(folder);
    const fs::path staged = scratch.path() / path.filename();
    {
        File file = File::making(staged);
        BytesOut out(file, text::ends_with(text::lower(path.filename().string()), ".gz"));
        std::vector<unsigned char> head = header_for_labels(header);
        // No extensions: four zeros (nifti1.h).
        head.insert(head.end(), 4, 0);
        out.write(head);
        out.write(labels);
        out.finish();
        file.sync();
        file.close();
    }
    check_target(path);
    fs::rename(staged, path);
    File::folder(folder).sync();
}

}  // namespace

void write_labels(const fs::path& path, const Header& header, const std::vector<std::uint8_t>& labels) {
    if (labels.size() != static_cast<std::size_t>(header.voxels())) {
        throw std::invalid_argument("labels and header are of different scans");
    }
    const fs::path target = without_slash(path);
    try {
        write_and_publish(target, header, labels);
    } catch (const std::system_error& error) {
        throw Lacks("cannot write into " + folder_of(target).string() + ": " + reason(error.code().value()));
    } catch (const std::bad_alloc&) {
        throw Lacks(target.string() + " needs more memory than there is");
    }
}

}  // namespace lhanet
