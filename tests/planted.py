"""A kernel case in a folder of its own, whose providers are wrong in ways that a careless harness takes for fast."""

from __future__ import annotations

from pathlib import Path

MANIFEST = """
name = "planted/double"
kind = "kernel"
title = "Twice"
title_zh = "两倍"
summary = "Twice a vector, right and wrong"
entry = ".double:Double"
dtypes = ["fp32"]
metrics = ["kernel_time", "bandwidth"]

[protocol]
warmup = 2
steps = 3
seconds = 0.0
trials = 1
seed = 1

[settings]

[presets.tiny]
summary = "A thousand numbers"
settings.sweep = { dtype = ["fp32"], n = [1000] }
"""

CASE = '''
"""Twice a vector."""

from flagperf.kernel import KernelCase, Unsupported, Work


class Double(KernelCase):
    def inputs(self, dims, make):
        return (make.normal(dims["n"]),)

    def reference(self, x):
        return x * 2

    def work(self, dims):
        return Work(flops=float(dims["n"]), bytes=8.0 * dims["n"])

    def memory(self, dims, provider):
        return 1e18 if provider == "huge" else 0.0


class Slope(Double):
    backward = True


kept, by_address, calls = [], {}, [0]


def right(x):
    return x * 2


def unwritten(x):
    return x.new_empty(x.shape)


def half(x):
    out = x.new_empty(x.shape)
    out[: len(x) // 2] = x[: len(x) // 2] * 2
    return out


def stale(x):
    if not kept:
        kept.append(x * 2)
    return kept[0]


def remembered(x):
    if x.data_ptr() not in by_address:
        by_address[x.data_ptr()] = x * 2
    return by_address[x.data_ptr()]


def near(x):
    return x * 2.001


def zeros(x):
    return x * 0


def raising(x):
    raise RuntimeError("no such luck")


def out_of_memory(x):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4611686018427387904 bytes")


def picky(x):
    raise Unsupported("it takes fp16 only")


def late(x):
    calls[0] += 1
    if calls[0] > 5:
        raise RuntimeError("out of luck after five calls")
    return x * 2


def misshapen(x):
    return x[:-1] * 2


def huge(x):
    raise AssertionError("it was tried")
'''

WRONG = ("unwritten", "half", "stale", "remembered", "near", "zeros")
OTHERS = {
    "raising": "failed",
    "late": "failed",
    "misshapen": "failed",
    "out_of_memory": "too big",
    "huge": "too big",
    "picky": "unsupported",
}
PROVIDERS = ("right", *WRONG, *OTHERS)


def plant(folder: Path, providers: tuple[str, ...] = PROVIDERS) -> Path:
    """Write the case into `folder`/cases/planted and return its manifest."""
    place = folder / "cases" / "planted"
    place.mkdir(parents=True)
    told = "".join(f'\n[providers.{name}]\ntitle = "{name}"\nentry = ".double:{name}"\n' for name in providers)
    (place / "__init__.py").write_text("")
    (place / "double.py").write_text(CASE)
    manifest = place / "double.toml"
    manifest.write_text(MANIFEST + told)
    (place / "slope.toml").write_text(
        'name = "planted/slope"\nlike = "double.toml"\nkind = "kernel"\ntitle = "Slope"\ntitle_zh = "斜率"\n'
        'summary = "The gradient of it"\nentry = ".double:Slope"\n'
    )
    return manifest
