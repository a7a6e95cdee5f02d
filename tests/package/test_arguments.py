"""What the commands share: their help, and types that name what was expected and what came."""

import math

import pytest

from ghm_triton.arguments import command_parser, real, whole


def test_help():
    """Examples come last; a default is shown if it says something, and choices where a name stands for the value."""
    parser = command_parser("some.command", "First line.\n\n    an example\n\nLast line.\n")
    add = parser.add_argument
    add("--number", type=whole(1), default=3, help="how many")
    add("--names", nargs="+", metavar="NAME", choices=["a", "b"], default=["a", "b"], help="some names")
    add("--kind", choices=["x", "y"], default="x", help="a kind")
    add("--out", help="a file")
    add("--augment", choices=["none", "flip"], default="none", help="what is done")
    add("--fast", action="store_true", help="faster")
    text = " ".join(parser.format_help().split())
    assert "usage: python -m some.command" in text and "\n\nFirst line.\n\nLast line.\n\n" in parser.format_help()
    assert parser.format_help().endswith("\n\nexamples:\n  an example\n")
    assert "how many (default: 3)" in text
    assert "some names; one of a, b (default: a, b)" in text
    assert "a kind (default: x)" in text  # argparse shows {x,y}
    assert text.count("default") == 3


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (whole(1), "1", 1),
        (whole(0, 2), "2", 2),
        (whole(1), "0", "a whole number from 1, got '0'"),
        (whole(0, 2), "3", "a whole number from 0 up to 2, got '3'"),
        (whole(1), "1.5", "a whole number from 1, got '1.5'"),
        (real(0, 1), "1e-3", 1e-3),
        (real(above=0), "0", "a finite number above 0, got '0'"),
        (real(0), "inf", "a finite number from 0, got 'inf'"),
        (real(), "nan", "a finite number, got 'nan'"),
    ],
)
def test_types(kind, text, value, capsys):
    """The value, or exit code 2 and a message with the name of the argument."""
    parser = command_parser("some.command", "A command.")
    parser.add_argument("--number", type=kind, default=math.nan)
    if not isinstance(value, str):
        assert parser.parse_args(["--number", text]).number == value
        return
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--number", text])
    assert f"argument --number: must be {value}" in capsys.readouterr().err
