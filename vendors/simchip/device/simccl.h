// simccl: the collectives of gloo over aliases of the device's memory.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "operators.h"

namespace simchip {

using c10d::Work;
using Tensors = std::vector<at::Tensor>;
using Lists = std::vector<Tensors>;

// An operation under way. What is left to do once gloo is done (a division, the virtual clock) is done once.
class Pending final : public Work {
 public:
  Pending(c10::intrusive_ptr<Work> inner, Tensors outputs, int index, int64_t until, std::function<void()> finish)
      : inner_(std::move(inner)), outputs_(std::move(outputs)), index_(index), until_(until),
        finish_(std::move(finish)) {}

  bool isCompleted() override { return inner_->isCompleted(); }
  bool isSuccess() const override { return inner_->isSuccess(); }
  std::exception_ptr exception() const override { return inner_->exception(); }
  int sourceRank() const override { return inner_->sourceRank(); }
  Tensors result() override { return outputs_; }
  void abort() override { inner_->abort(); }
  void synchronize() override { wait(); }

  bool wait(std::chrono::milliseconds timeout = kNoTimeout) override {
    inner_->wait(timeout);
    finish();
    auto& busy_until = busy(stream_of(index_));  // what follows on the caller's stream comes after it
    busy_until = std::max<int64_t>(busy_until, until_);
    return true;
  }

  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override {
    auto future = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::ofTensors(),
                                                           std::vector{c10::Device(kType, index_)});
    auto self = c10::intrusive_ptr<Pending>::reclaim_copy(this);
    inner_->getFuture()->addCallback([self, future](c10::ivalue::Future& done) {
      if (done.hasError()) return future->setError(done.exception_ptr());
      self->finish();
      future->markCompleted(c10::IValue(self->outputs_));
    });
    return future;
  }

 private:
  void finish() {
    std::call_once(once_, finish_);
  }

  c10::intrusive_ptr<Work> inner_;
  Tensors outputs_;
  int index_;
  int64_t until_;
  std::function<void()> finish_;
  std::once_flag once_;
};

inline Tensors on_host(const Tensors& tensors) {
  Tensors host;
  for (const auto& tensor : tensors) {
    TORCH_CHECK_VALUE(tensor.device().type() == kType, "simccl is for simchip's tensors, not for those of ",
                      tensor.device());
    host.push_back(host_tensor(tensor));
  }
  return host;
}

inline Lists on_host(const Lists& lists) {
  Lists host;
  for (const auto& list : lists) host.push_back(on_host(list));
  return host;
}

inline Tensors flat(const Lists& lists) {
  Tensors all;
  for (const auto& list : lists) all.insert(all.end(), list.begin(), list.end());
  return all;
}

class SimCCL final : public c10d::Backend {
 public:
  SimCCL(c10::intrusive_ptr<Backend> gloo, int rank, int size) : Backend(rank, size), gloo_(std::move(gloo)) {}

  const std::string getBackendName() const override { return "simccl"; }
  void setSequenceNumberForGroup() override { gloo_->setSequenceNumberForGroup(); }
  uint64_t getSequenceNumberForGroup() override { return gloo_->getSequenceNumberForGroup(); }
  void setTimeout(std::chrono::milliseconds timeout) override { gloo_->setTimeout(timeout); }

  c10::intrusive_ptr<Work> broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override {
    auto host = on_host(tensors);
    return pending(tensors, [&] { return gloo_->broadcast(host, options); });
  }
  c10::intrusive_ptr<Work> allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override {
    auto host = on_host(tensors);
    return pending(tensors, [&] { return gloo_->allreduce(host, summed(options)); }, divided(host, options));
  }
  c10::intrusive_ptr<Work> allreduce_coalesced(Tensors& tensors,
                                               const c10d::AllreduceCoalescedOptions& options) override {
    auto host = on_host(tensors);
    return pending(tensors, [&] { return gloo_->allreduce_coalesced(host, summed(options)); }, divided(host, options));
  }
  c10::intrusive_ptr<Work> reduce(Tensors& tensors, const c10d::ReduceOptions& options) override {
    auto host = on_host(tensors);
    auto finish = getRank() == options.rootRank ? divided(host, options) : std::function<void()>();
    return pending(tensors, [&] { return gloo_->reduce(host, summed(options)); }, finish);
  }
  c10::intrusive_ptr<Work> allgather(Lists& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) override {
    auto to = on_host(outputs);
    auto from = on_host(inputs);
    return pending(flat(outputs), [&] { return gloo_->allgather(to, from, options); });
  }
  c10::intrusive_ptr<Work> _allgather_base(at::Tensor& output, at::Tensor& input,
                                           const c10d::AllgatherOptions& options) override {
    auto to = on_host(Tensors{output}), from = on_host(Tensors{input});
    return pending({output}, [&] { return gloo_->_allgather_base(to[0], from[0], options); });
  }
  c10::intrusive_ptr<Work> allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                                           const c10d::AllgatherOptions& options) override {
    auto to = on_host(outputs), from = on_host(inputs);
    return pending(outputs, [&] { return gloo_->allgather_into_tensor_coalesced(to, from, options); });
  }
  c10::intrusive_ptr<Work> reduce_scatter(Tensors& outputs, Lists& inputs,
                                          const c10d::ReduceScatterOptions& options) override {
    auto to = on_host(outputs);
    auto from = on_host(inputs);
    return pending(outputs, [&] { return gloo_->reduce_scatter(to, from, summed(options)); }, divided(to, options));
  }
  c10::intrusive_ptr<Work> _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                                                const c10d::ReduceScatterOptions& options) override {
    auto to = on_host(Tensors{output}), from = on_host(Tensors{input});
    return pending({output}, [&] { return gloo_->_reduce_scatter_base(to[0], from[0], summed(options)); },
                   divided(to, options));
  }
  c10::intrusive_ptr<Work> reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                                           const c10d::ReduceScatterOptions& options) override {
    auto to = on_host(outputs), from = on_host(inputs);
    return pending(outputs, [&] { return gloo_->reduce_scatter_tensor_coalesced(to, from, summed(options)); },
                   divided(to, options));
  }
  c10::intrusive_ptr<Work> gather(Lists& outputs, Tensors& inputs, const c10d::GatherOptions& options) override {
    auto to = on_host(outputs);
    auto from = on_host(inputs);
    return pending(outputs.empty() ? inputs : flat(outputs), [&] { return gloo_->gather(to, from, options); });
  }
  c10::intrusive_ptr<Work> scatter(Tensors& outputs, Lists& inputs, const c10d::ScatterOptions& options) override {
    auto to = on_host(outputs);
    auto from = on_host(inputs);
    return pending(outputs, [&] { return gloo_->scatter(to, from, options); });
  }
  c10::intrusive_ptr<Work> alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<int64_t>& output_sizes,
                                         std::vector<int64_t>& input_sizes,
                                         const c10d::AllToAllOptions& options) override {
    auto to = on_host(Tensors{output}), from = on_host(Tensors{input});
    return pending({output},
                   [&] { return gloo_->alltoall_base(to[0], from[0], output_sizes, input_sizes, options); });
  }
  c10::intrusive_ptr<Work> alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& options) override {
    auto to = on_host(outputs), from = on_host(inputs);
    return pending(outputs, [&] { return gloo_->alltoall(to, from, options); });
  }
  c10::intrusive_ptr<Work> send(Tensors& tensors, int to, int tag) override {
    auto host = on_host(tensors);
    return pending(tensors, [&] { return gloo_->send(host, to, tag); });
  }
  c10::intrusive_ptr<Work> recv(Tensors& tensors, int from, int tag) override {
    auto host = on_host(tensors);
    return pending(tensors, [&] { return gloo_->recv(host, from, tag); });
  }
  c10::intrusive_ptr<Work> recvAnysource(Tensors& tensors, int tag) override {
    auto host = on_host(tensors);
    return pending(tensors, [&] { return gloo_->recvAnysource(host, tag); });
  }
  c10::intrusive_ptr<Work> barrier(const c10d::BarrierOptions& options) override {
    wait_for(stream_of(current_device));
    return gloo_->barrier(options);
  }

 private:
  c10::intrusive_ptr<Backend> gloo_;

  // gloo has no mean: it adds up, and the sum is divided when it's there.
  template <typename Options>
  static Options summed(Options options) {
    if (options.reduceOp == c10d::ReduceOp::AVG) options.reduceOp = c10d::ReduceOp::SUM;
    return options;
  }
  template <typename Options>
  std::function<void()> divided(Tensors host, const Options& options) const {
    if (options.reduceOp != c10d::ReduceOp::AVG) return {};
    return [host = std::move(host), size = getSize()] {
      at::AutoDispatchBelowADInplaceOrView below;
      for (const auto& tensor : host)
        tensor.is_floating_point() || tensor.is_complex() ? tensor.div_(size) : tensor.div_(size, "trunc");
    };
  }

  template <typename Start>
  c10::intrusive_ptr<Work> pending(Tensors outputs, Start start, std::function<void()> finish = {}) {
    const int index = outputs.empty() ? current_device : outputs[0].device().index();
    const auto launched = launch(index);
    size_t bytes = 0;
    for (const auto& tensor : outputs) bytes += tensor.nbytes();
    const auto until = std::max<int64_t>(launched, busy(stream_of(index))) +
                       static_cast<int64_t>(settings.link > 0 ? 1e9 * bytes / settings.link : 0);
    auto work = start();
    return c10::make_intrusive<Pending>(std::move(work), std::move(outputs), index, until,
                                        finish ? std::move(finish) : [] {});
  }
};

}  // namespace simchip
