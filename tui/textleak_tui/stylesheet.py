"""Textual's style sheet, parsed anew only for other colors.

Textual has all of it parsed anew for each new screen: a fifth of the processor's time that it took to go to a place
and to open and close its help (measured).
"""

from __future__ import annotations

from textual.css.stylesheet import Stylesheet


class SteadyStylesheet(Stylesheet):
    """As Textual's; what is added to it is parsed as there, when it is needed."""

    def __init__(self, *, variables: dict[str, str]) -> None:
        super().__init__(variables=variables)
        self._others = False

    def set_variables(self, variables: dict[str, str]) -> None:
        """The colors and the like that rules name."""
        if variables != self._variables:
            self._others = True
            super().set_variables(variables)

    def reparse(self) -> None:
        """Parse all sources anew, where variables are others than when that was done last."""
        if self._others:
            super().reparse()
            self._others = False
