// Models larger than memory: routed experts stay in the file's map, and a fixed amount of memory holds those in use.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "model/deepseek.h"
#include "nn/expert_source.h"

namespace fathom {

// Memory for a number of experts, each in the layout that the device multiplies fastest. When an expert is wanted that is not
// there, it is read from the map and packed in the place of the one that was used least (counts fade: an expert unused for 256
// tokens weighs half). While a layer computes, the next layer's router looks at what this layer's router has read, and a second
// thread fetches what it would choose (as in "Fast Inference of Mixture-of-Experts Language Models with Offloading", Eliseev
// and Mazur 2023, 3.2). What is computed does not depend on any of this: a matrix is packed before it is used, whenever.
class ExpertCache final : public ExpertSource {
public:
    // model: its routed experts lie in host memory as in the file (LoadOptions::page_experts). ops: packs for those who wait;
    // background: for the second thread, used by nobody else. Throws Error{kUsage} where `bytes` are too few for one layer's
    // experts. All must outlive the cache.
    ExpertCache(DeepSeek& model, Ops& ops, Ops& background, int64_t bytes);
    ~ExpertCache() override;
    ExpertCache(const ExpertCache&) = delete;
    ExpertCache& operator=(const ExpertCache&) = delete;

    void require(int64_t layer, const Tensor& offsets) override;
    void foresee(Context& cx, int64_t layer, const Tensor& x) override;
    void remember(uint64_t opening, int64_t layer, std::span<const int32_t> experts) override;
    void expect(uint64_t opening) override;

    // Counted since the cache was built, by (token batch, layer, expert).
    struct Counters {
        int64_t required = 0;        // experts that had rows
        int64_t hits = 0;            // of them, in memory when they were wanted
        int64_t foreseen = 0;        // of the hits, fetched by the second thread and not used before
        int64_t recalled = 0;        // fetched because prompts that begin alike used them
        int64_t fetched = 0;         // brought into memory, by either thread
        int64_t bytes_read = 0;      // of the file
        double stalled_seconds = 0;  // that layers waited for their experts
        [[nodiscard]] double hit_rate() const {
            return required == 0 ? 1 : static_cast<double>(hits) / static_cast<double>(required);
        }
        // What was counted since `before`.
        [[nodiscard]] Counters operator-(const Counters& before) const {
            return {required - before.required,
                    hits - before.hits,
                    foreseen - before.foreseen,
                    recalled - before.recalled,
                    fetched - before.fetched,
                    bytes_read - before.bytes_read,
                    stalled_seconds - before.stalled_seconds};
        }
    };
    [[nodiscard]] Counters counters() const;
    [[nodiscard]] int64_t slots() const { return static_cast<int64_t>(slots_.size()); }
    [[nodiscard]] int64_t experts() const { return static_cast<int64_t>(experts_.size()); }

private:
    static constexpr int32_t kNowhere = -1;
    struct Expert {
        std::array<Param*, 3> params;
        std::array<Weight, 3> stored;  // as they lie in the map
        double usage = 0;
        int32_t slot = kNowhere;
    };
    struct Slot {
        std::byte* memory = nullptr;
        std::array<Weight, 3> packed;
        int64_t expert = -1;
        int64_t pinned = -1;  // by which call of require
        bool loading = false, foreseen = false;
    };
    struct Layer {
        Moe* moe;
        int64_t first;  // expert
    };

    Ops &ops_, &background_ops_;
    std::vector<Expert> experts_;
    std::vector<Layer> layers_;
    std::vector<int32_t> place_;  // by layer index: in layers_, or kNowhere
    Buffer memory_;
    int64_t slot_bytes_ = 0, spare_ = 0;  // spare: places that may be on their way while a layer gets its experts
    std::vector<Slot> slots_;
    // How often each expert served the prompts that begin alike, and their answers; what was used longest ago is forgotten.
    struct Memory {
        std::vector<float> uses;  // by expert
        int64_t last = 0;         // call of require
    };
    std::unordered_map<uint64_t, Memory> memories_;
    int64_t call_ = 0;
    double weight_ = 1;  // of a use now: grows, so that older ones fade
    Counters counters_;

    mutable std::mutex mutex_;  // guards what both threads touch: slots' loading, queue_, counters_, failure_
    std::condition_variable wake_, loaded_;
    std::deque<int32_t> queue_;  // slots
    bool stop_ = false;
    std::exception_ptr failure_;
    std::thread thread_;

    void collect(DeepSeek& model);
    [[nodiscard]] int64_t bytes_when_packed() const;
    void use(int64_t expert, int64_t rows);
    [[nodiscard]] int32_t take_slot(int64_t expert);
    void bind(const Slot& slot);
    void fill(Slot& slot, Ops& ops);
    void wait_for(Slot& slot);
    void fetch_now(const std::vector<int64_t>& missing);
    void run();
    void fetch_later(int64_t expert);
};

}  // namespace fathom
