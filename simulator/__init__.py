"""A simulated exchange in a process of its own: Binance's spot REST API over one loopback port, with faults on demand.

It stands in for the real venue where real money must not move: in the demo, in crash tests and in benchmarks. Its own durable log says
what happened at the exchange, so a verification can compare the product's words with the exchange's books.

Invariants:
1. The horizon: an order is accepted only while `server time - timestamp <= recvWindow`, checked when the request arrives and again
   immediately before the order enters the book (after any injected delay), and never later than `venue_timeout_ms` after it arrived.
   So a look-up that begins after `timestamp + recvWindow + venue_timeout` is conclusive: not found then means never accepted.
2. Durable before told: no answer leaves before everything that it could show is written and fdatasync'ed (`journal`). A `kill -9`
   therefore loses no acceptance, fill or cancel that anybody was told of.
3. Rebuilt by the same code: each change is decided as records, and applied by one function, both live and when the log is read back
   (`exchange.Exchange.apply`).
4. Conservation: for every asset, accounts + fees + market maker + the outside world sum to zero; no account's amount is negative
   (`ledger`).
5. A client order id is unique among the open orders of an account and symbol only; the id of a closed order can be used again. It is
   no idempotency key, exactly as on Binance.

Start reading at `server` (wire, faults), then `trading` (requests), `exchange` (decisions), `records` (the log).
Binance's rules: https://developers.binance.com/docs/binance-spot-api-docs/rest-api and .../errors.
"""
