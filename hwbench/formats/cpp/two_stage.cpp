// y = x Wᵀ for a W cut into blocks of low rank: two products, the rows between them regrouped.
//
// Of a block of tokens, x is multiplied by `first` for a few output groups at a time, and what
// comes out by `second` at once, so that nothing in between leaves the cache. No weight is packed:
// each of its values multiplies the values of a row for all tokens of the block.

#include <omp.h>

#include "lanes.h"

namespace {

constexpr int MOST_ROWS = 8;  // of a weight at once

struct Call {
    const void *x, *first, *second;
    void* y;
    ptrdiff_t x_step, tokens, in_blocks, in_side, out_blocks, out_side, rank;
    bool strided;
    ptrdiff_t parts, together;
    int threads;
    float *between, *scratch;
    ptrdiff_t scratch_each;
};

// Where the rows of a product go, one after the other: runs of so many rows lie a step apart.
struct Places {
    float* run_at;
    ptrdiff_t run, run_step, row_step;
    ptrdiff_t row = 0;
    float* next() {
        if (row == run) row = 0, run_at += run_step;
        return run_at + row++ * row_step;
    }
};

// ROWS rows of a weight (ROWS, depth) times x (depth, WIDTH). Loops over sums are unrolled by
// demand: a compiler that leaves one as a loop keeps all sums on the stack.
template <int VECTORS, int ROWS>
void rows_times(const float* weight, ptrdiff_t depth, const float* x, Places& places) {
    Lanes sum[ROWS][VECTORS] = {};
    for (ptrdiff_t d = 0; d < depth; ++d) {
        Lanes part[VECTORS];
        for (int v = 0; v < VECTORS; ++v) part[v] = load(x + (d * VECTORS + v) * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) sum[r][v] += weight[r * depth + d] * part[v];
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        float* const to = places.next();
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) store(to + v * LANES, sum[r][v]);
    }
}

inline const float* as_float(const float* weight, ptrdiff_t, float*) { return weight; }

inline const float* as_float(const BFloat16* weight, ptrdiff_t count, float* wide) {
    for (ptrdiff_t i = 0; i < count; ++i) wide[i] = widened(weight[i]);
    return wide;
}

// A weight (rows, depth) times x (depth, WIDTH); `wide` has room for MOST_ROWS rows of the weight.
template <int VECTORS, class Item>
void times(const Item* weight, ptrdiff_t rows, ptrdiff_t depth, const float* x, float* wide,
           Places places) {
    if constexpr (VECTORS == 0) {
        for (ptrdiff_t r = 0; r < rows; ++r) {
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (ptrdiff_t d = 0; d < depth; ++d) sum += widened(weight[r * depth + d]) * x[d];
            *places.next() = sum;
        }
    } else {
        constexpr int ROWS = std::min(MOST_ROWS, REGISTERS / 2 / VECTORS);
        ptrdiff_t r = 0;
        for (; r + ROWS <= rows; r += ROWS)
            rows_times<VECTORS, ROWS>(as_float(weight + r * depth, ROWS * depth, wide), depth, x,
                                      places);
        for (; r < rows; ++r)
            rows_times<VECTORS, 1>(as_float(weight + r * depth, depth, wide), depth, x, places);
    }
}

// One block of tokens and the output groups from `begin` to `end`.
template <int VECTORS, class Item>
void block(const Call& call, ptrdiff_t token, ptrdiff_t begin, ptrdiff_t end, float* scratch) {
    constexpr ptrdiff_t width = WIDTH<VECTORS>;
    const auto x = static_cast<const Item*>(call.x);
    const auto y = static_cast<Item*>(call.y);
    const auto first = static_cast<const Item*>(call.first);
    const auto second = static_cast<const Item*>(call.second);
    const ptrdiff_t inputs = call.in_blocks * call.in_side, depth = call.in_blocks * call.rank;
    const ptrdiff_t outputs = call.out_blocks * call.out_side, groups = end - begin;
    const int here = int(std::min(width, call.tokens - token));
    float *turned = scratch, *sums = turned + inputs * width;
    float* wide = sums + groups * call.out_side * width;
    float* z = wide + MOST_ROWS * std::max(call.in_side, depth);
    if (call.between) z = call.between + (token / width * call.out_blocks + begin) * depth * width;
    turn_in<VECTORS>(x + token * call.x_step, call.x_step, here, inputs, turned);
    for (ptrdiff_t group = begin; group < end; group += call.together) {
        const ptrdiff_t now = std::min(call.together, end - group);
        for (ptrdiff_t k = 0; k < call.in_blocks; ++k)
            times<VECTORS>(first + (k * call.out_blocks + group) * call.rank * call.in_side,
                           now * call.rank, call.in_side, turned + k * call.in_side * width, wide,
                           {z + k * call.rank * width, call.rank, depth * width, width});
        for (ptrdiff_t l = 0; l < now; ++l) {
            const ptrdiff_t row = (group - begin + l) * (call.strided ? 1 : call.out_side);
            const ptrdiff_t step = call.strided ? groups : 1;
            times<VECTORS>(second + (group + l) * call.out_side * depth, call.out_side, depth,
                           z + l * depth * width, wide,
                           {sums + row * width, call.out_side, 0, step * width});
        }
    }
    Item* to = y + token * outputs;
    if (!call.strided || groups == call.out_blocks) {
        to += call.strided ? 0 : begin * call.out_side;
        turn_out<VECTORS>(sums, groups * call.out_side, to, outputs, here);
        return;
    }
    for (ptrdiff_t s = 0; s < call.out_side; ++s)
        turn_out<VECTORS>(sums + s * groups * width, groups, to + s * call.out_blocks + begin,
                          outputs, here);
}

template <int VECTORS, class Item>
void multiply(const Call& call) {
    constexpr ptrdiff_t width = WIDTH<VECTORS>;
    const ptrdiff_t blocks = (call.tokens + width - 1) / width;
    const ptrdiff_t groups = (call.out_blocks + call.parts - 1) / call.parts;
#pragma omp parallel for num_threads(call.threads) schedule(static)
    for (ptrdiff_t item = 0; item < blocks * call.parts; ++item) {
        const ptrdiff_t begin = item % call.parts * groups;
        const ptrdiff_t end = std::min(call.out_blocks, begin + groups);
        if (begin < end)
            block<VECTORS, Item>(call, item / call.parts * width, begin, end,
                                 call.scratch + omp_get_thread_num() * call.scratch_each);
    }
}

template <class Item>
void by_vectors(int vectors, const Call& call) {
    if (vectors == 0) multiply<0, Item>(call);
    if (vectors == 1) multiply<1, Item>(call);
    if (vectors == 2) multiply<2, Item>(call);
    if (vectors > 2) multiply<MOST_VECTORS, Item>(call);
}

}  // namespace

// x (tokens, in_blocks · in_side) with rows x_step apart, y (tokens, out_blocks · out_side); first
// (in_blocks, out_blocks · rank, in_side), second (out_blocks, out_side, in_blocks · rank), items
// of BFloat16 where `narrow`, else of float. Output groups are computed in so many parts, of a part
// so many together. Scratch, for each thread: the tokens of a block times the inputs, the outputs
// of a part, and the rows between the products of the groups that are computed together; and eight
// rows of the wider factor. Where `between` is no null pointer, what lies between the products is
// kept there instead, (blocks of tokens, out_blocks, in_blocks · rank, tokens of a block), and all
// groups of a part must be computed together.
extern "C" void hwbench_two_stage(int narrow, int vectors, const void* x, ptrdiff_t x_step,
                                  const void* first, const void* second, void* y, ptrdiff_t tokens,
                                  ptrdiff_t in_blocks, ptrdiff_t in_side, ptrdiff_t out_blocks,
                                  ptrdiff_t out_side, ptrdiff_t rank, int strided, ptrdiff_t parts,
                                  ptrdiff_t together, int threads, float* between,
                                  float* scratch, ptrdiff_t scratch_each) {
    const Call call{x,       first,      second,   y,       x_step,       tokens,
                    in_blocks, in_side,  out_blocks, out_side, rank,      strided != 0,
                    parts,   together,   threads,  between, scratch,      scratch_each};
    if (narrow) by_vectors<BFloat16>(vectors, call);
    else by_vectors<float>(vectors, call);
}

// What the caller needs to choose blocks and scratch: the lanes of a vector, and at most how many
// vectors make a block.
extern "C" int hwbench_lanes() { return LANES; }
extern "C" int hwbench_most_vectors() { return MOST_VECTORS; }
