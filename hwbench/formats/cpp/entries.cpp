// y = x Wᵀ, or y += x Wᵀ, for a W of which single entries are kept, row by row.
//
// A row of W is summed for all tokens of a block at once: each entry multiplies the values of its
// column, which lie side by side, and the sums stay in registers. LANES rows of sums are turned and
// written to y together.

#include <omp.h>

#include "lanes.h"

namespace {

struct Call {
    const void *x, *values, *starts, *columns;
    void* y;
    ptrdiff_t x_step, tokens, inputs, outputs;
    bool add;
    ptrdiff_t parts;
    int threads;
    float* scratch;
};

// Of each row from `first` to `last`, the sum for every token of a block.
template <int VECTORS, class Item, class Index>
void sum_rows(const Item* values, const Index* starts, const Index* columns, const float* x,
              ptrdiff_t first, ptrdiff_t last, float* sums) {
    for (ptrdiff_t row = first; row < last; ++row) {
        const Index end = starts[row + 1];
        if constexpr (VECTORS == 0) {
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (Index e = starts[row]; e < end; ++e) sum += widened(values[e]) * x[columns[e]];
            *sums++ = sum;
        } else {
            Lanes sum[VECTORS] = {};
            for (Index e = starts[row]; e < end; ++e) {
                const float* column = x + columns[e] * ptrdiff_t(WIDTH<VECTORS>);
                for (int v = 0; v < VECTORS; ++v)
                    sum[v] += widened(values[e]) * load(column + v * LANES);
            }
            for (int v = 0; v < VECTORS; ++v, sums += LANES) store(sums, sum[v]);
        }
    }
}

template <int VECTORS, class Item, class Index>
void multiply(const Call& call) {
    constexpr int width = WIDTH<VECTORS>;
    const auto x = static_cast<const Item*>(call.x);
    const auto y = static_cast<Item*>(call.y);
    const ptrdiff_t blocks = (call.tokens + width - 1) / width;
    const ptrdiff_t part_rows = (call.outputs + call.parts - 1) / call.parts;
#pragma omp parallel for num_threads(call.threads) schedule(static)
    for (ptrdiff_t item = 0; item < blocks * call.parts; ++item) {
        float* turned = call.scratch + omp_get_thread_num() * (call.inputs + LANES) * width;
        float* sums = turned + call.inputs * width;
        const ptrdiff_t token = item / call.parts * width, begin = item % call.parts * part_rows;
        const int here = int(std::min<ptrdiff_t>(width, call.tokens - token));
        turn_in<VECTORS>(x + token * call.x_step, call.x_step, here, call.inputs, turned);
        const ptrdiff_t end = std::min(call.outputs, begin + part_rows);
        for (ptrdiff_t row = begin; row < end; row += LANES) {
            const ptrdiff_t last = std::min<ptrdiff_t>(row + LANES, end);
            sum_rows<VECTORS>(static_cast<const Item*>(call.values),
                              static_cast<const Index*>(call.starts),
                              static_cast<const Index*>(call.columns), turned, row, last, sums);
            turn_out<VECTORS>(sums, last - row, y + token * call.outputs + row, call.outputs, here,
                              call.add);
        }
    }
}

template <class Item, class Index>
void by_vectors(int vectors, const Call& call) {
    if (vectors == 0) multiply<0, Item, Index>(call);
    if (vectors == 1) multiply<1, Item, Index>(call);
    if (vectors == 2) multiply<2, Item, Index>(call);
    if (vectors > 2) multiply<MOST_VECTORS, Item, Index>(call);
}

}  // namespace

// x (tokens, inputs) with rows x_step apart, y (tokens, outputs); values (nonzeros,), starts
// (outputs + 1,) and columns (nonzeros,) as of compressed rows. Items are BFloat16 where `narrow`,
// else float; indices have 64 bits where `wide`, else 32. The outputs are computed in so many
// parts. Scratch: for each thread (inputs + LANES) · tokens of a block.
extern "C" void hwbench_entries(int narrow, int wide, int vectors, const void* x, ptrdiff_t x_step,
                                const void* values, const void* starts, const void* columns,
                                void* y, ptrdiff_t tokens, ptrdiff_t inputs, ptrdiff_t outputs,
                                int add, ptrdiff_t parts, int threads, float* scratch) {
    const Call call{x,      values,  starts,   columns, y,       x_step, tokens,
                    inputs, outputs, add != 0, parts,   threads, scratch};
    if (narrow && wide) by_vectors<BFloat16, std::int64_t>(vectors, call);
    if (narrow && !wide) by_vectors<BFloat16, std::int32_t>(vectors, call);
    if (!narrow && wide) by_vectors<float, std::int64_t>(vectors, call);
    if (!narrow && !wide) by_vectors<float, std::int32_t>(vectors, call);
}
