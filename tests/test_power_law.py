"""results/power_law.py: the best width of each budget, and the line through them."""
import pytest

from results.power_law import best_widths, fit_power_law


def test_an_exact_power_law_is_found():
    budgets = [1e12, 3e12, 1e13, 7e13]
    assert fit_power_law(budgets, [29 * x ** -0.07 for x in budgets]) == pytest.approx((0.07, 29))


def test_the_best_width_of_each_budget_counts():
    """Runs that pass their budget by a step still share it; models and seeds do not mix."""
    runs = [("mixer_std_32", 7, 1.0001e12, 5.0), ("mixer_std_64", 7, 1.004e12, 4.5), ("mixer_std_32", 7, 3.01e12, 4.0),
            ("mixer_std_32", 8, 1.0001e12, 4.9), ("llama_32", 7, 1.002e12, 3.0)]
    rows = [dict(zip(("name", "seed", "train_flops", "val_loss"), map(str, run))) for run in runs]
    assert best_widths(rows) == {("mixer_std", 7): {1e12: rows[1], 3e12: rows[2]}, ("mixer_std", 8): {1e12: rows[3]},
                                 ("llama", 7): {1e12: rows[4]}}
