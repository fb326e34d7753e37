"""What the exchange refuses, in Binance's words: error code, HTTP status and message.

Source: https://developers.binance.com/docs/binance-spot-api-docs/errors. Messages are Binance's own, because clients match on them.
"""


class Refusal(Exception):
    """A request that changed nothing. `status` is the HTTP status."""

    def __init__(self, code: int, message: str, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status


def missing(parameter: str) -> Refusal:
    return Refusal(-1102, f"Mandatory parameter '{parameter}' was not sent, was empty/null, or malformed.")


def not_required(parameter: str) -> Refusal:
    return Refusal(-1106, f"Parameter '{parameter}' sent when not required.")


def illegal_characters(parameter: str, legal: str) -> Refusal:
    return Refusal(-1100, f"Illegal characters found in parameter '{parameter}'; legal range is '{legal}'.")


def too_precise(parameter: str) -> Refusal:
    return Refusal(-1111, f"Parameter '{parameter}' has too much precision.")


def filter_failure(name: str) -> Refusal:
    return Refusal(-1013, f"Filter failure: {name}")


def invalid_symbol() -> Refusal:
    return Refusal(-1121, "Invalid symbol.")


def insufficient_balance() -> Refusal:
    return Refusal(-2010, "Account has insufficient balance for requested action.")


def duplicate_order() -> Refusal:
    return Refusal(-2010, "Duplicate order sent.")


def would_match() -> Refusal:
    return Refusal(-2010, "Order would immediately match and take.")


def unknown_order() -> Refusal:
    return Refusal(-2011, "Unknown order sent.")


def no_such_order() -> Refusal:
    return Refusal(-2013, "Order does not exist.")


def bad_key_format() -> Refusal:
    return Refusal(-2014, "API-key format invalid.", 401)


def unknown_key() -> Refusal:
    return Refusal(-2015, "Invalid API-key, IP, or permissions for action.", 401)


def bad_signature() -> Refusal:
    return Refusal(-1022, "Signature for this request is not valid.")


def outside_window() -> Refusal:
    return Refusal(-1021, "Timestamp for this request is outside of the recvWindow.")


def ahead_of_time() -> Refusal:
    return Refusal(-1021, "Timestamp for this request was 1000ms ahead of the server's time.")


def window_too_wide(limit_ms: int) -> Refusal:
    return Refusal(-1131, f"recvWindow must be less than {limit_ms}.")


def rate_limited() -> Refusal:
    return Refusal(-1003, "Too much request weight used; current limit is 6000 request weight per 1 MINUTE.", 429)


def backend_timeout() -> Refusal:
    """Binance's -1007; here always without acceptance (invariant 1 of the package)."""
    return Refusal(-1007, "Timeout waiting for response from backend server. Send status unknown; execution status unknown.", 504)
