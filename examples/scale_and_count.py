"""Table 7 of the paper, counted: B0 scaled along one dimension, and along all three.

    python examples/scale_and_count.py

The paper calls these four networks equal at about 1.8 billion FLOPs. Counted with the official
rounding they are not, so the second table gives every direction the same budget. Takes a few seconds,
needs no data and loads no torch.
"""

import phiscale as ps
from phiscale.scaling.compound import RULES

b0 = ps.get_spec("efficientnet_b0")

table_7 = {
    "baseline": ps.Scaling(),
    "depth": ps.Scaling(depth=4),
    "width": ps.Scaling(width=2),
    "resolution": ps.Scaling(resolution=2),
    "compound": ps.Scaling(depth=1.4, width=1.2, resolution=1.3),
}
print(f"{'the factors of the paper':<26} {'image':>6} {'layers':>7} {'multiply-adds':>14} {'parameters':>11}")
for label, factors in table_7.items():
    spec = ps.scale(b0, depth=factors.depth, width=factors.width, resolution=factors.resolution)
    cost = ps.complexity(spec)
    print(
        f"{label:<26} {spec.image_size[0]:>6} {spec.num_blocks:>7} {cost.macs / 1e9:>13.2f}G "
        f"{cost.params / 1e6:>10.1f}M"
    )

budget = ps.Budget(macs=1.8e9)
print(f"\n{'the same budget, 1.8G':<26} {'image':>6} {'layers':>7} {'multiply-adds':>14} {'used':>11}")
for label in ("depth", "width", "resolution", "dWr", "paper"):
    fit = ps.solve_budget(b0, budget, rule=RULES[label])
    print(
        f"{label:<26} {fit.spec.image_size[0]:>6} {fit.spec.num_blocks:>7} "
        f"{fit.complexity.macs / 1e9:>13.2f}G {fit.utilization['macs']:>11.1%}"
    )
