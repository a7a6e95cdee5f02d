"""The gradient density of a trained detector, before and after harmonizing."""
