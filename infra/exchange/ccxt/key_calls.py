"""What a venue says of a key, asked over HTTP. The part of the gateway that does so; what there is to say stands in `key_check`.

Start with `KeyCalls.check_key`.
"""

from typing import Any

from infra.exchange.ccxt.account_calls import AccountCalls
from infra.exchange.ccxt.transport import Call
from infra.exchange.key_check import NO_SUCH_ENDPOINT, REFUSED, KeyAnswer, KeyRefused, KeyUnanswered
from infra.exchange.venues.reading import UnreadableBooks, reading
from infra.exchange.venues.venue import KeyQuestion, proven_refusal
from infra.metrics import ANSWERS_UNREADABLE
from pipeline.model.venue import Refused


class KeyCalls(AccountCalls):
    """What `CcxtGateway` has for keys."""

    async def check_key(self, user_id: str, api_key_id: str) -> KeyAnswer:
        account = await self._account(user_id, api_key_id)
        if isinstance(account, Refused):
            return KeyUnanswered(account.detail)
        credentials, exchange = account
        for question in self._venue.key_questions:
            call = Call()
            async with self._calling(call):
                try:
                    answer = await getattr(exchange, question.call)()
                except Exception as error:  # noqa: BLE001  whatever failed, the evidence decides
                    evidence = call.evidence(self._venue)
                    if evidence.http_status == NO_SUCH_ENDPOINT and not evidence.code:
                        continue
                    if evidence.code in self._venue.clock_refused_codes:
                        self._connection.doubt_clock()
                    detail = self._describe(call, error, credentials)
                    reason = proven_refusal(self._venue.refusal, evidence) if evidence.handed_over else None
                    return KeyRefused(reason, detail) if reason in REFUSED else KeyUnanswered(detail)
            return self._key_answer(question, answer)
        return KeyUnanswered(f"{self.exchange} has no endpoint that tells about a key")

    def _key_answer(self, question: KeyQuestion, answer: Any) -> KeyAnswer:
        try:
            with reading("the answer about the key"):
                found = question.read(answer)
        except UnreadableBooks:
            found = None
        if found is None:
            ANSWERS_UNREADABLE.labels(self.exchange, "key").inc()
        return found or KeyUnanswered(f"{self.exchange} answered in another form than it documents")
