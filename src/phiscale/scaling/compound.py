"""Compound scaling: d = α^φ, w = β^φ, r = γ^φ with α·β²·γ² ≈ 2 (Tan & Le 2019, equation 3)."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from phiscale.errors import SpecError
from phiscale.scaling.rounding import round_channels, round_repeats
from phiscale.spec import NetworkSpec, StageSpec

__all__ = ["RULES", "CompoundRule", "Scaling", "compound_scale", "get_rule", "scale"]


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Three factors on a baseline: layers × depth, channels × width, image side × resolution."""

    depth: float = 1.0
    width: float = 1.0
    resolution: float = 1.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise SpecError(f"{name} must be a number, got {value!r}")
            if not (value > 0 and math.isfinite(value)):
                raise SpecError(f"{name} must be a positive finite factor, got {value!r}")

    @property
    def macs_growth(self) -> float:
        """What multiply-adds grow by before rounding: d · w² · r²."""
        return self.depth * self.width**2 * self.resolution**2


@dataclass(frozen=True, kw_only=True)
class CompoundRule:
    """A direction to grow in: the factors of depth, width and resolution for φ = 1.

    Attributes:
        alpha: Depth factor, at least 1.
        beta: Width factor, at least 1.
        gamma: Resolution factor, at least 1.

    Raises:
        SpecError: A factor is below 1, or all three are 1, so that nothing would grow.

    Examples:
        >>> rule = CompoundRule(alpha=1.2, beta=1.1, gamma=1.15)
        >>> round(rule.growth, 3), rule.at(2.0).depth
        (1.92, 1.44)
    """

    alpha: float
    beta: float
    gamma: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise SpecError(f"{name} must be a number, got {value!r}")
            if not (value >= 1.0 and math.isfinite(value)):
                raise SpecError(f"{name} must be at least 1, got {value!r}; shrink with a negative phi")
        if self.alpha == self.beta == self.gamma == 1.0:
            raise SpecError("alpha, beta and gamma are all 1: nothing would grow; raise one of them")

    @property
    def growth(self) -> float:
        """α·β²·γ², the factor on multiply-adds for each step of φ by one."""
        return self.alpha * self.beta**2 * self.gamma**2

    def at(self, phi: float) -> Scaling:
        """The factors α^φ, β^φ, γ^φ.

        Raises:
            SpecError: `phi` is not finite, or so large that a factor overflows.
        """
        try:
            return Scaling(depth=self.alpha**phi, width=self.beta**phi, resolution=self.gamma**phi)
        except OverflowError:
            raise SpecError(f"phi={phi!r} is too large for this rule") from None

    def without_resolution(self) -> CompoundRule:
        """The same proportion of depth to width at a fixed image size, and the same growth.

        Raises:
            SpecError: The rule grows resolution alone.
        """
        rest = self.alpha * self.beta**2
        if rest == 1.0:
            raise SpecError("this rule grows resolution only, so it cannot keep the image size")
        k = math.log(self.growth) / math.log(rest)
        return CompoundRule(alpha=self.alpha**k, beta=self.beta**k, gamma=1.0)


# Dollár et al. 2021 write exponents that sum to one over d, w² and r² for a growth s; here s = 2.
RULES = {
    "paper": CompoundRule(alpha=1.2, beta=1.1, gamma=1.15),
    "uniform": CompoundRule(alpha=2 ** (1 / 3), beta=2 ** (1 / 6), gamma=2 ** (1 / 6)),
    "dWr": CompoundRule(alpha=2**0.1, beta=2**0.4, gamma=2**0.05),
    "depth": CompoundRule(alpha=2.0, beta=1.0, gamma=1.0),
    "width": CompoundRule(alpha=1.0, beta=2**0.5, gamma=1.0),
    "resolution": CompoundRule(alpha=1.0, beta=1.0, gamma=2**0.5),
}


def get_rule(name: str | Path | CompoundRule) -> CompoundRule:
    """A rule by name, by ``"alpha,beta,gamma"``, or from a JSON file with these three keys.

    Raises:
        SpecError: No such rule.

    Examples:
        >>> get_rule("1.2,1.1,1.15") == get_rule("paper")
        True
    """
    if isinstance(name, CompoundRule):
        return name
    text = str(name)
    if text in RULES:
        return RULES[text]
    if text.endswith(".json"):
        return _read_rule(Path(text))
    try:
        alpha, beta, gamma = (float(part) for part in text.split(","))
    except ValueError:
        raise SpecError(
            f"rule {text!r} is none of {', '.join(RULES)}; or give alpha,beta,gamma or a .json file"
        ) from None
    return CompoundRule(alpha=alpha, beta=beta, gamma=gamma)


def _read_rule(path: Path) -> CompoundRule:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return CompoundRule(**{key: data[key] for key in ("alpha", "beta", "gamma")})
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SpecError(
            f"{path} is no rule ({error!r}); it must be a JSON object with alpha, beta and gamma"
        ) from None


def scale(
    spec: NetworkSpec, *, depth: float = 1.0, width: float = 1.0, resolution: float = 1.0
) -> NetworkSpec:
    """Scale a baseline by three factors, with the authors' rounding.

    Layers become ceil(d · L), channels the nearest multiple of 8 (`round_channels`), the image side
    the nearest integer. Operators, strides and regularisation stay as they are.

    Args:
        spec: The baseline; it is not changed.
        depth: Factor d on the layers of each stage.
        width: Factor w on all channels.
        resolution: Factor r on height and width of the image.

    Raises:
        SpecError: A factor is not a positive finite number, or the image would vanish.

    Examples:
        >>> from phiscale import get_spec
        >>> bigger = scale(get_spec("efficientnet_b0"), depth=1.4, width=1.2, resolution=1.3)
        >>> bigger.image_size, bigger.num_blocks, bigger.num_features
        ((291, 291), 26, 1536)
    """
    factors = Scaling(depth=depth, width=width, resolution=resolution)
    sides = [side * factors.resolution for side in spec.image_size]
    if not all(math.isfinite(side) for side in sides):
        raise SpecError(f"resolution {resolution:g} is too large for {spec.image_size}")
    height, width_px = (round(side) for side in sides)
    if min(height, width_px) < 1:
        raise SpecError(f"resolution {resolution:g} leaves no pixel of {spec.image_size}")
    stem, head = spec.stem, spec.head
    if stem.scale_width:
        stem = replace(stem, out_channels=round_channels(stem.out_channels, width))
    if head is not None and head.scale_width:
        head = replace(head, out_channels=round_channels(head.out_channels, width))
    return replace(
        spec,
        name=f"{spec.name}_d{depth:.4g}_w{width:.4g}_r{resolution:.4g}",
        stem=stem,
        stages=tuple(_scale_stage(stage, factors) for stage in spec.stages),
        head=head,
        image_size=(height, width_px),
    )


def _scale_stage(stage: StageSpec, factors: Scaling) -> StageSpec:
    layers, channels = stage.num_layers, stage.out_channels
    if stage.scale_depth:
        layers = round_repeats(layers, factors.depth)
    if stage.scale_width:
        channels = round_channels(channels, factors.width)
    return replace(stage, num_layers=layers, out_channels=channels)


def compound_scale(spec: NetworkSpec, *, phi: float, rule: CompoundRule = RULES["paper"]) -> NetworkSpec:
    """Scale a baseline by the compound coefficient φ.

    Args:
        spec: The baseline; it is not changed.
        phi: Any real number: each step of one multiplies the multiply-adds by about `rule.growth`;
            negative values shrink.
        rule: α, β and γ.

    Raises:
        SpecError: `phi` is not finite or too large.

    Examples:
        >>> from phiscale import get_spec
        >>> compound_scale(get_spec("efficientnet_b0"), phi=1.5).image_size
        (276, 276)
    """
    factors = rule.at(phi)
    scaled = scale(spec, depth=factors.depth, width=factors.width, resolution=factors.resolution)
    return replace(scaled, name=f"{spec.name}_phi{phi:.4g}")
