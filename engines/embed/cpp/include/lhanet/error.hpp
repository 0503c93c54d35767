// Why something could not be done; `what()` names the file or value, what was found, and what to do.
#pragma once

#include <stdexcept>

namespace lhanet {

/// What was given cannot be used as it is: a scan, a manifest, an engine, an option. Exit code 2.
class Refused : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// What the machine lacks: a GPU, a library, memory, disk. Exit code 3.
class Lacks : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

}  // namespace lhanet
