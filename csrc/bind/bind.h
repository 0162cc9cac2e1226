// What the binding's files share. Structs of params.h become Python classes whose pointer fields take integers:
// data_ptr() of tensors that Python keeps alive and has checked.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>

#include "bind/interpreter.h"

namespace toykern {

// An address, which is what Python passes for every pointer and stream. A bound function never takes the pointer
// itself: pybind11 makes a `void*` from a capsule alone, and refuses the integer that a stream of torch is.
// tests/test_cuda_entries.py calls them all.
template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// A pointer field as an integer property.
template <class Class, class Struct, class T>
void bind_pointer(Class& c, const char* name, T* Struct::* field) {
    c.def_property(
        name, [field](const Struct& s) { return reinterpret_cast<uintptr_t>(s.*field); },
        [field](Struct& s, uintptr_t address) { s.*field = reinterpret_cast<T*>(address); });
}

void bind_sparse(pybind11::module_& m);  // sparse.cpp
void bind_layer(pybind11::module_& m);   // layer.cpp
void bind_cuda(pybind11::module_& m);    // cuda.cpp; after the others, whose structs it takes

}  // namespace toykern
