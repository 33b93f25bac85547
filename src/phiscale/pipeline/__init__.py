"""The chain written down once: scan, solve the budget, train, evaluate."""

from phiscale.pipeline.fit import FitResult, fit, run, tune_plan
from phiscale.pipeline.plan import FitPlan, plan_fit

__all__ = ["FitPlan", "FitResult", "fit", "plan_fit", "run", "tune_plan"]
