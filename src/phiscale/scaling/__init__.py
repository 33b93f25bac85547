"""The paper's arithmetic: rounding, compound scaling, cost and budgets. No torch."""
