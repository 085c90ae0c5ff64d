// Operators: each runs on the host over aliases of the device's memory, and is billed to the virtual clock.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/op_registration/op_registration.h>
#include <torch/library.h>

#include <unordered_map>
#include <unordered_set>

#include "guard.h"

namespace simchip {

using torch::jit::Stack;

// One operator's tensors, as the device and as the host name them.
class Call {
 public:
  at::Tensor to_host(const at::Tensor& tensor, bool any_device = false) {
    if (!tensor.defined()) return tensor;
    if (tensor.device().type() != kType) {
      if (!any_device && tensor.dim() > 0) foreign_ = tensor.device();
      return tensor;
    }
    use(tensor.device().index());
    for (auto& pair : pairs_)
      if (pair.device.is_same(tensor)) return pair.host;
    TORCH_CHECK_NOT_IMPLEMENTED(tensor.layout() == c10::kStrided && tensor.has_storage(),
                                "simchip has dense tensors only, not ", tensor.layout());
    lazy |= tensor.is_conj() || tensor.is_neg();
    auto storage = shared(tensor.storage());
    auto host = host_tensor(tensor, storage ? *storage : host_storage(tensor.storage()));
    pairs_.push_back({tensor, host, host.storage()});
    return host;
  }

  void use(int index) {
    TORCH_CHECK(index_ < 0 || index_ == index, "Expected all tensors to be on the same device, but found simchip:",
                index_, " and simchip:", index);
    index_ = index;
  }

  // The device that the operator runs on; raises if it was given a tensor of another one.
  int place() {
    TORCH_CHECK(index_ < 0 || !foreign_, "Expected all tensors to be on the same device, but found simchip:", index_,
                " and ", *foreign_);
    return index_ < 0 ? current_device : index_;
  }

  // Give arguments that the host's operator resized or restrided their new shape.
  void write_back() {
    for (auto& pair : pairs_) {
      auto *host = pair.host.unsafeGetTensorImpl(), *device = pair.device.unsafeGetTensorImpl();
      auto& storage = device->storage();
      if (storage.data() != host->storage().data() || storage.nbytes() != host->storage().nbytes()) {
        auto bytes = host->storage().nbytes();
        storage.set_data_ptr_noswap(adopt(host->storage(), storage.device().index()));
        storage.unsafeGetStorageImpl()->set_nbytes(bytes);
      }
      if (host->sizes() != device->sizes() || host->strides() != device->strides() ||
          host->storage_offset() != device->storage_offset())
        device->set_sizes_and_strides(host->sizes(), host->strides(), host->storage_offset());
      if (pair.device.is_conj() != pair.host.is_conj()) pair.device._set_conj(pair.host.is_conj());
      if (pair.device.is_neg() != pair.host.is_neg()) pair.device._set_neg(pair.host.is_neg());
    }
  }

  // Return a result as the device's: an argument, a view of one, or new.
  at::Tensor to_device(const at::Tensor& host) {
    if (!host.defined() || host.device().type() != c10::kCPU) return host;
    for (auto& pair : pairs_)
      if (pair.host.is_same(host)) return pair.device;
    TORCH_CHECK_NOT_IMPLEMENTED(host.layout() == c10::kStrided, "simchip has dense tensors only, not ", host.layout());
    for (auto& pair : pairs_)
      if (pair.lent.is_alias_of(host.storage())) return tensor(host, pair.device.storage());
    // Two of the results may share memory, or the host's operator may keep it: then it can't be taken over. Zeros that
    // torch makes without memory are given some.
    bool own = host.storage().use_count() == 1 && host.storage().resizable();
    auto kept = host._is_zerotensor() ? at::zeros(host.sizes(), host.options()) : own ? host : host.clone();
    auto bytes = kept.storage().nbytes();
    c10::Storage storage(c10::Storage::use_byte_size_t(), bytes, adopt(kept.storage(), place()), &allocator, true);
    return tensor(kept, std::move(storage));
  }

  bool lazy = false;  // whether an argument is to be conjugated or negated when it's read

 private:
  struct Pair {
    at::Tensor device, host;
    c10::Storage lent;  // the host's storage as it was lent: an operator may put another into `host`
  };
  std::vector<Pair> pairs_;
  int index_ = -1;
  std::optional<c10::Device> foreign_;

  std::optional<c10::Storage> shared(const c10::Storage& storage) {
    for (auto& pair : pairs_)
      if (pair.device.storage().is_alias_of(storage)) return pair.lent;
    return std::nullopt;
  }

  static at::Tensor tensor(const at::Tensor& host, c10::Storage storage) {
    auto made = at::detail::make_tensor<c10::TensorImpl>(
        std::move(storage), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), host.dtype());
    auto* impl = made.unsafeGetTensorImpl();
    impl->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
    made._set_conj(host.is_conj());
    made._set_neg(host.is_neg());
    return made;
  }
};

// The left operand's place among the arguments of a matrix product.
inline const std::unordered_map<std::string, int> products = {
    {"aten::mm", 0}, {"aten::bmm", 0}, {"aten::addmm", 1}, {"aten::baddbmm", 1}, {"aten::_addmm_activation", 1}};

// Operators whose result's size depends on values: the host waits for them.
inline const std::unordered_set<std::string> waiting = {
    "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive",
    "aten::equal",   "aten::bincount",      "aten::histc"};

// Count an operator that is about to be launched, unless its device is lost.
inline int64_t launch(int index) {
  require(index);
  ++devices[index].counters->operators;
  require(index);
  return now();
}

inline double model(const std::string& name, const Stack& stack, size_t first) {
  if (settings.flops > 0)
    if (auto found = products.find(name); found != products.end()) {
      const auto &left = stack[first + found->second].toTensor(), &right = stack[first + found->second + 1].toTensor();
      return settings.delay + 2.0 * left.numel() * right.size(-1) / settings.flops;
    }
  return settings.delay;
}

inline void spoil(const std::string& name, int index, Stack& stack, size_t first) {
  for (const auto& fault : settings.faults) {
    if (fault.kind != "wrong" || name != "aten::" + fault.op || !applies(fault, index)) continue;
    for (size_t place = first; place < stack.size(); ++place)
      if (stack[place].isTensor() && stack[place].toTensor().is_floating_point())
        stack[place].toTensor().mul_(fault.factor);
  }
}

inline bool is_tensors(const c10::IValue& value) {
  return value.isList() && value.toListRef().size() > 0 &&
         std::any_of(value.toListRef().begin(), value.toListRef().end(), [](const auto& one) { return one.isTensor(); });
}

inline bool takes_generator(const c10::Argument& argument) {
  auto optional = argument.type()->cast<c10::OptionalType>();
  return optional && optional->getElementType()->kind() == c10::TypeKind::GeneratorType;
}

inline void fallback(const c10::OperatorHandle& op, Stack* stack) {
  at::AutoDispatchBelowADInplaceOrView below;
  const auto& schema = op.schema();
  const auto first = stack->size() - schema.arguments().size();
  Call call;
  for (size_t place = 0; place < schema.arguments().size(); ++place) {
    auto& value = (*stack)[first + place];
    if (value.isTensor()) {
      value = call.to_host(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& one : value.toTensorList()) list.push_back(call.to_host(one));
      value = std::move(list);
    } else if (is_tensors(value)) {  // of optional tensors: indices, which may be the host's
      c10::List<std::optional<at::Tensor>> list;
      for (const auto& one : value.toListRef())
        list.push_back(one.isTensor() ? std::optional(call.to_host(one.toTensor(), true)) : std::nullopt);
      value = std::move(list);
    } else if (value.isDevice() && value.toDevice().type() == kType) {
      call.use(value.toDevice().has_index() ? value.toDevice().index() : current_device);
      value = c10::Device(c10::kCPU);
    }
  }
  const int index = call.place();
  for (size_t place = 0; place < schema.arguments().size(); ++place) {
    auto& value = (*stack)[first + place];
    if (!value.isGenerator() && !(value.isNone() && takes_generator(schema.arguments()[place]))) continue;
    const auto& given = value.isGenerator() ? value.toGenerator() : hooks.getDefaultGenerator(index);
    value = static_cast<Generator*>(given.unsafeGetGeneratorImpl())->next();
  }
  const auto launched = launch(index);
  const auto seconds = model(schema.name(), *stack, first);
  if (call.lazy)
    op.callBoxed(stack);
  else
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  spoil(schema.name(), index, *stack, first);
  call.write_back();
  for (size_t place = first; place < stack->size(); ++place) {
    auto& value = (*stack)[place];
    if (value.isTensor()) {
      value = call.to_device(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& one : value.toTensorList()) list.push_back(call.to_device(one));
      value = std::move(list);
    }
  }
  bill(index, launched, seconds);
  if (waiting.count(schema.name())) wait_for(stream_of(index));
}

inline at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
                        std::optional<at::Device> device, std::optional<bool>,
                        std::optional<at::MemoryFormat> memory_format) {
  TORCH_CHECK_NOT_IMPLEMENTED(c10::layout_or_default(layout) == c10::kStrided, "simchip has dense tensors only");
  c10::DeviceGuard guard(c10::device_or_default(device));
  return at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), memory_format);
}

inline at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                                std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  c10::DeviceGuard guard(c10::device_or_default(device));
  return at::detail::empty_strided_generic(size, stride, &allocator,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

inline at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  const bool reads = from.device().type() == kType, writes = to.device().type() == kType;
  const auto index = (writes ? to : from).device().index();
  const auto launched = launch(index);
  at::AutoDispatchBelowADInplaceOrView below;
  auto source = reads ? host_tensor(from) : from, target = writes ? host_tensor(to) : to;
  target.copy_(source);
  bill(index, launched, settings.delay + (settings.bytes > 0 ? static_cast<double>(to.nbytes()) / settings.bytes : 0));
  const auto& host = reads ? to : from;
  const bool staged = !(reads && writes) && !PinnedAllocator::holds(host.const_data_ptr());
  if (!(reads && writes) && (!non_blocking || staged)) wait_for(stream_of(index));
  return to;
}

inline const at::Tensor& resize_(const at::Tensor& self, c10::IntArrayRef size,
                                 std::optional<at::MemoryFormat> memory_format) {
  auto* impl = self.unsafeGetTensorImpl();
  auto bytes = at::detail::computeStorageNbytesContiguous(size, self.itemsize(), self.storage_offset());
  if (bytes > self.storage().nbytes()) resize_storage(self.storage(), bytes);
  impl->set_sizes_contiguous(size);
  if (memory_format && *memory_format != at::MemoryFormat::Preserve) impl->empty_tensor_restride(*memory_format);
  return self;
}

inline at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  resize_(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

inline at::Scalar local_scalar_dense(const at::Tensor& self) {
  launch(self.device().index());
  wait_for(stream_of(self.device().index()));
  at::AutoDispatchBelowADInplaceOrView below;
  return at::_local_scalar_dense(host_tensor(self).resolve_conj().resolve_neg());
}

inline at::Tensor& set_storage(at::Tensor& self, at::Storage source, int64_t offset, c10::IntArrayRef size,
                               c10::IntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  if (stride.data() == nullptr || stride.size() != size.size()) {
    impl->set_storage_offset(offset);
    impl->set_sizes_contiguous(size);
  } else {
    impl->set_sizes_and_strides(size, stride, offset);
  }
  auto needed = at::detail::computeStorageNbytes(self.sizes(), self.strides(), self.itemsize(), offset);
  if (needed > self.storage().nbytes()) resize_storage(self.storage(), needed);
  return self;
}
inline at::Tensor& set_whole_storage(at::Tensor& self, at::Storage source) {
  int64_t count = static_cast<int64_t>(source.nbytes() / self.itemsize());
  return set_storage(self, std::move(source), 0, {count}, {});
}
inline at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  return set_storage(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}
inline at::Tensor& set_nothing(at::Tensor& self) {
  auto index = self.device().index();
  return set_storage(self, c10::Storage(c10::Storage::use_byte_size_t(), 0, allocator.on(index, 0), &allocator, true),
                     0, {0}, {});
}

inline void record_stream(at::Tensor&, at::Stream) {}  // work is done when its call returns

inline at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                              c10::IntArrayRef stride, c10::IntArrayRef padding, c10::IntArrayRef dilation,
                              bool transposed, c10::IntArrayRef output_padding, int64_t groups) {
  Call call;
  auto x = call.to_host(input), w = call.to_host(weight), b = bias ? call.to_host(*bias) : at::Tensor();
  const auto launched = launch(call.place());
  at::AutoDispatchBelowADInplaceOrView below;
  auto result = call.to_device(
      at::convolution(x, w, b, stride, padding, dilation, transposed, output_padding, groups));
  bill(call.place(), launched, settings.delay);
  return result;
}

inline std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& weight, c10::IntArrayRef stride,
    c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed, c10::IntArrayRef output_padding,
    int64_t groups, std::array<bool, 3> wanted) {
  Call call;
  auto g = call.to_host(gradient), x = call.to_host(input), w = call.to_host(weight);
  const auto launched = launch(call.place());
  at::AutoDispatchBelowADInplaceOrView below;
  // Whether there is a bias isn't told, only whether its gradient is wanted; its size is that of the channels.
  auto channels = gradient.size(1);
  auto [dx, dw, db] = at::convolution_backward(g, x, w, c10::IntArrayRef(channels), stride, padding, dilation,
                                               transposed, output_padding, groups, wanted);
  bill(call.place(), launched, settings.delay);
  return {call.to_device(dx), call.to_device(dw), call.to_device(db)};
}

inline std::tuple<at::Tensor, at::Tensor> native_dropout(const at::Tensor& input, double p, std::optional<bool> train) {
  auto mask = at::empty_like(input, input.options().dtype(at::kBool));
  if (train.has_value() && !*train) return {input.clone(), mask.fill_(true)};
  mask.bernoulli_(1 - p);
  return {p < 1 ? input * mask / (1 - p) : at::zeros_like(input), mask};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  m.impl("_copy_from", TORCH_FN(copy_from));
  m.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  m.impl("_local_scalar_dense", TORCH_FN(local_scalar_dense));
  m.impl("resize_", TORCH_FN(resize_));
  m.impl("set_.source_Storage", TORCH_FN(set_whole_storage));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(set_storage));
  m.impl("set_.source_Tensor", TORCH_FN(set_tensor));
  m.impl("set_", TORCH_FN(set_nothing));
  m.impl("record_stream", TORCH_FN(record_stream));
  m.impl("convolution_overrideable", TORCH_FN(convolution));
  m.impl("convolution_backward_overrideable", TORCH_FN(convolution_backward));
  m.impl("native_dropout", TORCH_FN(native_dropout));
}

// Copies read the two bits themselves; torch would else resolve them by another copy, for ever.
TORCH_LIBRARY_IMPL(aten, Conjugate, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, Negative, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define WIDE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define WIDE_RESULT(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
#define PROMOTE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
  AT_FORALL_FP32(WIDE)
  AT_FORALL_FP32_SET_OPT_DTYPE(WIDE_RESULT)
  AT_FORALL_PROMOTE(PROMOTE)
#undef LOWER
#undef WIDE
#undef WIDE_RESULT
#undef PROMOTE
}

}  // namespace simchip
