"""A network of your own as the baseline: read it from JSON, count it, scale it, run it.

    python examples/own_baseline.py

The file is accepted wherever a name is: `phiscale summary examples/own_baseline.json`.
"""

from pathlib import Path

import torch

import phiscale as ps

baseline = ps.get_spec(Path(__file__).with_name("own_baseline.json"))
cost = ps.complexity(baseline)
print(f"{baseline.name}: {cost.macs / 1e6:.1f}M multiply-adds, {cost.params / 1e3:.0f}K parameters")
for stage in cost.stages:
    print(f"  {stage.operator:<24} {stage.input_size[0]:>4} px {stage.out_channels:>5} channels")

fit = ps.solve_budget(baseline, ps.Budget(macs=200e6, params=2e6))
print(
    f"largest within 200M multiply-adds and 2M parameters: φ = {fit.phi:g}, {fit.spec.image_size[0]} px, "
    f"{fit.complexity.macs / 1e6:.1f}M multiply-adds, {fit.complexity.params / 1e6:.2f}M parameters; "
    f"{' and '.join(fit.binding)} binds"
)

net = ps.create_model(fit.spec).eval()
with torch.inference_mode():
    logits = net(torch.rand(2, 3, *fit.spec.image_size))
print(f"logits of two images: {tuple(logits.shape)}")
