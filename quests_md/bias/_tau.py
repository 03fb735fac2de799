"""How strong a bias is: τ, given or adapted to the forces of the potential."""

from __future__ import annotations

from ._bias_settings import BiasSettings

__all__ = ["Strength"]


class Strength:
    """τ in eV per nat.

    With `tau` it is that. With `strength` it is what makes the mean force of the bias that share of the mean force of
    the potential, over the steps of the warm-up so far. After the warm-up it is fixed, so that the bias is a function
    of positions alone.

    Attributes
    ----------
    tau
        τ now; 0 before the first step that is pushed.
    is_fixed
        Whether it will not change any more.
    """

    def __init__(self, settings: BiasSettings) -> None:
        self._share, self._left = settings.strength, settings.warm_up
        self.tau = 0.0 if settings.tau is None else float(settings.tau)
        self.is_fixed = settings.tau is not None
        self._of_potential = self._of_bias = 0.0

    def see(self, of_potential: float, of_bias: float) -> None:
        """Take note of the mean forces (eV/Å; those of the bias at τ = 1) of a step that is pushed."""
        if self.is_fixed or self._share is None or not of_bias > 0.0:
            return
        self._of_potential += of_potential
        self._of_bias += of_bias
        self.tau = self._share * self._of_potential / self._of_bias
        self._left -= 1
        self.is_fixed = self._left <= 0

    def resume(self, tau: float) -> None:
        """Go on with the τ of an earlier part of the run."""
        if self._share is not None and tau > 0.0:
            self.tau, self.is_fixed = tau, True
