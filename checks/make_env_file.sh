#!/bin/sh
# Writes .env for docker-compose.yml: a database password and a master key, random, readable by their owner only. Needs no Python.
set -eu

if [ -e .env ]; then
    printf '%s\n' ".env exists already and was left as it is: exchange keys may be stored under its master key." >&2
    exit 1
fi
umask 077
{
    printf 'POSTGRES_PASSWORD=%s\n' "$(head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n')"
    printf 'ORCHESTRATOR_MASTER_KEY=%s\n' "$(head -c 32 /dev/urandom | base64 | tr -d '\n')"
} >.env.unfinished
mv .env.unfinished .env
printf '%s\n' "Wrote .env. Keep it: without its master key the stored exchange keys cannot be read." >&2
