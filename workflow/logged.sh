# What every rule's command begins with, in place of Snakemake's strict mode.
set -euo pipefail

# A stop signal is for the training, which saves its state; the shell waits for it, and what it says still reaches log and
# terminal.
trap : HUP INT TERM USR1

# logged FILE NAME COMMAND...: output to FILE and, with NAME before each line, to the terminal. Snakemake deletes a log when its
# job begins: until the command has succeeded the file has a second name, so that the next attempt adds to what the last one said.
logged() {
    local log="$1" name="$2" kept="${1%.log}.unfinished"
    shift 2
    [ ! -s "$kept" ] || date "+--- again, %F %T" >> "$kept"
    touch "$kept"
    rm -f "$log"
    ln "$kept" "$log" 2> /dev/null || cp "$kept" "$log" # a file system without hard links keeps the first attempt alone
    "$@" 2>&1 | (trap '' HUP INT TERM USR1; tee -a "$log" | sed -u "s|^|$name: |")
    rm -f "$kept"
}
