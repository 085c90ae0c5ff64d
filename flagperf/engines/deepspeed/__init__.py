"""Engine `deepspeed`: the real DeepSpeed, ZeRO 0 to 3, over any device type that it has an accelerator for.

| module | what an engine on DeepSpeed uses of it |
| --- | --- |
| `shims` | `prepare(device)`: the process, before torch.distributed is up; no compiler is needed |
| `config` | `config(…)`: DeepSpeed's configuration from layout, type, optimizer and batch |
| `engine` | `DeepSpeed`: the engine; `unit`, `construct`, `initial`, `loss`, `weights`, `mpu` are there to override |
"""
