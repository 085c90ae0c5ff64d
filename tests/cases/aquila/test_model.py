"""The model against other people's arithmetic: transformers, complex numbers, finite differences, float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from flagperf.cases.aquila import kernels
from flagperf.cases.aquila.config import AquilaConfig
from flagperf.cases.aquila.model import Aquila
from flagperf.cases.aquila.weights import fill

SHAPE: dict[str, Any] = {"dim": 96, "layers": 2, "heads": 6, "vocab_size": 320, "seq_len": 48, "multiple_of": 32}
PLAIN = AquilaConfig(**SHAPE, init_std=0.1)
GROUPED = AquilaConfig(**SHAPE, init_std=0.1, kv_heads=2, rotary="half")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def model_of(config: AquilaConfig, *, recompute: bool = False) -> Aquila:
    model = Aquila(config, recompute=recompute)
    fill(model, config, 0)
    # Norms away from one, so that a forgotten weight shows.
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def batch_of(config: AquilaConfig, size: int = 3) -> tuple[Tensor, Tensor]:
    window = torch.randint(config.vocab_size, (size, config.seq_len + 1))
    return window[:, :-1].contiguous(), window[:, 1:].contiguous()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def loss_and_gradients(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(*batch)
    loss.backward()
    return loss.detach(), gradients(model)


@pytest.fixture
def plain_kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Switch to the plain twins of the kernels, which is what torch.compile gets."""

    def switch() -> None:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        monkeypatch.setattr("flagperf.cases.aquila.model.linear_cross_entropy", kernels.linear_cross_entropy_plain)

    return switch


@pytest.mark.parametrize("rotary", ["half", "interleaved"])
@pytest.mark.parametrize("kv_heads", [6, 2])
def test_loss_and_gradients_equal_those_of_transformers(kv_heads: int, rotary: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers isn't installed: pip install transformers")
    config = AquilaConfig(**SHAPE, init_std=0.1, kv_heads=kv_heads, rotary=rotary)  # type: ignore[arg-type]
    model, batch = model_of(config), batch_of(config)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            intermediate_size=config.ffn,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            rms_norm_eps=config.norm_eps,
            max_position_embeddings=config.seq_len,
            tie_word_embeddings=False,
            attn_implementation="sdpa",
        )
    )
    # Llama turns halves. Interleaved pairs are the same with the rows of each head's q and k in another order.
    order = torch.arange(config.head_dim)
    if rotary == "interleaved":
        order = torch.cat((order[0::2], order[1::2]))

    def split(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        names = {"model.embed_tokens": "embed", "model.norm": "norm", "lm_head": "output"}
        result = {f"{theirs}.weight": weights[f"{ours}.weight"] for theirs, ours in names.items()}
        for i in range(config.layers):
            ours, theirs = f"blocks.{i}.", f"model.layers.{i}."
            q, k, v = (
                weights[ours + "attention.qkv.weight"]
                .view(-1, config.head_dim, config.dim)
                .split_with_sizes([config.heads, config.kv_heads, config.kv_heads])
            )
            gate, up = weights[ours + "ffn.gate_up.weight"].chunk(2)
            result |= {
                theirs + "self_attn.q_proj.weight": q[:, order].flatten(0, 1),
                theirs + "self_attn.k_proj.weight": k[:, order].flatten(0, 1),
                theirs + "self_attn.v_proj.weight": v.flatten(0, 1),
                theirs + "self_attn.o_proj.weight": weights[ours + "attention.out.weight"],
                theirs + "mlp.gate_proj.weight": gate,
                theirs + "mlp.up_proj.weight": up,
                theirs + "mlp.down_proj.weight": weights[ours + "ffn.down.weight"],
                theirs + "input_layernorm.weight": weights[ours + "attention_norm.weight"],
                theirs + "post_attention_layernorm.weight": weights[ours + "ffn_norm.weight"],
            }
        return result

    llama.load_state_dict(split(model.state_dict()))
    loss, ours = loss_and_gradients(model, batch)
    output = llama(input_ids=batch[0], labels=batch[0], shift_labels=batch[1])
    output.loss.backward()
    torch.testing.assert_close(loss, output.loss.detach(), rtol=1e-6, atol=0)
    theirs = gradients(llama)
    expected = split(ours)
    assert expected.keys() == theirs.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            gradient, theirs[name], rtol=1e-4, atol=1e-6 + 1e-5 * theirs[name].abs().max().item()
        )
    torch.testing.assert_close(model(batch[0]), llama(input_ids=batch[0]).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [PLAIN, GROUPED], ids=["plain", "grouped"])
def test_the_future_does_not_change_the_past(config: AquilaConfig) -> None:
    model, (tokens, _) = model_of(config), batch_of(config)
    changed = tokens.clone()
    changed[:, 20:] = (tokens[:, 20:] + 1) % config.vocab_size
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.isclose(before[:, 20:], after[:, 20:]).all(-1).any()


@pytest.mark.parametrize("narrow", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_is_multiplication_by_complex_numbers(interleaved: bool, narrow: bool) -> None:
    batch, seq, heads, kv_heads, size = 2, 10, 4, 2, 8
    table = kernels.RotaryTable(seq, size, 10000.0, interleaved, CPU)
    qkv = torch.randn(batch, seq, (heads + 2 * kv_heads) * size)
    if narrow:
        qkv = qkv.bfloat16()
    results = kernels.split_rotate(qkv, table, heads, kv_heads)
    parts = qkv.double().view(batch, seq, -1, size).split_with_sizes((heads, kv_heads, kv_heads), 2)
    for result, part in zip(results[:2], parts[:2], strict=True):
        for position in range(seq):
            for pair in range(size // 2):
                at = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + size // 2)
                number = torch.complex(part[:, position, :, at[0]], part[:, position, :, at[1]])
                number *= torch.exp(torch.tensor(1j * position * 10000.0 ** (-2 * pair / size)))
                expected = torch.stack((number.real, number.imag), -1)
                tolerance = 1e-2 if narrow else 1e-5
                found = result[:, :, position, list(at)].double()
                torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(results[2].transpose(1, 2), parts[2].to(qkv.dtype))


def test_gradients_of_the_kernels_are_those_of_finite_differences() -> None:
    def wide(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    check = torch.autograd.gradcheck
    assert check(lambda x, w: kernels.rms_norm(x, w, 1e-3, torch.float64), (wide(2, 3, 8), wide(8)))
    assert check(kernels.swiglu, (wide(2, 3, 4), wide(10, 4)))
    for interleaved in (False, True):
        table = kernels.RotaryTable(5, 4, 100.0, interleaved, CPU)
        assert check(lambda x, table=table: kernels.split_rotate(x, table, 2, 1), (wide(2, 5, 16),))
    labels = torch.tensor([0, 6, 3, 3, 1])
    assert check(lambda x, w: kernels.linear_cross_entropy(x, w, labels), (wide(5, 4), wide(7, 4)))


def test_loss_in_chunks_equals_the_loss_at_once() -> None:
    rows, dim, vocab = 600, 32, 500  # chunks of 256, 256 and 88
    assert kernels.loss_chunk(rows, dim, vocab) == 256
    x, weight = torch.randn(rows, dim, requires_grad=True), torch.randn(vocab, dim, requires_grad=True)
    labels = torch.randint(vocab, (rows,))
    found, expected = (
        torch.autograd.grad(3.0 * loss(x, weight, labels), (x, weight))
        for loss in (kernels.linear_cross_entropy, kernels.linear_cross_entropy_plain)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    with torch.no_grad():
        value = kernels.linear_cross_entropy(x, weight, labels)
    torch.testing.assert_close(value, kernels.linear_cross_entropy_plain(x, weight, labels).detach())


def test_bf16_loss_accumulates_the_weights_gradient_in_fp32() -> None:
    # Sixteen chunks: adding them up in bf16 would double the error, to 0.0046.
    x, weight = torch.randn(4096, 16).bfloat16(), torch.randn(512, 16, requires_grad=True)
    labels = torch.randint(512, (4096,))
    (found,) = torch.autograd.grad(kernels.linear_cross_entropy(x, weight, labels), weight)
    rounded = weight.detach().bfloat16().double().requires_grad_()
    (exact,) = torch.autograd.grad(kernels.linear_cross_entropy_plain(x.double(), rounded, labels), rounded)
    assert found.dtype == torch.float32
    assert ((found.double() - exact).norm() / exact.norm()).item() < 0.0033


@pytest.mark.parametrize("config", [PLAIN, GROUPED], ids=["plain", "grouped"])
@pytest.mark.parametrize("narrow", [False, True], ids=["fp32", "bf16"])
def test_kernels_equal_their_plain_twins(config: AquilaConfig, narrow: bool, plain_kernels: Callable[[], None]) -> None:
    model, batch = model_of(config), batch_of(config)
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        loss, found = loss_and_gradients(model, batch)
    found = {name: gradient.clone() for name, gradient in found.items()}
    plain_kernels()
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        expected_loss, expected = loss_and_gradients(model, batch)
    assert loss.dtype == expected_loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected_loss, rtol=1e-3 if narrow else 1e-6, atol=0)
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        error = (found[name] - gradient).norm() / gradient.norm()
        assert error.item() < (2e-2 if narrow else 1e-5), name


@pytest.mark.parametrize("narrow", [False, True], ids=["fp32", "bf16"])
def test_recomputation_changes_nothing(narrow: bool) -> None:
    batch = batch_of(GROUPED)
    model = model_of(GROUPED)
    again = Aquila(GROUPED, recompute=True)
    again.load_state_dict(model.state_dict())
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        loss, expected = loss_and_gradients(model, batch)
        same_loss, found = loss_and_gradients(again, batch)
    assert torch.equal(loss, same_loss)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_meta_device_loses_nothing() -> None:
    with torch.device("meta"):
        model = Aquila(GROUPED)
        tokens = torch.zeros(1, 8, dtype=torch.long)
        assert model(tokens, tokens).is_meta
    assert set(model.state_dict()) == dict(model.named_parameters()).keys()
    model.to_empty(device="cpu")
    fill(model, GROUPED, 0)
    plain = Aquila(GROUPED)
    fill(plain, GROUPED, 0)
    batch = batch_of(GROUPED)
    assert torch.equal(model(*batch), plain(*batch))
    assert torch.equal(copy.deepcopy(model)(*batch), plain(*batch))


def test_training_goes_on_after_inference_mode(plain_kernels: Callable[[], None]) -> None:
    plain_kernels()  # the twins' autograd saves the angles; the kernels keep them by themselves
    model, batch = model_of(GROUPED), batch_of(GROUPED)
    with torch.inference_mode():
        inferred = model(*batch)
    loss = model(*batch)
    loss.backward()
    assert torch.equal(inferred, loss.detach())


def test_shorter_sequences_use_the_first_positions() -> None:
    model, (tokens, _) = model_of(PLAIN), batch_of(PLAIN)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[:, :16], model(tokens[:, :16]), rtol=1e-4, atol=1e-5)


def test_blocks_compile_without_a_graph_break() -> None:
    model, batch = model_of(GROUPED), batch_of(GROUPED)
    loss, expected = loss_and_gradients(model, batch)
    expected = {name: gradient.clone() for name, gradient in expected.items()}
    for block in model.blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    compiled_loss, found = loss_and_gradients(model, batch)
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-6, atol=0)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def test_it_learns() -> None:
    model, batch = model_of(PLAIN), batch_of(PLAIN)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    losses = []
    for _ in range(15):
        losses.append(loss_and_gradients(model, batch)[0].item())
        optimizer.step()
    assert losses[-1] < losses[0] / 2


@pytest.fixture
def one_rank() -> Iterator[None]:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("recompute", [False, True])
def test_fsdp_with_bf16_stays_near_fp32(recompute: bool) -> None:
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    batch = batch_of(GROUPED)
    model = model_of(GROUPED)
    loss, expected = loss_and_gradients(model, batch)
    sharded = Aquila(GROUPED, recompute=recompute)
    sharded.load_state_dict(model.state_dict())
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in sharded.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(sharded, mesh=mesh, mp_policy=policy)
    narrow_loss, found = loss_and_gradients(sharded, batch)
    assert narrow_loss.dtype == torch.float32
    torch.testing.assert_close(narrow_loss, loss, rtol=5e-3, atol=0)
    for name, gradient in expected.items():
        full = found[name].full_tensor()  # type: ignore[attr-defined]
        assert full.dtype == torch.float32
        assert ((full - gradient).norm() / gradient.norm()).item() < 0.05, name
    # The angles must not have been narrowed on their way into the blocks.
    assert sharded.rotary_table(GROUPED.seq_len, CPU).cos.dtype == torch.float32


@pytest.mark.usefixtures("one_rank")
def test_ddp_gives_the_same_gradients() -> None:
    model, batch = model_of(PLAIN), batch_of(PLAIN)
    loss, expected = loss_and_gradients(model, batch)
    expected = {name: gradient.clone() for name, gradient in expected.items()}
    parallel = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    same_loss, found = loss_and_gradients(parallel, batch)
    assert torch.equal(loss, same_loss)
    assert all(torch.equal(found["module." + name], gradient) for name, gradient in expected.items())
