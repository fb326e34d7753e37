"""`keys check`: what the exchange itself says about a stored key.

Start with `check`.
"""

from datetime import UTC

from cli.access.administration import administering, asking, key_id_of, keyring_for, user_id_of
from cli.access.installation import Installation
from cli.access.operator_options import Credentials
from cli.admin.key_gateway import asking_with
from cli.terminal.exits import CommandFailed, Exit
from cli.terminal.output import printable, say
from infra.exchange.key_check import KeyAccepted, KeyRefused, KeyUnanswered
from infra.postgres.admin.key_administration import StoredKey, record_check, stored_key

_USABLE = ("active", "refused")


async def check(installation: Installation, user_id: str, api_key_id: str, *, credentials: Credentials) -> int:
    """Asks the exchange about a key, notes what it says, and returns the exit code: 1 when it refuses the key.

    Raises CommandFailed when the exchange does not answer; nothing is noted then.
    """
    user_id, api_key_id = user_id_of(user_id), key_id_of(api_key_id)
    asked = asking("keys check", f"{user_id}/{api_key_id}", credentials)
    settings = installation.settings
    keyring = keyring_for(settings)
    async with administering(installation) as administration:
        by = await administration.by(asked)
        key = await stored_key(administration.database, user_id, api_key_id)
        if key.status not in _USABLE:
            raise CommandFailed(
                f"Key {api_key_id} of {user_id} is {key.status}: whatever the exchange says, it is not used. Nothing was asked or changed.",
                Exit.NOT_SO,
            )
        async with asking_with(settings, keyring, key) as gateway:
            answer = await gateway.check_key(user_id, api_key_id)
        if isinstance(answer, KeyUnanswered):
            raise CommandFailed(
                f"{key.exchange} did not say whether it takes key {api_key_id} of {user_id}: {printable(answer.detail)}. Nothing was "
                "changed; ask again later.",
                Exit.OUT_OF_REACH,
            )
        refused = _refusal(key, answer)
        await administration.tell(await record_check(administration.database, key, refused, by))
        if isinstance(answer, KeyAccepted):
            _remarks(key, answer)
    return Exit.DONE if refused is None else Exit.NOT_SO


def _refusal(key: StoredKey, answer: KeyAccepted | KeyRefused) -> str | None:
    """Why the key may not be used, in one sentence; None where it may. A permission that it is stored for and does not have is one."""
    if isinstance(answer, KeyRefused):
        return printable(answer.detail)
    missing = sorted(key.permissions - answer.permissions)
    if not missing:
        return None
    whom = "the key" if answer.is_of_key else "the key's account"
    return f"{key.exchange} does not permit {whom} to {' and '.join(missing)}, for which it is stored"


def _remarks(key: StoredKey, answer: KeyAccepted) -> None:
    """What an operator should know of a key that is taken."""
    if not answer.is_of_key:
        say(f"note: {key.exchange} tells about the account only; what the key itself may do, its first order shows.")
    more = sorted(answer.permissions - key.permissions) if answer.is_of_key else []
    if more:
        say(f"note: the key may {' and '.join(more)} too, for which it is not stored. Take that away at {key.exchange} unless needed.")
    if answer.is_ip_restricted is False:
        say(f"note: the key is good from any address. Restrict it to those of the workers at {key.exchange}.")
    if answer.trading_until is not None:
        say(f"note: it may trade until {answer.trading_until.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}, then {key.exchange} refuses it.")
