"""What the file of a loss between outputs has, and a check that all of them make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pelacli.errors import PelaError

if TYPE_CHECKING:
    from torch import Tensor


class Settings(Protocol):
    """What a recipe says of its losses beside their weights.

    Attributes:
        temperature: of the distributions that are compared.
    """

    @property
    def temperature(self) -> float: ...


class OutputLoss(Protocol):
    """The file of a loss.

    Attributes:
        DESCRIPTION: what it is, in the recipe's schema.
    """

    DESCRIPTION: str

    def loss(self, student: Tensor, teacher: Tensor, settings: Settings) -> Tensor:
        """A scalar in float32. No gradient reaches the teacher.

        Args:
            student, teacher: outputs of one shape [..., D]; padding is left out.
        """


def check_shapes(student: Tensor, teacher: Tensor) -> None:
    """Refuse outputs of two shapes: they would be broadcast, and training go for nonsense.

    Raises:
        PelaError: naming both shapes.
    """
    if student.shape != teacher.shape:
        raise PelaError(f"student gives {tuple(student.shape)}, teacher {tuple(teacher.shape)}")
