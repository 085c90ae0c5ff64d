// What torch asks of a device type: guards, streams, events, generators and hooks.
#pragma once

#include <ATen/core/GeneratorForPrivateuseone.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/GeneratorImpl.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "memory.h"

namespace simchip {

struct Event {
  int64_t time;  // when the work before it is done
};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device device) const override {
    auto before = getDevice();
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override { return {kType, static_cast<c10::DeviceIndex>(current_device)}; }
  void setDevice(c10::Device device) const override {
    if (!device.has_index()) return;
    device_of(device.index());
    current_device = device.index();
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.has_index()) current_device = device.index();
  }
  c10::DeviceIndex deviceCount() const noexcept override { return static_cast<c10::DeviceIndex>(settings.devices); }

  int index(c10::Device device) const { return device.has_index() ? device.index() : current_device; }
  c10::Stream getStream(c10::Device device) const override { return stream_of(index(device)); }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, c10::Device(kType, index(device)));
  }
  c10::Stream getNewStream(c10::Device device, int) const override {
    // They go round: a program that makes many shares them, as it would a pool.
    int place = index(device);
    int made = device_of(place).streams++;
    return c10::Stream(c10::Stream::UNSAFE, c10::Device(kType, place), 1 + made % (kStreams - 1));
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return getNewStream(device, 0); }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    auto before = getStream(stream.device());
    busy(stream);
    current_stream[stream.device_index()] = stream.id();
    return before;
  }
  bool queryStream(const c10::Stream& stream) const override { return busy(stream) <= now(); }
  void synchronizeStream(const c10::Stream& stream) const override { wait_for(stream); }
  void synchronizeDevice(const c10::DeviceIndex place) const override {
    require(place);
    int64_t last = 0;
    for (auto& until : devices[place].busy) last = std::max<int64_t>(last, until);
    wait_until(last);
  }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex, const c10::EventFlag) const override {
    require(stream.device_index());
    if (*event == nullptr) *event = new Event;
    static_cast<Event*>(*event)->time = std::max<int64_t>(now(), busy(stream));
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event == nullptr) return;
    auto& until = busy(stream);
    until = std::max<int64_t>(until, static_cast<Event*>(event)->time);
  }
  bool queryEvent(void* event) const override { return event == nullptr || static_cast<Event*>(event)->time <= now(); }
  void synchronizeEvent(void* event) const override {
    if (event != nullptr) wait_until(static_cast<Event*>(event)->time);
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override { delete static_cast<Event*>(event); }
  double elapsedTime(void* first, void* second, const c10::DeviceIndex) const override {
    TORCH_CHECK(first != nullptr && second != nullptr, "both events must be recorded before the time between them");
    TORCH_CHECK(queryEvent(first) && queryEvent(second), "both events must be over before the time between them");
    return static_cast<double>(static_cast<Event*>(second)->time - static_cast<Event*>(first)->time) / 1e6;
  }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// A seed and how many random operators there have been since. Each draws from a host generator made of the two.
struct Generator final : c10::GeneratorImpl {
  explicit Generator(c10::DeviceIndex index)
      : c10::GeneratorImpl(c10::Device(kType, index), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)) {}
  uint64_t state[2] = {c10::detail::getNonDeterministicRandom(), 0};

  void set_current_seed(uint64_t seed) override { state[0] = seed, state[1] = 0; }
  uint64_t current_seed() const override { return state[0]; }
  void set_offset(uint64_t offset) override { state[1] = offset; }
  uint64_t get_offset() const override { return state[1]; }
  uint64_t seed() override {
    set_current_seed(c10::detail::getNonDeterministicRandom());
    return state[0];
  }
  void set_state(const c10::TensorImpl& given) override {
    TORCH_CHECK_VALUE(given.numel() == sizeof(state) && given.dtype() == at::kByte && given.is_cpu(),
                      "simchip's generator state is ", sizeof(state), " bytes on the CPU");
    memcpy(state, given.data(), sizeof(state));
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    auto copy = at::empty({sizeof(state)}, at::kByte);
    memcpy(copy.data_ptr(), state, sizeof(state));
    return copy.getIntrusivePtr();
  }
  c10::GeneratorImpl* clone_impl() const override {
    auto* copy = new Generator(device().index());
    memcpy(copy->state, state, sizeof(state));
    return copy;
  }
  at::Generator next() {
    std::lock_guard lock(mutex_);
    return at::detail::createCPUGenerator(state[0] + 0x9E3779B97F4A7C15ull * state[1]++);
  }
};

inline at::Generator new_generator(c10::DeviceIndex index) {
  return at::make_generator<Generator>(index < 0 ? static_cast<c10::DeviceIndex>(current_device) : index);
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return settings.devices > 0; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return static_cast<c10::DeviceIndex>(settings.devices); }
  void setCurrentDevice(c10::DeviceIndex index) const override { Guard().setDevice({kType, index}); }
  c10::DeviceIndex getCurrentDevice() const override { return static_cast<c10::DeviceIndex>(current_device); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    return Guard().exchangeDevice({kType, index}).index();
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override { return exchangeDevice(index); }
  bool isPinnedPtr(const void* data) const override { return PinnedAllocator::holds(data); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned; }
  c10::Device getDeviceFromPtr(void*) const override { return Guard().getDevice(); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) const override {
    static std::vector<at::Generator> made = [] {
      std::vector<at::Generator> all;
      for (int place = 0; place < kMaxDevices; ++place) all.push_back(new_generator(place));
      return all;
    }();
    return made.at(index < 0 ? current_device : index);
  }
  at::Generator getNewGenerator(c10::DeviceIndex index) const override { return new_generator(index); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    resize_storage(storage, bytes);
  }
};
inline Hooks hooks;

}  // namespace simchip
