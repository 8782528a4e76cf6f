#!/bin/sh
# Stands in for the CNI plugin @NAME@: notes the call's environment, input, output and status under @CALLS@, then answers
# what the real plugin answered. With a file @REFUSALS@/@NAME@.<verb>, it refuses with that file's text instead.
exec 3>&2 2>>@CALLS@/.recorder.err
call=$(mktemp -d @CALLS@/.XXXXXXXXXX)
date +%s%N >"$call/at"
env | grep '^CNI_' >"$call/env"
cat >"$call/stdin"
code=0
if [ -f "@REFUSALS@/@NAME@.$CNI_COMMAND" ]; then
    cat "@REFUSALS@/@NAME@.$CNI_COMMAND" >"$call/stdout"
    : >"$call/stderr"
    code=1
else
    # A runtime that loses patience kills the process it started; the plugin must not outlive it.
    setpriv --pdeathsig KILL @REAL@ <"$call/stdin" >"$call/stdout" 2>"$call/stderr" 3>&- || code=$?
fi
echo "$code" >"$call/code"
echo @NAME@ >"$call/plugin"
cat "$call/stderr" >&3
cat "$call/stdout"
# A name without a dot says that the record is complete.
mv "$call" "@CALLS@/$(basename "$call" | tr -d .)"
exit "$code"
