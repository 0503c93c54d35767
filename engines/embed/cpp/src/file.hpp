// Files as the system knows them, closed when they go out of scope.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <system_error>

#include <sys/stat.h>

namespace lhanet {

/// What the system calls an error number.
inline std::string reason(int error) { return std::generic_category().message(error); }

/// A file descriptor; errors of the system are `std::system_error`.
class File {
public:
    /// Open a file for reading.
    static File reading(const std::filesystem::path& path);

    /// Make a file that must not exist yet, with the rights that the user's umask leaves.
    static File making(const std::filesystem::path& path);

    /// Open a folder, for `sync`.
    static File folder(const std::filesystem::path& path);

    ~File();
    File(File&& other) noexcept;
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    File& operator=(File&&) = delete;

    /// Up to `count` bytes, as many as there are; fewer only at the end of the file.
    std::size_t read(unsigned char* to, std::size_t count);

    /// Write all bytes.
    void write(const unsigned char* from, std::size_t count);

    /// Go back to the file's begin.
    void rewind();

    /// Wait until the disk has it.
    void sync();

    /// Close it, and hear what the system says to that.
    void close();

    struct stat status() const;

private:
    explicit File(int descriptor) : descriptor_(descriptor) {}

    int descriptor_;
};

/// A path as it was given, without slashes behind a file's name.
std::filesystem::path without_slash(const std::filesystem::path& path);

/// What the system knows of a file or folder; `std::system_error` where there is none.
struct stat status_of(const std::filesystem::path& path);

/// Whether there is something under this path, which may be a link; `std::system_error` where nobody can know.
bool is_there(const std::filesystem::path& path);

/// Whether there is a regular file under this path, which may be a link; `std::system_error` where nobody can know.
bool is_file(const std::filesystem::path& path);

/// The folder that a file is in, "." for a bare name.
std::filesystem::path folder_of(const std::filesystem::path& path);

}  // namespace lhanet
