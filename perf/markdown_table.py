"""Tables in Markdown, and the numbers in them."""

import pandas as pd


def as_markdown(table: pd.DataFrame) -> str:
    """Write the table with every value shown as text."""
    lines = [list(map(str, table.columns)), ["---"] * len(table.columns), *table.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def three_digits(value: float) -> str:
    """Write the number with three significant digits and commas between the thousands."""
    return f"{value:.3g}" if value < 1000 else f"{float(f'{value:.3g}'):,.0f}"
