"""The table of checks agrees with the enum, the limits, the documents and itself."""

import inspect
import re
from dataclasses import fields
from types import ModuleType
from typing import Any

import pytest

from checks.generate_docs import gate_checks
from checks.tree import ROOT
from pipeline.gate import announcements, api_key, connection, risk, safety, sessions, withdrawals
from pipeline.gate import surveillance as suspicion
from pipeline.gate.announcements import ANNOUNCEMENT_GATE
from pipeline.gate.check import HOLD, Check, Gate, Step
from pipeline.gate.context import TradeContext
from pipeline.gate.ladder import GIVEN_ELSEWHERE, PASSED_IN, TRADE_GATE, UNPRICED, refusal_of
from pipeline.gate.limits import Limits
from pipeline.gate.sessions import SESSION_GATE
from pipeline.gate.surveillance import RULES
from pipeline.gate.withdrawals import WITHDRAWAL_GATE
from schemas.orders import Mode
from schemas.reasons import ReasonCode, fix_ord_rej_reason
from tests.unit.builders import trade
from tests.unit.gate_builders import code_of, context_of, first_refusal, limit_at_market

MODULES = (safety, api_key, risk, suspicion, connection)
# Where a code comes from that a check names itself, beside those of the functions that it calls.
_CODE = re.compile(r"ReasonCode\.([A-Z_]+)")
CHECKS = TRADE_GATE.checks
PASSED = PASSED_IN[Mode.LIVE]
LOTS = (ReasonCode.PRECISION_INVALID, ReasonCode.AMOUNT_BELOW_MINIMUM, ReasonCode.AMOUNT_ABOVE_MAXIMUM)
by_name = pytest.mark.parametrize("check", CHECKS, ids=[check.name for check in CHECKS])
ROWS = {
    match[1]: line
    for line in (ROOT / "docs/checks.md").read_text(encoding="utf-8").splitlines()
    if (match := re.match(r"\| [a-z_]+ \| `([a-z_]+)` \|", line))
}


def _body(check: Check[TradeContext]) -> str:
    """The function's source, without what is declared on it."""
    return inspect.getsource(check.function).partition("\ndef ")[2]


def _declared(*modules: ModuleType) -> list[str]:
    """The names of the checks that modules declare themselves."""
    return [
        value.name
        for module in modules
        for value in vars(module).values()
        if isinstance(value, Check) and value.function.__module__ == module.__name__
    ]


def _undeclared(module: ModuleType) -> list[str]:
    """The public functions of a module that look like checks and are not declared to be any."""
    functions = inspect.getmembers(module, inspect.isfunction)
    return [
        name
        for name, function in functions
        if function.__module__ == module.__name__
        and not name.startswith("_")
        and [str(parameter.annotation).endswith("Context") for parameter in inspect.signature(function).parameters.values()] == [True]
        and "Refusal" in str(inspect.signature(function).return_annotation)
    ]


def test_ladder_has_every_check_once() -> None:
    """A check that is written but not in the table would never be made."""
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    assert set(names) == set(_declared(*MODULES)) - {"api_key_may_withdraw"}


@pytest.mark.parametrize("module", [*MODULES, announcements, sessions, withdrawals], ids=lambda module: module.__name__)
def test_function_that_looks_like_a_check_is_declared_as_one(module: ModuleType) -> None:
    """What takes a context and gives a refusal has a step, its codes and its limits."""
    assert _undeclared(module) == []


@pytest.mark.parametrize(
    ("module", "gate"),
    [(withdrawals, WITHDRAWAL_GATE), (announcements, ANNOUNCEMENT_GATE), (sessions, SESSION_GATE)],
    ids=["withdrawals", "announcements", "sessions"],
)
def test_gate_makes_every_check_of_its_module(module: ModuleType, gate: Gate[Any]) -> None:
    """A check that is declared beside a gate and not in it would never be made; each is made once, step by step."""
    names = [check.name for check in gate.checks]
    assert len(set(names)) == len(names)
    assert set(_declared(module)) <= set(names)
    assert [check.step for check in gate.checks] == sorted((check.step for check in gate.checks), key=list(Step).index)


def test_check_without_a_sentence_is_refused() -> None:
    """What a check says in its docstring's first sentence is a row of the documents."""

    def holds(_: object) -> None:
        """Nothing that ends"""

    with pytest.raises(ValueError, match="holds does not say"):
        assert Check(Step.RISK, holds, (), ()).sentence


def test_ladder_runs_the_steps_in_order() -> None:
    """The table lists the steps one behind the other, in the order of the enum."""
    assert list(dict.fromkeys(check.step for check in CHECKS)) == list(Step)
    assert [check.step for check in CHECKS] == sorted((check.step for check in CHECKS), key=list(Step).index)


def test_ladder_stops_at_the_first_refusal() -> None:
    """Several things wrong give the answer of the check that stands first."""
    assert code_of(trade(order_type="stop_loss", stop_price="1", exchange="kraken"), status=None) is ReasonCode.REQUEST_UNSUPPORTED
    assert code_of(trade(symbol="x"), status=None, api_key=None) is ReasonCode.USER_UNKNOWN


@pytest.mark.parametrize("step", Step)
def test_step_answers_for_its_own_checks(step: Step) -> None:
    """A step looks at nothing of the others: a good request passes each."""
    assert refusal_of(context_of(limit_at_market()), step) is None
    assert first_refusal(context_of(limit_at_market())) is None


def test_step_finds_what_the_steps_before_it_do_not() -> None:
    """A key that is not there is found by its own step alone."""
    context = context_of(trade(), api_key=None)
    answers = {step: refusal_of(context, step) for step in Step}
    assert [step for step, refusal in answers.items() if refusal is not None] == [Step.API_KEY]


def test_every_code_is_given_by_a_check_or_named_elsewhere() -> None:
    """No code of the enum is without an origin, and none has two."""
    given = {code for check in CHECKS for code in check.codes}
    assert given & set(GIVEN_ELSEWHERE) == set()
    assert given | set(GIVEN_ELSEWHERE) == set(ReasonCode)
    assert set(UNPRICED) <= given


@by_name
def test_check_lists_the_codes_it_gives(check: Check[TradeContext]) -> None:
    """The codes of a row are those that stand in its function, or in those it hands over to."""
    named = {ReasonCode[name] for name in _CODE.findall(_body(check))}
    assert named <= set(check.codes)
    handed_over = {
        "request_is_fresh": {ReasonCode.REQUEST_STALE},
        "market_is_trading": set(UNPRICED[:2]),
        "market_price_is_fresh": {ReasonCode.PRICE_UNAVAILABLE},
        "activity_is_not_suspicious": {ReasonCode.SUSPICIOUS_ACTIVITY},
        "quantity_fits_the_lot": set(LOTS),
        "quote_quantity_fits": {ReasonCode.AMOUNT_ABOVE_MAXIMUM},
    }
    assert set(check.codes) - named == handed_over.get(check.name, set())


@by_name
def test_check_lists_the_limits_it_goes_by(check: Check[TradeContext]) -> None:
    """The limits of a row are fields of `Limits`, and the function names each of them itself, or in the module of conduct or suspicion."""
    assert set(check.limits) <= {field.name for field in fields(Limits)}
    named = {field.name for field in fields(Limits) if re.search(rf"\.{field.name}\b", _body(check))}
    handed_over = {"cooldown_is_over": {"cooldown"}, "activity_is_not_suspicious": {"suspicion_block"}}
    assert named | handed_over.get(check.name, set()) == set(check.limits)


def test_every_limit_is_used() -> None:
    """A limit that nothing goes by would be a promise that nobody keeps."""
    used = {name for check in CHECKS for name in check.limits}
    assert {field.name for field in fields(Limits)} - used == {"daily_withdrawal_usd_max", "suspicion_flag"}


@by_name
def test_check_explains_itself(check: Check[TradeContext]) -> None:
    """Its docstring says what it means, its unit and where the rule comes from."""
    text = inspect.getdoc(check.function) or ""
    assert re.search(r"\bUnit:\s|\bNo unit\.", text)
    assert re.search(r"\bSource:\s", text)
    assert check.sentence.endswith(".")


def test_acceptance_names_what_was_checked() -> None:
    """The audit trail's list of passed checks is the ladder itself and the hold."""
    assert [*(check.name for check in CHECKS), HOLD] == PASSED


def test_document_has_the_rows_of_the_table() -> None:
    """docs/checks.md lists the checks in the order in which they are made, and the hold behind them."""
    assert list(ROWS) == PASSED
    assert (ROOT / "docs/checks.md").read_text(encoding="utf-8") == gate_checks()


@by_name
def test_document_says_what_the_check_gives(check: Check[TradeContext]) -> None:
    """Each row shows the check's step, sentence, limits, codes and their FIX 103 values."""
    _, step, _, sentence, limits, codes, numbers, _ = [cell.strip() for cell in ROWS[check.name].split("|")]
    assert (step, sentence) == (check.step.value, check.sentence)
    assert re.findall(r"`(\w+)`", limits) == list(check.limits)
    assert re.findall(r"`(\w+)`", codes) == [code.value for code in check.codes]
    assert numbers.split("<br>") == [str(fix_ord_rej_reason(code)) for code in check.codes]


@pytest.mark.parametrize("name", [*(field.name for field in fields(Limits)), *(rule.name for rule in RULES), *GIVEN_ELSEWHERE])
def test_document_lists_every_limit_rule_and_other_code(name: str) -> None:
    """Nothing that users or operators meet by name is missing."""
    assert re.search(rf"^\| `{name}` \| .+ \| .+ \|$", (ROOT / "docs/checks.md").read_text(encoding="utf-8"), re.MULTILINE)
