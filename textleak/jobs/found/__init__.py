"""An update as people have it, ready to be attacked: `find`."""

from textleak.jobs.found.update import Found, find

__all__ = ["Found", "find"]
