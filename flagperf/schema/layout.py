"""How ranks share the work."""

from __future__ import annotations

import msgspec

from flagperf.errors import UnknownName, UsageError

_TRUE, _FALSE = {"1", "true", "on", "yes"}, {"0", "false", "off", "no"}


class Layout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How ranks share the work. `None` leaves the choice to the engine or the preset."""

    tp: int = 1
    """Tensor-parallel ranks."""
    pp: int = 1
    """Pipeline stages."""
    sp: bool = False
    """Sequence parallel: what tensor parallelism leaves whole is split along the sequence."""
    zero: int | None = None
    """ZeRO stage: 0 nothing sharded, 1 optimizer state, 2 gradients too, 3 weights too."""
    micro: int | None = None
    """Sequences a micro-batch on one data-parallel rank; the rest of the global batch is accumulated."""
    recompute: bool = False
    """Activations of each block are recomputed in the backward pass."""
    offload: bool = False
    """Optimizer state lives on the host."""
    overlap: bool = True
    """Communication runs beside computation where the engine can."""
    compile: bool = False
    """The model goes through torch.compile."""

    def __str__(self) -> str:
        parts = []
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if value != _DEFAULT[name]:
                parts.append(f"{name}={int(value)}")
        return ",".join(parts)

    @property
    def model_parallel(self) -> int:
        """Ranks that hold one copy of the model together."""
        return self.tp * self.pp

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Read `zero=2,tp=1,micro=4`; a key without a value means `=1`."""
        values: dict[str, int | bool] = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            key, _, raw = item.partition("=")
            key, raw = key.strip(), raw.strip() or "1"
            if key not in cls.__struct_fields__:
                raise UnknownName("layout key", key, cls.__struct_fields__)
            if key in values:
                raise UsageError(f"Layout key {key!r} is given twice in {text!r}.")
            values[key] = _value(key, raw)
        return cls(**values)  # type: ignore[arg-type]


_DEFAULT = {name: getattr(Layout(), name) for name in Layout.__struct_fields__}
_LEAST = {"tp": 1, "pp": 1, "zero": 0, "micro": 1}


def _value(key: str, raw: str) -> int | bool:
    if key not in _LEAST:
        if raw.lower() in _TRUE | _FALSE:
            return raw.lower() in _TRUE
        raise UsageError(f"Layout key {key!r} is on or off, not {raw!r}.", "Write 1 or 0, on or off.")
    try:
        number = int(raw)
    except ValueError:
        raise UsageError(f"Layout key {key!r} takes a whole number, not {raw!r}.") from None
    if number < _LEAST[key] or (key == "zero" and number > 3):
        allowed = "0, 1, 2 or 3" if key == "zero" else f"at least {_LEAST[key]}"
        raise UsageError(f"Layout key {key!r} is {number}; it must be {allowed}.")
    return number
