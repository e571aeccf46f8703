"""What is said of a low-rank model that is worse than one should expect."""

from __future__ import annotations

from pelacli import console
from pelacli.steps.solved import Fit, SolvedModel

_ALIKE = 1.05  # a correction that makes it worse by less is left out without a word
_NOTHING = 1e-4  # and so is one after which no more than this is lost


def warn(solved: SolvedModel, fit: Fit | None) -> None:
    """Say what the user gives up who does not calibrate, or how far from the dense model it is."""
    if not solved.moments:
        console.warn(
            "no calibration samples: ranks and factors come from the weights alone, so expect to "
            "heal; --calibrate with a few hundred samples of your own data does far better"
        )
    if fit is not None:
        warn_of_distance(fit)


def warn_of_distance(fit: Fit) -> None:
    """Say when the correction was left out, and when the model is no better than a constant."""
    if fit.distance is None:
        return
    alike = max(_ALIKE * fit.distance.decisive, _NOTHING)
    if fit.rejected is not None and not fit.rejected.decisive <= alike:
        what = "relative error" if fit.rejected.kl is None else "divergence"
        console.warn(
            f"the correction made the model worse on the held-back samples ({what} "
            f"{fit.rejected.decisive:.3g}, {fit.distance.decisive:.3g} without), so it is left "
            "out; calibrate on more samples"
        )
    if not fit.distance.relative_error < 1:
        console.warn(
            f"relative error {fit.distance.relative_error:.4g} on the held-back samples: the "
            "model's mean output would do as well; take a larger ratio, calibrate on more samples, "
            "or heal it (pela heal)"
        )
