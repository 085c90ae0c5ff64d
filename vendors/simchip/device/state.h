// What one process knows of its simulated devices: settings, faults, the virtual clock, and the counters it publishes.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/Device.h>
#include <c10/core/Stream.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace simchip {

constexpr int kMaxDevices = 16;
constexpr int kStreams = 64;  // a device; stream 0 is the default one
constexpr auto kType = c10::DeviceType::PrivateUse1;
constexpr int32_t kLost = 1;  // error code of a device that is gone

struct Fault {
  std::string kind;  // "out_of_memory", "wrong" or "lost"
  int device = -1;   // -1: any
  int64_t after = 0;  // operators
  double seconds = 0;  // since the device was first used
  std::string op;
  double factor = 1;
};

struct Settings {
  int devices = 0;
  int64_t memory = 0;  // bytes a device
  double delay = 0;  // seconds an operator
  double flops = 0, bytes = 0, link = 0;  // a second: of matmul, of copies, of collectives; 0: as fast as the host
  std::vector<Fault> faults;
};

// Published in a file a process and device, which `readings.py` reads: its layout is told there too.
struct Counters {
  char magic[8];
  int64_t pid, device, total;
  std::atomic<int64_t> allocated, reserved, busy_ns, operators, lost;
};

inline int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

struct Device {
  std::mutex mutex;
  std::atomic<int64_t> busy[kStreams] = {};  // until when each stream works, on the host's monotonic clock
  std::atomic<int> streams{1};
  std::atomic<int64_t> first_used{0};
  Counters own = {};
  Counters* counters = &own;
};

inline Settings settings;
inline Device devices[kMaxDevices];
inline thread_local int current_device = 0;
inline thread_local int64_t current_stream[kMaxDevices] = {};

inline Device& device_of(int index) {
  TORCH_CHECK_VALUE(index >= 0 && index < settings.devices, "simchip has devices 0 to ", settings.devices - 1, ", not ",
                    index);
  return devices[index];
}

// Publish the counters of every device in `folder`; without it they stay in the process.
inline void publish(const std::string& folder) {
  for (int index = 0; index < settings.devices; ++index) {
    auto& device = devices[index];
    if (!folder.empty() && device.counters == &device.own) {
      auto path = folder + "/" + std::to_string(getpid()) + "-" + std::to_string(index);
      int file = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
      TORCH_CHECK(file >= 0 && ftruncate(file, sizeof(Counters)) == 0, "simchip can't write ", path);
      void* shared = mmap(nullptr, sizeof(Counters), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
      close(file);
      TORCH_CHECK(shared != MAP_FAILED, "simchip can't map ", path);
      device.counters = static_cast<Counters*>(shared);
    }
    auto& counters = *device.counters;
    counters.pid = getpid();
    counters.device = index;
    counters.total = settings.memory;
    memcpy(counters.magic, "simchip1", 8);
  }
}

[[noreturn]] inline void report_lost(int index) {
  throw c10::AcceleratorError({__func__, __FILE__, __LINE__}, kLost,
                              c10::str("simchip: device ", index, " is lost (simulated fault)"));
}

inline bool applies(const Fault& fault, int index) {
  auto& device = devices[index];
  return (fault.device < 0 || fault.device == index) && device.counters->operators > fault.after &&
         now() - device.first_used >= static_cast<int64_t>(fault.seconds * 1e9);
}

// Raise unless the device is there; a lost one stays lost.
inline void require(int index) {
  auto& device = device_of(index);
  if (device.first_used == 0) device.first_used = now();
  for (const auto& fault : settings.faults)
    if (fault.kind == "lost" && applies(fault, index)) device.counters->lost = 1;
  if (device.counters->lost) report_lost(index);
}

inline std::atomic<int64_t>& busy(const c10::Stream& stream) {
  TORCH_CHECK_VALUE(stream.id() >= 0 && stream.id() < kStreams, "simchip has no stream ", stream.id());
  return device_of(stream.device_index()).busy[stream.id()];
}

inline c10::Stream stream_of(int index) {
  device_of(index);
  return c10::Stream(c10::Stream::UNSAFE, c10::Device(kType, index), current_stream[index]);
}

inline void wait_until(int64_t when) {
  if (when > now()) std::this_thread::sleep_until(std::chrono::steady_clock::time_point(std::chrono::nanoseconds(when)));
}

inline void wait_for(const c10::Stream& stream) {
  require(stream.device_index());
  wait_until(busy(stream));
}

// Bill work to the current stream: it begins when it was launched or when the stream is free, and lasts `seconds`.
inline void bill(int index, int64_t launched, double seconds) {
  auto& until = busy(stream_of(index));
  auto length = static_cast<int64_t>(seconds * 1e9);
  until = std::max<int64_t>(launched, until) + length;
  devices[index].counters->busy_ns += std::max(length, now() - launched);
}

}  // namespace simchip
