"""`balances fund-paper`: simulated money for a user. No exchange is asked and no real balance is touched.

Start with `fund`.
"""

import re
from decimal import Decimal
from typing import Final

from pydantic_core import PydanticCustomError

from cli.access.administration import asking, change, exchange_here, user_id_of
from cli.access.credentials import usage
from cli.access.installation import Installation
from cli.access.operator_options import Credentials
from infra.postgres.admin.paper_funds import PaperFunds, fund_paper
from schemas.decimals import parse_decimal

# As a symbol has it on either side of its stroke.
_ASSET: Final = re.compile(r"[A-Z0-9]{1,20}")


async def fund(
    installation: Installation, user_id: str, asset: str, amount: str, *, exchange: str, reason: str | None, credentials: Credentials
) -> None:
    """Gives a user simulated funds. Raises CommandFailed."""
    user_id = user_id_of(user_id)
    asked = asking("balances fund-paper", user_id, credentials, reason)
    exchange = exchange_here(installation.settings, exchange)
    if not _ASSET.fullmatch(asset):
        raise usage("The asset must be a currency code in capitals, such as USDT.")
    funds = PaperFunds(exchange, asset, _amount_of(amount))
    await change(installation, asked, lambda database, by: fund_paper(database, user_id, funds, by))


def _amount_of(text: str) -> Decimal:
    try:
        return parse_decimal(text)
    except PydanticCustomError as error:
        raise usage(f"The amount {error.message()}.") from None
