# Sourced by the scripts that take long: how they say what they do.

say() { printf '== %s\n' "$*"; }

progress_interval=15 # seconds

# Run a command; a line every so often says for how long it has been running.
with_progress() { # WHAT COMMAND...
    local what=$1 status=0 ticker
    shift
    report_elapsed "$what" &
    ticker=$!
    "$@" || status=$?
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    return $status
}

# Runs in the background.  It polls once a second, and with a builtin, so that nothing is left to hold the standard output
# open when this script is killed.
report_elapsed() { # WHAT
    local began=$SECONDS next=$progress_interval
    while kill -0 $$ 2>/dev/null; do
        read -rt 1 <> <(:) || true
        if [ $((SECONDS - began)) -ge $next ]; then
            say "$1: $next s"
            next=$((next + progress_interval))
        fi
    done
}

# For a program that prints much although nothing is wrong: its output is shown only if it fails.
unless_it_fails() { # COMMAND...
    local output
    if ! output=$("$@" 2>&1); then
        printf '%s\n' "$output"
        return 1
    fi
}
