// What the native kernels share: tokens side by side in vector registers.
//
// A kernel takes a block of tokens of x, turns it so that the values of one feature for all tokens
// of the block lie side by side, and turns its results back. Both stay in cache. A block has
// VECTORS · LANES tokens, or one token where VECTORS is 0. All sums are in float32.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

using std::ptrdiff_t;

#if defined(__AVX512F__)
#define HWBENCH_LANES 16
#elif defined(__AVX__)
#define HWBENCH_LANES 8
#else
#define HWBENCH_LANES 4
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif

constexpr int LANES = HWBENCH_LANES;
constexpr int MOST_VECTORS = LANES == 16 ? 2 : 4;

typedef float Lanes __attribute__((vector_size(4 * LANES)));

struct BFloat16 {
    std::uint16_t bits;
};

// Tokens of a block.
template <int VECTORS>
constexpr int WIDTH = VECTORS ? VECTORS * LANES : 1;

inline Lanes load(const float* from) {
    Lanes found;
    std::memcpy(&found, from, sizeof found);
    return found;
}

inline void store(float* to, Lanes value) { std::memcpy(to, &value, sizeof value); }

inline float widened(float value) { return value; }

inline float widened(BFloat16 value) {
    const std::uint32_t bits = std::uint32_t(value.bits) << 16;
    float found;
    std::memcpy(&found, &bits, sizeof found);
    return found;
}

inline void put(float& to, float value) { to = value; }

// Rounds to the nearest, ties to even. What is no number stays none: a product of narrow values
// that is none has no bits that could carry over.
inline void put(BFloat16& to, float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    to.bits = std::uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Some items as float, the rest zero.
template <class Item>
Lanes load_items(const Item* from, int count) {
    float found[LANES] = {};
    if (count == LANES) {
        for (int i = 0; i < LANES; ++i) found[i] = widened(from[i]);
    } else {
        for (int i = 0; i < count; ++i) found[i] = widened(from[i]);
    }
    return load(found);
}

// Some items put at a place, or added to those that are there.
template <class Item>
void store_items(Item* to, int count, Lanes value, bool add) {
    if (add) value += load_items(to, count);
    if (count == LANES) {
        for (int i = 0; i < LANES; ++i) put(to[i], value[i]);
    } else {
        for (int i = 0; i < count; ++i) put(to[i], value[i]);
    }
}

// Lanes of two registers in turn, from the first of each on, or from the middle of each on.
#if HWBENCH_LANES == 16
#define ALTERNATE(one, two, at)                                                                   \
    __builtin_shufflevector(one, two, at, at + 16, at + 1, at + 17, at + 2, at + 18, at + 3,      \
                            at + 19, at + 4, at + 20, at + 5, at + 21, at + 6, at + 22, at + 7,   \
                            at + 23)
#elif HWBENCH_LANES == 8
#define ALTERNATE(one, two, at)                                                                   \
    __builtin_shufflevector(one, two, at, at + 8, at + 1, at + 9, at + 2, at + 10, at + 3, at + 11)
#else
#define ALTERNATE(one, two, at) __builtin_shufflevector(one, two, at, at + 4, at + 1, at + 5)
#endif

// A square of LANES × LANES values turned in place. To put the second half of all values between
// those of the first rotates the bits of every place by one; as often as a row has bits turns it.
inline void turn_square(Lanes (&rows)[LANES]) {
    for (int bit = 1; bit < LANES; bit *= 2) {
        Lanes next[LANES];
        for (int i = 0; i < LANES / 2; ++i) {
            next[2 * i] = ALTERNATE(rows[i], rows[i + LANES / 2], 0);
            next[2 * i + 1] = ALTERNATE(rows[i], rows[i + LANES / 2], LANES / 2);
        }
        for (int i = 0; i < LANES; ++i) rows[i] = next[i];
    }
}

// x (tokens, features) → turned (features, WIDTH); tokens that a block lacks are zeros.
template <int VECTORS, class Item>
void turn_in(const Item* x, ptrdiff_t step, int tokens, ptrdiff_t features, float* turned) {
    constexpr int width = WIDTH<VECTORS>;
    if constexpr (VECTORS == 0) {
        for (ptrdiff_t j = 0; j < features; ++j) turned[j] = widened(x[j]);
        return;
    }
    for (int first = 0; first < width; first += LANES) {
        for (ptrdiff_t j = 0; j < features; j += LANES) {
            const int here = int(std::min<ptrdiff_t>(LANES, features - j));
            Lanes square[LANES];
            for (int t = 0; t < LANES; ++t)
                square[t] = first + t < tokens ? load_items(x + (first + t) * step + j, here)
                                               : Lanes{};
            turn_square(square);
            for (int i = 0; i < here; ++i) store(turned + (j + i) * width + first, square[i]);
        }
    }
}

// turned (features, WIDTH) → y (tokens, features), put there or added to what is there.
template <int VECTORS, class Item>
void turn_out(const float* turned, ptrdiff_t features, Item* y, ptrdiff_t step, int tokens,
              bool add = false) {
    constexpr int width = WIDTH<VECTORS>;
    if constexpr (VECTORS == 0) {
        for (ptrdiff_t j = 0; j < features; ++j)
            put(y[j], add ? widened(y[j]) + turned[j] : turned[j]);
        return;
    }
    for (int first = 0; first < std::min(width, tokens); first += LANES) {
        for (ptrdiff_t j = 0; j < features; j += LANES) {
            const int here = int(std::min<ptrdiff_t>(LANES, features - j));
            Lanes square[LANES] = {};
            for (int i = 0; i < here; ++i) square[i] = load(turned + (j + i) * width + first);
            turn_square(square);
            for (int t = 0; t < std::min(LANES, tokens - first); ++t)
                store_items(y + (first + t) * step + j, here, square[t], add);
        }
    }
}
