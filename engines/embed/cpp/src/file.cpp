#include "file.hpp"

#include <cerrno>
#include <optional>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

namespace lhanet {

namespace {

[[noreturn]] void fail(int error) { throw std::system_error(error, std::generic_category()); }

int opened(const std::filesystem::path& path, int flags) {
    // 0666 is what everybody asks for; the umask takes away what the user does not want to give.
    const int descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
    if (descriptor < 0) {
        fail(errno);
    }
    return descriptor;
}

// What is not there is an answer, too; Python's `Path.exists` takes the same errors for it.
std::optional<struct stat> found(const std::filesystem::path& path) {
    struct stat status{};
    if (::stat(path.c_str(), &status) == 0) {
        return status;
    }
    if (errno != ENOENT && errno != ENOTDIR && errno != EBADF && errno != ELOOP) {
        fail(errno);
    }
    return std::nullopt;
}

}  // namespace

File File::reading(const std::filesystem::path& path) { return File(opened(path, O_RDONLY)); }

File File::making(const std::filesystem::path& path) { return File(opened(path, O_WRONLY | O_CREAT | O_EXCL)); }

File File::folder(const std::filesystem::path& path) { return File(opened(path, O_RDONLY | O_DIRECTORY)); }

File::~File() {
    if (descriptor_ >= 0) {
        ::close(descriptor_);
    }
}

File::File(File&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}

std::size_t File::read(unsigned char* to, std::size_t count) {
    std::size_t done = 0;
    while (done < count) {
        const ssize_t got = ::read(descriptor_, to + done, count - done);
        if (got < 0 && errno != EINTR) {
            fail(errno);
        }
        if (got == 0) {
            break;
        }
        done += got > 0 ? static_cast<std::size_t>(got) : 0;
    }
    return done;
}

void File::write(const unsigned char* from, std::size_t count) {
    while (count > 0) {
        const ssize_t put = ::write(descriptor_, from, count);
        if (put < 0 && errno != EINTR) {
            fail(errno);
        }
        const std::size_t done = put > 0 ? static_cast<std::size_t>(put) : 0;
        from += done;
        count -= done;
    }
}

void File::rewind() {
    if (::lseek(descriptor_, 0, SEEK_SET) < 0) {
        fail(errno);
    }
}

void File::sync() {
    if (::fsync(descriptor_) < 0) {
        fail(errno);
    }
}

void File::close() {
    if (::close(std::exchange(descriptor_, -1)) < 0) {
        fail(errno);
    }
}

struct stat File::status() const {
    struct stat status{};
    if (::fstat(descriptor_, &status) < 0) {
        fail(errno);
    }
    return status;
}

struct stat status_of(const std::filesystem::path& path) {
    struct stat status{};
    if (::stat(path.c_str(), &status) < 0) {
        fail(errno);
    }
    return status;
}

std::filesystem::path without_slash(const std::filesystem::path& path) {
    return path.has_filename() || !path.has_relative_path() ? path : path.parent_path();
}

bool is_there(const std::filesystem::path& path) { return found(path).has_value(); }

bool is_file(const std::filesystem::path& path) {
    const auto status = found(path);
    return status && S_ISREG(status->st_mode);
}

std::filesystem::path folder_of(const std::filesystem::path& path) {
    const auto folder = path.parent_path();
    return folder.empty() ? "." : folder;
}

}  // namespace lhanet
