// A block's shared memory or workspace on the host: a piece of the heap of exactly the size that a device is asked for.
#pragma once
#include <cstdlib>
#include <memory>

namespace toykern {
namespace host {

struct Free {
    void operator()(char* p) const { std::free(p); }
};
using Memory = std::unique_ptr<char, Free>;

// What a device leaves in memory is anything; here it is a pattern of NaNs.
inline Memory memory_of(size_t bytes) {
    char* p = static_cast<char*>(std::malloc(bytes ? bytes : 1));
    for (size_t i = 0; p && i < bytes; ++i) p[i] = (char)0xFF;
    return Memory(p);
}

}  // namespace host
}  // namespace toykern
