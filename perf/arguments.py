"""Names under which perf.accuracy and perf.compiled import `ghm_triton.arguments`. New code imports that module."""

from ghm_triton.arguments import command_parser, real, whole

__all__ = ["command_parser", "minutes", "positive_int"]

positive_int = whole(1)
minutes = real(0)
