#!/bin/sh
# The tests marked `system`: they need programs that pip cannot install. Missing ones are named, and
# their tests are left out by name instead of being skipped in silence.
set -eu
cd "$(dirname "$0")/../.."
status=0
pytest -m system || status=$?
if [ "$status" -eq 5 ]; then
  echo "no system test yet: nothing here needs another program"
elif [ "$status" -ne 0 ]; then
  exit "$status"
fi
