// One step of a decoder on a CPU with AVX512, all layers in one parallel region.
//
// Owns the arithmetic of `backends.llm.network` for bfloat16 activations: weights in bfloat16 or
// int8 with a scale per output, both packed for pairs of inputs; keys and values in pages that are
// packed the same way, so that no dot product ends in a sum over lanes. Rounds to bfloat16 where the
// Hugging Face models round. Allocates only scratch that grows with the step. Invariant: a token's
// numbers depend on its own sequence alone, to the bit: sums are taken in an order that neither the
// rest of the step nor the number of threads changes.
//
// Letters: T tokens, S sequences, C width, I inputs, O outputs, H query heads, K key heads, G = H/K,
// D head_dim, Z tokens of a page, R rows of a tile (a row is one query head of one token).

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "attention.h"

namespace {

// Waits by spinning for about as long as a phase takes, then yields: beside a busy gateway the other
// thread may not be running.
class Barrier {
   public:
    explicit Barrier(int count) : count_(count) {}
    void wait() {
        if (count_ == 1) return;
        const int turn = turn_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
            arrived_.store(0, std::memory_order_relaxed);
            turn_.store(turn + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; turn_.load(std::memory_order_acquire) == turn; ++spins)
            spins < 4000 ? _mm_pause() : void(sched_yield());
    }

   private:
    const int count_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> turn_{0};
};

struct Scratch {
    std::vector<bf16> x, h, qkv, mixed, hidden, delta, rows, picked;
    std::vector<Item> items;
    std::vector<Partial> partials;
    int64_t splits;  // parts of the longest context, where several threads share an item; else 0
    std::vector<int64_t> owner;  // token → sequence

    Scratch(const Model& m, const Step& s) {
        const int64_t T = s.tokens, G = m.heads / m.kv_heads, D = m.head_dim;
        x.resize(T * m.width), h.resize(T * m.width), delta.resize(T * m.width);
        qkv.resize(T * (m.heads + 2 * m.kv_heads) * D), mixed.resize(T * m.heads * D);
        hidden.resize(T * m.hidden);
        rows.resize(s.rows * m.width), picked.resize(s.rows * m.width);
        owner.resize(T);
        int64_t longest = 0;
        for (int64_t q = 0; q < s.sequences; ++q) {
            const int64_t count = (s.start[q + 1] - s.start[q]) * G;
            longest = std::max<int64_t>(longest, s.context[q]);
            for (int64_t t = s.start[q]; t < s.start[q + 1]; ++t) owner[t] = q;
            for (int64_t k = 0; k < m.kv_heads; ++k)
                for (int64_t row = 0; row < count; row += TILE)
                    items.push_back({q, k, row, std::min<int64_t>(TILE, count - row)});
        }
        const int64_t parts = parts_of(longest);
        splits = int64_t(items.size()) < 4 * s.threads && parts > 1 ? parts : 0;
        partials.resize((splits ? items.size() * splits : s.threads * parts) * TILE);
    }
};

// Part `part` of the context of an item; empty where the item's rows see less. How many they are.
int64_t attend_part(const Model& m, const Step& s, Scratch& c, const bf16* keys, const bf16* values,
                    const Item& item, int64_t part, Partial* found) {
    const int64_t G = m.heads / m.kv_heads, D = m.head_dim, Z = s.page_size;
    const int64_t first = s.start[item.sequence], count = s.start[item.sequence + 1] - first;
    const int64_t context = s.context[item.sequence], E = (m.heads + 2 * m.kv_heads) * D;
    const bf16* query[TILE];
    int64_t limit[TILE], most = 0;
    for (int64_t r = 0; r < item.rows; ++r) {
        const int64_t token = (item.row + r) / G, head = item.head * G + (item.row + r) % G;
        query[r] = c.qkv.data() + (first + token) * E + head * D;
        limit[r] = context - count + token + 1;
        most = std::max(most, limit[r]);
    }
    const int64_t stride = m.kv_heads * Z * D, offset = item.head * Z * D;
    ATTEND[item.rows](query, limit, keys + offset, values + offset, s.table + item.sequence * s.table_width,
                      part * PART, std::min(most, (part + 1) * PART), D, Z, stride, 1.0f / std::sqrt(float(D)),
                      found);
    return parts_of(most);
}

void merge_parts(const Model& m, const Step& s, Scratch& c, const Item& item, const Partial* found, int64_t parts) {
    const int64_t G = m.heads / m.kv_heads, D = m.head_dim, first = s.start[item.sequence];
    for (int64_t r = 0; r < item.rows; ++r) {
        const int64_t token = (item.row + r) / G, head = item.head * G + (item.row + r) % G;
        merge(found, parts, r, D, c.mixed.data() + ((first + token) * m.heads + head) * D);
    }
}

void attend_all(const Model& m, const Step& s, Scratch& c, const bf16* keys, const bf16* values, Barrier& barrier,
                int who, int of) {
    const int64_t count = int64_t(c.items.size()), splits = c.splits;
    if (!splits) {
        Partial* own = c.partials.data() + who * (int64_t(c.partials.size()) / of);
        for (int64_t w = who; w < count; w += of) {
            int64_t part = 0;
            while (attend_part(m, s, c, keys, values, c.items[w], part, own + part * TILE) > part + 1) ++part;
            merge_parts(m, s, c, c.items[w], own, part + 1);
        }
        return;
    }
    Partial* all = c.partials.data();
    for (int64_t w = who; w < count * splits; w += of)
        attend_part(m, s, c, keys, values, c.items[w / splits], w % splits, all + w * TILE);
    barrier.wait();
    for (int64_t w = who; w < count; w += of) merge_parts(m, s, c, c.items[w], all + w * splits * TILE, splits);
}

void run(const Model& m, const Step& s, Scratch& c, Barrier& barrier, int who, int of) {
    const int64_t T = s.tokens, C = m.width, D = m.head_dim, E = (m.heads + 2 * m.kv_heads) * D;
    const Range tokens = share(T, who, of);
    const int64_t widest = std::max({C, m.heads * D, m.hidden});
    std::vector<bf16> room(widest * 64 + 32);
    bf16* x = c.x.data();
    for (int64_t t = tokens.first; t < tokens.end; ++t)
        std::memcpy(x + t * C, m.embedding + s.token[t] * C, C * sizeof(bf16));
    const int64_t cached = s.pages * m.kv_heads * s.page_size * D;
    for (int64_t i = 0; i < m.layers; ++i) {
        const Layer& layer = m.layer[i];
        bf16 *keys = s.keys + i * cached, *values = s.values + i * cached;
        for (int64_t t = tokens.first; t < tokens.end; ++t)
            add_norm(x + t * C, i ? c.delta.data() + t * C : nullptr, layer.input_norm, c.h.data() + t * C, C, m.eps);
        barrier.wait();
        linear(c.h.data(), T, C, layer.qkv, E, c.qkv.data(), room.data(), who, of);
        barrier.wait();
        for (int64_t t = tokens.first; t < tokens.end; ++t)
            write_kv(m, s, layer, c.qkv.data() + t * E, t, t + 1 == s.start[c.owner[t] + 1], keys, values);
        barrier.wait();
        attend_all(m, s, c, keys, values, barrier, who, of);
        barrier.wait();
        linear(c.mixed.data(), T, m.heads * D, layer.output, C, c.delta.data(), room.data(), who, of);
        barrier.wait();
        for (int64_t t = tokens.first; t < tokens.end; ++t)
            add_norm(x + t * C, c.delta.data() + t * C, layer.mlp_norm, c.h.data() + t * C, C, m.eps);
        barrier.wait();
        gated_linear(c.h.data(), T, C, layer.gate_up, m.hidden, c.hidden.data(), room.data(), who, of);
        barrier.wait();
        linear(c.hidden.data(), T, m.hidden, layer.down, C, c.delta.data(), room.data(), who, of);
        barrier.wait();
    }
    const Range rows = share(s.rows, who, of);
    for (int64_t r = rows.first; r < rows.end; ++r) {
        bf16* own = c.rows.data() + r * C;
        std::memcpy(own, x + s.row[r] * C, C * sizeof(bf16));
        add_norm(own, c.delta.data() + s.row[r] * C, m.norm, c.picked.data() + r * C, C, m.eps);
    }
    barrier.wait();
    float* logits = s.logits;
    const int64_t V = m.vocabulary;
    linear(c.picked.data(), s.rows, C, m.head, share((V + 31) / 32, who, of), room.data(),
           [=](int64_t row, int64_t at, __m512 a, __m512 b) {
               // Rounded as the reference rounds logits; the last block may reach past the vocabulary.
               const int64_t left = V - at;
               const __mmask16 low = left >= 16 ? 0xffff : __mmask16((1u << left) - 1);
               const __mmask16 high = left >= 32 ? 0xffff : left > 16 ? __mmask16((1u << (left - 16)) - 1) : 0;
               _mm512_mask_storeu_ps(logits + row * V + at, low, round16(a));
               _mm512_mask_storeu_ps(logits + row * V + at + 16, high, round16(b));
           });
}

}  // namespace

extern "C" void penstock_step(const Model* model, const Step* step) {
    Scratch scratch(*model, *step);
    const int threads = int(step->threads);
    Barrier barrier(threads);
#pragma omp parallel num_threads(threads)
    {
        // Fewer may have come than were asked for: the barrier counts them, so all must be there.
        const int who = omp_get_thread_num();
        if (omp_get_num_threads() == threads)
            run(*model, *step, scratch, barrier, who, threads);
        else if (who == 0) {
            Barrier alone(1);
            run(*model, *step, scratch, alone, 0, 1);
        }
    }
}
