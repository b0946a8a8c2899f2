"""How patients are divided into folds."""

from typing import Annotated, Literal

from pydantic import Field

from gigapipe.configuration.options import Options
from gigapipe.configuration.values import Distinct, File, Flag, Number

Split = Literal["site", "patient"]


LEAST = 3
"""Folds: one to test on, one to validate on, and one to train on."""


class Folds(Options):
    """How patients are divided."""

    number: Annotated[int, Field(ge=LEAST), Number, Flag("--folds")] = Field(
        default=4,
        description="number of folds: one is the test set, the next the validation set, the others are trained on",
    )
    by: Split | Annotated[list[Split], Field(min_length=1), Distinct] = Field(
        default="site",
        description="what no two folds share: site: hospitals, where the sheet names them; patient: only patients; or "
        "both kinds of folds, as [site, patient]",
    )
    given: File | None = Field(
        default=None, description="published folds to use instead: a table with the columns fold, and slide or patient"
    )

    @property
    def splits(self) -> list[str]:
        """The kinds of folds that are made."""
        if self.given:
            return ["given"]
        return [self.by] if isinstance(self.by, str) else list(self.by)
