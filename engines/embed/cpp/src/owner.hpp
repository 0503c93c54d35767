// Who can change a file that holds code.
#pragma once

#include <filesystem>

#include <sys/stat.h>

namespace lhanet {

/// Throws `Refused` for a file or folder of this status that other users of this machine can change.
///
/// A folder that everybody can write to protects its files if it has the sticky bit.
void check_owner(const std::filesystem::path& path, const struct stat& found);

/// The same, of what lies under the path now; `std::system_error` where there is nothing.
void check_owner(const std::filesystem::path& path);

}  // namespace lhanet
