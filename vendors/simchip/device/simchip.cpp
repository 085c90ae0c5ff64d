// simchip, a simulated accelerator: the module that Python loads.
#include <torch/extension.h>

#include "simccl.h"

using namespace simchip;

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  py::class_<Fault>(m, "Fault")
      .def(py::init([](std::string kind, int device, int64_t after, double seconds, std::string op, double factor) {
        return Fault{std::move(kind), device, after, seconds, std::move(op), factor};
      }));
  m.def("configure", [](int count, int64_t memory, double delay, double flops, double bytes, double link,
                        std::vector<Fault> faults, const std::string& folder) {
    TORCH_CHECK_VALUE(count >= 0 && count <= kMaxDevices, "simchip has at most ", kMaxDevices, " devices");
    settings = {count, memory, delay, flops, bytes, link, std::move(faults)};
    publish(folder);
  });
  m.def("register_hooks", [] { at::RegisterPrivateUse1HooksInterface(&hooks); });
  m.def("device_count", [] { return settings.devices; });
  m.def("current_device", [] { return current_device; });
  m.def("set_device", [](int index) { Guard().setDevice({kType, static_cast<c10::DeviceIndex>(index)}); });
  m.def("current_stream", [](int index) { return stream_of(index).id(); });
  m.def("set_stream", [](int index, int64_t id) {
    Guard().exchangeStream(c10::Stream(c10::Stream::UNSAFE, c10::Device(kType, index), id));
  });
  m.def("occupy", [](double seconds) { bill(current_device, launch(current_device), seconds); });
  m.def("operators", [](int index) { return device_of(index).counters->operators.load(); });
  m.def("default_generator", [](int index) { return hooks.getDefaultGenerator(index); });
  m.def("simccl", [](c10::intrusive_ptr<c10d::Backend> gloo, int rank, int size) {
    return c10::intrusive_ptr<c10d::Backend>(c10::make_intrusive<SimCCL>(std::move(gloo), rank, size));
  });
}
