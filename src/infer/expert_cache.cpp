#include "infer/expert_cache.h"

#include <fmt/format.h>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "base/pages.h"
#include "base/progress.h"

namespace fathom {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kFadeTokens = 256;  // after so many a use counts half
constexpr int64_t kForeseenRows = 8;  // larger batches choose most experts anyhow

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Every part of the matrices as they lie in the map.
template <class Tell>
void tell_pages(const std::array<Weight, 3>& matrices, const Tell& tell) {
    for (const Weight& w : matrices)
        for (const Tensor* x : {&w.codes, &w.scales, &w.zeros})
            if (*x) tell(x->data, x->bytes());
}

Tensor copy_of(const Tensor& x, Arena& arena) {
    if (!x) return x;
    check(x.contiguous() && x.rank == 2, "ExpertCache: a matrix is not in one piece");
    const Tensor copy = arena.allocate(x.dtype, {x.dim(0), x.dim(1)});
    if (copy.data != nullptr) std::memcpy(copy.data, x.data, static_cast<size_t>(x.bytes()));
    return copy;
}

// In memory of `arena`, packed where the device has a layout of its own.
Weight brought(const Weight& stored, Ops& ops, Arena& arena) {
    Weight here = ops.pack(stored, arena);
    if (here.codes.data != stored.codes.data) return here;
    here.codes = copy_of(stored.codes, arena);
    here.scales = copy_of(stored.scales, arena);
    here.zeros = copy_of(stored.zeros, arena);
    return here;
}

}  // namespace

ExpertCache::ExpertCache(DeepSeek& model, Ops& ops, Ops& background, int64_t bytes) : ops_(ops), background_ops_(background) {
    collect(model);
    slot_bytes_ = bytes_when_packed();
    const int64_t most = model.config().n_routed_experts, chosen = model.config().num_experts_per_tok;
    const int64_t count = slot_bytes_ == 0 ? 0 : std::min(bytes / slot_bytes_, experts());
    const int64_t least = std::min(most + 2 * chosen, experts());  // a layer's, and what is being fetched
    if (count < least) {
        throw Error(ErrorKind::kUsage,
                    fmt::format("--ram leaves {} for routed experts of {} each, and at least {} must fit: give {} more",
                                human_bytes(static_cast<double>(std::max<int64_t>(bytes, 0))),
                                human_bytes(static_cast<double>(slot_bytes_)), least,
                                human_bytes(static_cast<double>(least * slot_bytes_ - bytes))));
    }
    spare_ = count - least;
    memory_ = ops.allocate(count * slot_bytes_);
    slots_.resize(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i)
        slots_[static_cast<size_t>(i)].memory = static_cast<std::byte*>(memory_.data()) + i * slot_bytes_;
    thread_ = std::thread([this] { run(); });
}

ExpertCache::~ExpertCache() {
    {
        const std::lock_guard lock(mutex_);
        stop_ = true;
    }
    wake_.notify_one();
    if (thread_.joinable()) thread_.join();
    for (Expert& expert : experts_)
        for (size_t i = 0; i < 3; ++i) expert.params[i]->weight = expert.stored[i];
}

void ExpertCache::collect(DeepSeek& model) {
    for (const auto& [index, moe] : model.moe_layers()) {
        place_.resize(std::max(place_.size(), static_cast<size_t>(index) + 1), kNowhere);
        place_[static_cast<size_t>(index)] = static_cast<int32_t>(layers_.size());
        layers_.push_back({moe, experts()});
        for (int64_t e = 0; e < moe->router().config().n_routed_experts; ++e) {
            Expert expert{moe->expert(e), {}};
            for (size_t i = 0; i < 3; ++i) expert.stored[i] = expert.params[i]->weight;
            experts_.push_back(expert);
        }
    }
}

// Of the largest expert; one of each kind is packed to see.
int64_t ExpertCache::bytes_when_packed() const {
    using Kind = std::tuple<Scheme, BlockType, DType, int64_t>;
    std::map<Kind, int64_t> known;
    int64_t largest = 0;
    for (const Expert& expert : experts_) {
        int64_t bytes = 0;
        for (const Weight& w : expert.stored) {
            const auto [entry, fresh] = known.try_emplace(Kind{w.scheme, w.block, w.codes.dtype, w.bytes()}, 0);
            if (fresh) {
                Arena arena(
                    "expert", [this](int64_t size) { return ops_.allocate(size); }, 1);
                (void)brought(w, ops_, arena);
                entry->second = arena.used();
            }
            bytes += entry->second;
        }
        largest = std::max(largest, bytes);
    }
    return largest;
}

void ExpertCache::use(int64_t expert, int64_t rows) {
    experts_[static_cast<size_t>(expert)].usage += weight_ * (1 + std::log2(static_cast<double>(rows)));
}

void ExpertCache::require(int64_t layer, const Tensor& offsets) {
    const Layer& at = layers_[static_cast<size_t>(place_[static_cast<size_t>(layer)])];
    ++call_;
    weight_ *= std::exp2(1.0 / static_cast<double>(kFadeTokens * static_cast<int64_t>(layers_.size())));
    if (weight_ > 1e100) {
        for (Expert& expert : experts_) expert.usage /= weight_;
        weight_ = 1;
    }
    const auto* begins = offsets.as<int32_t>();
    std::vector<int64_t> missing;
    for (int64_t e = 0; e + 1 < offsets.dim(0); ++e) {
        if (begins[e] == begins[e + 1]) continue;
        const int64_t id = at.first + e;
        use(id, begins[e + 1] - begins[e]);
        ++counters_.required;
        const int32_t place = experts_[static_cast<size_t>(id)].slot;
        if (place == kNowhere) {
            missing.push_back(id);
            continue;
        }
        Slot& slot = slots_[static_cast<size_t>(place)];
        slot.pinned = call_;
        wait_for(slot);
    }
    if (!missing.empty()) fetch_now(missing);
}

// A hit, unless it is still on its way.
void ExpertCache::wait_for(Slot& slot) {
    std::unique_lock lock(mutex_);
    if (!slot.loading) {
        ++counters_.hits;
        counters_.foreseen += std::exchange(slot.foreseen, false) ? 1 : 0;
    } else {
        const auto start = Clock::now();
        loaded_.wait(lock, [&] { return !slot.loading || failure_; });
        counters_.stalled_seconds += seconds_since(start);
    }
    if (failure_) std::rethrow_exception(failure_);
    slot.foreseen = false;
    bind(slot);
}

void ExpertCache::fetch_now(const std::vector<int64_t>& missing) {
    const auto start = Clock::now();
    for (const int64_t id : missing) tell_pages(experts_[static_cast<size_t>(id)].stored, want_pages);
    for (const int64_t id : missing) {
        Slot& slot = slots_[static_cast<size_t>(take_slot(id))];
        slot.pinned = call_;
        fill(slot, ops_);
        bind(slot);
    }
    const std::lock_guard lock(mutex_);
    counters_.stalled_seconds += seconds_since(start);
}

// The slot whose expert was used least, now `expert`'s. What this call of require needs, and what is on its way, stays.
int32_t ExpertCache::take_slot(int64_t expert) {
    const std::lock_guard lock(mutex_);
    int32_t best = kNowhere;
    double least = std::numeric_limits<double>::max();
    for (size_t i = 0; i < slots_.size(); ++i) {
        const Slot& slot = slots_[i];
        if (slot.loading || slot.pinned == call_) continue;
        const double usage = slot.expert < 0 ? -1 : experts_[static_cast<size_t>(slot.expert)].usage;
        if (usage < least) least = usage, best = static_cast<int32_t>(i);
    }
    check(best != kNowhere, "ExpertCache: every slot is in use");
    Slot& slot = slots_[static_cast<size_t>(best)];
    if (slot.expert >= 0) {
        Expert& old = experts_[static_cast<size_t>(slot.expert)];
        for (size_t i = 0; i < 3; ++i) old.params[i]->weight = old.stored[i];
        old.slot = kNowhere;
    }
    slot.expert = expert;
    slot.foreseen = false;
    experts_[static_cast<size_t>(expert)].slot = best;
    return best;
}

void ExpertCache::bind(const Slot& slot) {
    Expert& expert = experts_[static_cast<size_t>(slot.expert)];
    for (size_t i = 0; i < 3; ++i) expert.params[i]->weight = slot.packed[i];
}

void ExpertCache::fill(Slot& slot, Ops& ops) {
    const Expert& expert = experts_[static_cast<size_t>(slot.expert)];
    tell_pages(expert.stored, want_pages);
    Arena arena(
        "expert", [&](int64_t bytes) { return Buffer(slot.memory, bytes, [](void*) {}); }, slot_bytes_);
    int64_t read = 0;
    for (size_t i = 0; i < 3; ++i) {
        slot.packed[i] = brought(expert.stored[i], ops, arena);
        read += expert.stored[i].bytes();
    }
    check(arena.reserved() == slot_bytes_, "ExpertCache: an expert outgrew its slot");
    tell_pages(expert.stored, done_with_pages);
    const std::lock_guard lock(mutex_);
    ++counters_.fetched;
    counters_.bytes_read += read;
}

void ExpertCache::foresee(Context& cx, int64_t layer, const Tensor& x) {
    const auto next = static_cast<size_t>(place_[static_cast<size_t>(layer)]) + 1;
    if (next >= layers_.size() || x.dim(0) > kForeseenRows) return;
    const ArenaScope scope(cx.scratch);
    const Tensor indices = layers_[next].moe->router().forward(cx, x, {}, false).indices;
    const auto* chosen = indices.as<int32_t>();
    const auto room = static_cast<size_t>(2 * indices.dim(1) - 1);  // and one on its way
    for (int64_t i = 0; i < indices.size(); ++i) {
        const int64_t id = layers_[next].first + chosen[i];
        if (experts_[static_cast<size_t>(id)].slot != kNowhere) continue;
        {
            const std::lock_guard lock(mutex_);
            if (queue_.size() >= room) return;
        }
        fetch_later(id);
    }
}

// By the second thread.
void ExpertCache::fetch_later(int64_t expert) {
    const int32_t place = take_slot(expert);
    {
        const std::lock_guard lock(mutex_);
        Slot& slot = slots_[static_cast<size_t>(place)];
        slot.loading = slot.foreseen = true;
        queue_.push_back(place);
    }
    wake_.notify_one();
}

void ExpertCache::remember(uint64_t opening, int64_t layer, std::span<const int32_t> experts) {
    constexpr size_t kMost = 64;
    auto found = memories_.find(opening);
    if (found == memories_.end()) {
        if (memories_.size() >= kMost) {
            memories_.erase(std::ranges::min_element(memories_, {}, [](const auto& entry) { return entry.second.last; }));
        }
        found = memories_.emplace(opening, Memory{std::vector<float>(experts_.size()), 0}).first;
    }
    found->second.last = call_;
    const int64_t first = layers_[static_cast<size_t>(place_[static_cast<size_t>(layer)])].first;
    for (const int32_t expert : experts) found->second.uses[static_cast<size_t>(first + expert)] += 1;
}

// The most used of them that are not in memory, into the places of what has been used least: an eighth of all places at a time,
// so that what other requests need stays.
void ExpertCache::expect(uint64_t opening) {
    const auto found = memories_.find(opening);
    if (found == memories_.end()) return;
    found->second.last = call_;
    const std::vector<float>& uses = found->second.uses;
    std::vector<int64_t> wanted;
    for (int64_t id = 0; id < std::ssize(experts_); ++id) {
        if (uses[static_cast<size_t>(id)] > 0 && experts_[static_cast<size_t>(id)].slot == kNowhere) wanted.push_back(id);
    }
    std::ranges::sort(wanted, std::ranges::greater(), [&](int64_t id) { return uses[static_cast<size_t>(id)]; });
    {
        const std::lock_guard lock(mutex_);
        const auto room = static_cast<size_t>(std::max<int64_t>(spare_ - std::ssize(queue_), 0));
        wanted.resize(std::min({wanted.size(), slots_.size() / 8, room}));
        counters_.recalled += std::ssize(wanted);
    }
    for (const int64_t id : wanted) {
        use(id, 1);
        fetch_later(id);
    }
}

void ExpertCache::run() {
    std::unique_lock lock(mutex_);
    while (true) {
        wake_.wait(lock, [this] { return stop_ || !queue_.empty(); });
        if (stop_) return;
        Slot& slot = slots_[static_cast<size_t>(queue_.front())];
        queue_.pop_front();
        lock.unlock();
        try {
            fill(slot, background_ops_);
            lock.lock();
        } catch (...) {
            lock.lock();
            failure_ = std::current_exception();
        }
        slot.loading = false;
        loaded_.notify_all();
    }
}

ExpertCache::Counters ExpertCache::counters() const {
    const std::lock_guard lock(mutex_);
    return counters_;
}

}  // namespace fathom
