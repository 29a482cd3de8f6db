"""The base of everything that a recipe holds: frozen, typed, and unknown keys are refused by name."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Knobs(BaseModel):
    """A part of a recipe: every key typed, unknown ones refused with the list of those that are allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, given: object) -> object:
        if isinstance(given, dict):
            unknown = [str(key) for key in given if key not in cls.model_fields]
            if unknown:
                raise PydanticCustomError(
                    "unknown_key",
                    "unknown key {unknown}: allowed are {allowed}",
                    {"unknown": ", ".join(unknown), "allowed": ", ".join(cls.model_fields)},
                )
        return given
