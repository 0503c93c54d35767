#include "owner.hpp"

#include <string>

#include <unistd.h>

#include "file.hpp"
#include "lhanet/error.hpp"

namespace lhanet {

void check_owner(const std::filesystem::path& path, const struct stat& found) {
    const bool is_protected = S_ISDIR(found.st_mode) && (found.st_mode & S_ISVTX) != 0;
    if ((found.st_mode & S_IWOTH) != 0 && !is_protected) {
        throw Refused(
            "everybody on this machine can write to " + path.string() +
            ", and an engine is native code; run: chmod o-w " + path.string());
    }
    if (found.st_uid != 0 && found.st_uid != ::geteuid()) {
        throw Refused(
            path.string() + " belongs to another user (uid " + std::to_string(found.st_uid) +
            "), and an engine is native code; if you trust it, copy engine and manifest into a folder of your own");
    }
}

void check_owner(const std::filesystem::path& path) { check_owner(path, File::reading(path).status()); }

}  // namespace lhanet
