"""One finding of `doctor`: what was checked, how it is, what to do."""

from dataclasses import dataclass
from typing import Literal

from cli.terminal.output import Cell, printable

Status = Literal["ok", "problem", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`out_of_reach`: a service does not answer. `skipped`: it could not be checked, because of another finding."""

    check: str
    status: Status
    detail: str
    remedy: str = ""
    out_of_reach: bool = False

    @classmethod
    def ok(cls, check: str, detail: str) -> "Finding":
        return cls(check, "ok", detail)

    @classmethod
    def problem(cls, check: str, detail: str, remedy: str) -> "Finding":
        return cls(check, "problem", detail, remedy)

    @classmethod
    def unreachable(cls, check: str, detail: str, remedy: str) -> "Finding":
        return cls(check, "problem", detail, remedy, out_of_reach=True)

    @classmethod
    def skipped(cls, check: str, why: str) -> "Finding":
        return cls(check, "skipped", why)

    def row(self) -> dict[str, Cell]:
        return {
            "check": self.check,
            "status": self.status,
            "detail": self.detail,
            "remedy": self.remedy or None,
            "out_of_reach": self.out_of_reach,
        }

    def line(self) -> str:
        advice = f" → {self.remedy}" if self.remedy else ""
        return printable(f"{self.status:<7}  {self.check}: {self.detail}{advice}")


Findings = list[Finding]
