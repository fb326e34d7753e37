"""`python -m agents`: one worker against the broker and the database that the environment names. Exit codes: agents/process/worker.py."""

import sys

from pydantic import ValidationError

from agents.process.worker import ExitCode, run_worker
from infra.settings import Settings


def main() -> int:
    """Runs a worker until it is asked to stop or something ends it; returns the exit code."""
    try:
        settings = Settings()
    except ValidationError as error:
        # Without the input: it may hold secrets.
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        texts = (f"ORCHESTRATOR_{'_'.join(map(str, problem['loc'])).upper()}: {problem['msg']}" for problem in problems)
        sys.stderr.write(f"no worker was started and nothing was read or sent, as the settings cannot work: {'; '.join(texts)}\n")
        return ExitCode.SETTINGS
    if settings.kafka_bootstrap_servers is None or settings.database_url is None:
        sys.stderr.write(
            "no worker was started and nothing was read or sent: a worker needs ORCHESTRATOR_KAFKA_BOOTSTRAP_SERVERS and "
            "ORCHESTRATOR_DATABASE_URL. `orchestrator up` starts a broker, a database and workers together.\n"
        )
        return ExitCode.SETTINGS
    return run_worker(settings, settings.kafka_bootstrap_servers, settings.database_url.get_secret_value())


if __name__ == "__main__":
    sys.exit(main())
