// Numbers that are drawn, and a hash of what comes out: what the programs of this folder print.
#pragma once
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>

// SplitMix64 (Steele, Lea and Flood 2014): the same numbers on every machine.
struct Random {
    uint64_t state;
    uint64_t next() {
        uint64_t z = state += 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return z ^ (z >> 31);
    }
    uint32_t word() { return (uint32_t)(next() >> 32); }
    double between(double low, double high) { return low + (high - low) * (double)(next() >> 40) * 0x1p-24; }
};

// FNV-1a over 64-bit words. All NaNs count as one: which of them comes out of a sum is the CPU's choice.
struct Hash {
    uint64_t value = 0xCBF29CE484222325u;
    void add(uint64_t word) { value = (value ^ word) * 0x100000001B3u; }
    void add(float x) {
        uint32_t bits;
        std::memcpy(&bits, &x, sizeof(bits));
        add((uint64_t)(x == x ? bits : 0x7FC00000u));
    }
    void add(double x) {
        uint64_t bits;
        std::memcpy(&bits, &x, sizeof(bits));
        add(x == x ? bits : (uint64_t)0x7FF8 << 48);
    }
};

// What is printed: a line "name: hash" for each name, in alphabetical order.
struct Lines {
    std::map<std::string, Hash> of;
    template <class T>
    void add(const std::string& name, const T* values, int64_t count) {
        for (int64_t i = 0; i < count; ++i) of[name].add(values[i]);
    }
    void print() const {
        for (const auto& [name, hash] : of) std::printf("%s: %016" PRIx64 "\n", name.c_str(), hash.value);
    }
};
