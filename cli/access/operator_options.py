"""How an operator says who asks: the options of every command that changes something, and what they give.

Invariant: as in `cli.main`, nothing of the database, of Kafka or of an exchange is loaded here.

Start with `with_credentials`. What is made of them: `cli.access.administration` for commands that write to the database,
`cli.access.operator_commands` for those on `trade.commands`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cli.access.options import AsJson

Claimed = Annotated[
    str | None,
    typer.Option("--operator", metavar="NAME", help="Who asks. With a token that is its subject; without operators, a mere claim."),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file", metavar="FILE", envvar="ORCHESTRATOR_OPERATOR_TOKEN_FILE", help="Your token, with the scope `operate`."
    ),
]
Totp = Annotated[str | None, typer.Option("--totp", metavar="CODE", help="The code of your second factor; else it is asked for.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the audit trail.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask whether it is meant, although it cannot be undone.")]
MayHaveReason = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why, for the audit trail.")]


@dataclass(frozen=True, slots=True)
class Credentials:
    """What somebody gives to prove who asks; nothing of it is proven yet. `totp` None: it is asked for where it is needed.

    `as_json`: what came of it is printed for programs.
    """

    operator: str | None = None
    token_file: Path | None = None
    totp: str | None = field(default=None, repr=False)
    as_json: bool = False


NO_CREDENTIALS: Final = Credentials()


_OPTIONS: Final = {"operator": Claimed, "token_file": TokenFile, "totp": Totp}


def with_credentials(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of an operator, which it gets as its keyword `credentials`; and `--json` where it has none itself."""
    signature = inspect.signature(command)
    own = {name: parameter for name, parameter in signature.parameters.items() if name != "credentials"}
    options = {
        name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in _OPTIONS.items()
    }
    has_json = "as_json" in own
    if not has_json:
        options["as_json"] = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=AsJson)

    @wraps(command)
    def run(**given: Any) -> None:
        as_json = given["as_json"] if has_json else given.pop("as_json")
        credentials = Credentials(**{name: given.pop(name) for name in _OPTIONS}, as_json=as_json)
        command(**given, credentials=credentials)

    shown = {**own, **options}
    # What typer reads: the options as if they were the command's own.
    run.__signature__ = signature.replace(parameters=list(shown.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {**{name: parameter.annotation for name, parameter in shown.items()}, "return": signature.return_annotation}
    return run
