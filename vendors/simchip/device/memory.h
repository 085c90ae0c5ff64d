// Device memory: counted to the byte, limited, and reachable from the host under a CPU tensor's name.
#pragma once

#include <c10/core/CPUAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <set>

#include "state.h"

namespace simchip {

constexpr size_t kSegment = 2 << 20;  // memory is reserved in units of this

// A piece of device memory. Tensors and the host's aliases of them share it; the last one gives it back.
struct Block {
  void* data;
  size_t bytes;
  int device;
  c10::Storage host;  // holds `data` where the host's operator made it
  std::atomic<int> users{1};
};

inline c10::CachingDeviceAllocator::DeviceStats statistics[kMaxDevices];

inline size_t segments(size_t bytes) {
  return std::min<size_t>((bytes + kSegment - 1) / kSegment * kSegment, settings.memory);
}

inline void set_reserved(int index, size_t bytes) {
  auto& reserved = statistics[index].reserved_bytes[0];
  if (static_cast<size_t>(reserved.current) < bytes) reserved.increase(bytes - reserved.current);
  if (static_cast<size_t>(reserved.current) > bytes) reserved.decrease(reserved.current - bytes);
  devices[index].counters->reserved = reserved.current;
}

inline void count(int index, size_t bytes) {
  require(index);
  auto& device = devices[index];
  std::lock_guard lock(device.mutex);
  auto& found = statistics[index];
  bool full = found.allocated_bytes[0].current + bytes > static_cast<size_t>(settings.memory);
  for (const auto& fault : settings.faults) full |= fault.kind == "out_of_memory" && applies(fault, index);
  if (full) ++found.num_ooms;
  constexpr double mib = 1 << 20;
  TORCH_CHECK_WITH(OutOfMemoryError, !full, "simchip out of memory: tried to allocate ", bytes / mib,
                   " MiB on device ", index, " (simulated), which has ", settings.memory / mib, " MiB, ",
                   found.allocated_bytes[0].current / mib, " MiB of them allocated");
  for (auto* stat : {&found.allocated_bytes[0], &found.active_bytes[0], &found.requested_bytes[0]})
    stat->increase(bytes);
  found.allocation[0].increase(1);
  found.active[0].increase(1);
  set_reserved(index, std::max<size_t>(found.reserved_bytes[0].current, segments(found.allocated_bytes[0].current)));
  device.counters->allocated = found.allocated_bytes[0].current;
}

inline void release(void* context) {
  auto* block = static_cast<Block*>(context);
  if (block == nullptr || --block->users > 0) return;
  {
    std::lock_guard lock(devices[block->device].mutex);
    auto& found = statistics[block->device];
    for (auto* stat : {&found.allocated_bytes[0], &found.active_bytes[0], &found.requested_bytes[0]})
      stat->decrease(block->bytes);
    found.allocation[0].decrease(1);
    found.active[0].decrease(1);
    devices[block->device].counters->allocated = found.allocated_bytes[0].current;
  }
  if (!block->host) c10::free_cpu(block->data);
  delete block;
}

inline c10::DataPtr pointer(Block* block) {
  return {block->data, block, &release, c10::Device(kType, block->device)};
}

struct Allocator final : c10::DeviceAllocator {
  c10::DataPtr on(int index, size_t bytes) {
    if (bytes == 0) return {nullptr, c10::Device(kType, index)};
    count(index, bytes);
    return pointer(new Block{c10::alloc_cpu(bytes), bytes, index, {}});
  }
  c10::DataPtr allocate(size_t bytes) override { return on(current_device, bytes); }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {
    for (int index = 0; index < settings.devices; ++index) {
      std::lock_guard lock(devices[index].mutex);
      set_reserved(index, segments(statistics[index].allocated_bytes[0].current));
    }
  }
  void recordStream(const c10::DataPtr&, c10::Stream) override {}  // work is done when its call returns
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex index) override {
    std::lock_guard lock(device_of(index).mutex);
    return statistics[index];
  }
  void reset(c10::DeviceIndex index, void (c10::CachingAllocator::Stat::*how)()) {
    std::lock_guard lock(device_of(index).mutex);
    auto& found = statistics[index];
    for (auto* array : {&found.allocation, &found.active, &found.allocated_bytes, &found.reserved_bytes,
                        &found.active_bytes, &found.requested_bytes})
      ((*array)[0].*how)();
  }
  void resetAccumulatedStats(c10::DeviceIndex index) override {
    reset(index, &c10::CachingAllocator::Stat::reset_accumulated);
  }
  void resetPeakStats(c10::DeviceIndex index) override { reset(index, &c10::CachingAllocator::Stat::reset_peak); }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex index) override {
    require(index);
    return {settings.memory - statistics[index].reserved_bytes[0].current, settings.memory};
  }
};

inline Allocator allocator;
REGISTER_ALLOCATOR(kType, &allocator);

// Pinned memory is the host's own, remembered by address.
struct PinnedAllocator final : c10::Allocator {
  static inline std::mutex mutex;
  static inline std::set<std::pair<uintptr_t, uintptr_t>> ranges;

  static bool holds(const void* data) {
    std::lock_guard lock(mutex);
    auto address = reinterpret_cast<uintptr_t>(data);
    auto after = ranges.upper_bound({address, UINTPTR_MAX});
    return after != ranges.begin() && address < std::prev(after)->second;
  }
  static void forget(void* data) {
    {
      std::lock_guard lock(mutex);
      ranges.erase(ranges.lower_bound({reinterpret_cast<uintptr_t>(data), 0}));
    }
    c10::free_cpu(data);
  }
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, c10::Device(c10::kCPU)};
    void* data = c10::alloc_cpu(bytes);
    std::lock_guard lock(mutex);
    ranges.emplace(reinterpret_cast<uintptr_t>(data), reinterpret_cast<uintptr_t>(data) + bytes);
    return {data, data, &forget, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &forget; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};
inline PinnedAllocator pinned;

inline void resize_storage(const c10::Storage& storage, size_t bytes) {
  auto* impl = storage.unsafeGetStorageImpl();
  auto fresh = allocator.on(storage.device().index(), bytes);
  if (auto kept = std::min(bytes, impl->nbytes())) memcpy(fresh.get(), impl->data(), kept);
  impl->set_data_ptr_noswap(std::move(fresh));
  impl->set_nbytes(bytes);
}

// The same memory under a host tensor's name. It may be resized, which leaves the device's memory as it was.
inline c10::Storage host_storage(const c10::Storage& storage) {
  auto* block = static_cast<Block*>(storage.data_ptr().get_context());
  if (block != nullptr) ++block->users;
  c10::DataPtr data(const_cast<void*>(storage.data()), block, &release, c10::Device(c10::kCPU));
  return {c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data), c10::GetCPUAllocator(), true};
}

inline at::Tensor host_tensor(const at::Tensor& tensor, c10::Storage storage) {
  auto alias = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                                        tensor.dtype());
  alias.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  alias._set_conj(tensor.is_conj());
  alias._set_neg(tensor.is_neg());
  return alias;
}

inline at::Tensor host_tensor(const at::Tensor& tensor) {
  TORCH_CHECK_NOT_IMPLEMENTED(tensor.layout() == c10::kStrided && tensor.has_storage(),
                              "simchip has dense tensors only, not ", tensor.layout());
  return host_tensor(tensor, host_storage(tensor.storage()));
}

// Make memory that a host operator filled the device's, without copying it where nothing else holds it.
inline c10::DataPtr adopt(c10::Storage storage, int index) {
  auto bytes = storage.nbytes();
  if (bytes == 0) return {nullptr, c10::Device(kType, index)};
  count(index, bytes);
  auto* data = const_cast<void*>(storage.data());
  return pointer(new Block{data, bytes, index, std::move(storage)});
}

}  // namespace simchip
