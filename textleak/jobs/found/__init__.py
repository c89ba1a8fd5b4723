"""An update as people have it, ready to be attacked: `find`."""

from textleak.jobs.found.update import Found, find, is_gradient_file

__all__ = ["Found", "find", "is_gradient_file"]
