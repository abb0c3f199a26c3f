#!/bin/sh
# A worker with nothing but a POSIX shell and curl (7.71 or newer): each job names a file, whose SHA-256 is its result.
#
#     worker.sh http://127.0.0.1:8080 files
#
# Copy it, and put your own work into `work`. SIGTERM lets it finish the job in hand, and end. ACCESS_TOKEN is shown.
#
# It has no JSON parser, and reads answers by pattern. That does for payloads that are one string without a backslash:
# another one is failed rather than guessed at. Should it misread a token, say in a payload that tells of a "lease" of
# its own, the server refuses that, and the job is left to its lease.
set -u
server=$1 queue=$2
consumer=${CONSUMER:-$(uname -n)-$$}
lease_seconds=${LEASE_SECONDS:-30}
beat_seconds=$((lease_seconds < 6 ? 1 : lease_seconds / 3)) # so one or two beats may get lost
wait_seconds=5 # of a poll. None is cut short, for its answer may bring a job: SIGTERM is heeded after it
files=$(mktemp -d) || exit 1
answer_file=$files/answer ending='' failed=0
printf '%s' "${ACCESS_TOKEN:+header = \"Authorization: Bearer $ACCESS_TOKEN\"}" >"$files/curl" # `ps` tells arguments
trap 'ending=1' TERM INT

# call PATH BODY SECONDS [OPTION]...: $status and $answer; the status is 000 if no answer came in so many seconds.
# curl sends it again when the connection breaks, and at 408, 429, 500, 502, 503 and 504, and heeds Retry-After. That
# does no harm: the token tells that it is the same request, and of a dequeue the key does. Under it, one that is sent
# again gets the job of the answer that was lost.
call() {
    path=$1 body=$2 seconds=$3
    shift 3
    : >"$answer_file"
    status=$(curl -s -K "$files/curl" -o "$answer_file" -w '%{http_code}' -m $((wait_seconds + 10)) --retry 10 \
        --retry-all-errors --retry-max-time "$seconds" "$@" -d "$body" "$server/v1/queues/$queue/$path")
    answer=$(cat "$answer_file")
}

# between TEXT BEGIN END: $found, what stands between the first BEGIN and the END after it; nothing if there is none.
between() {
    found=
    case $1 in *"$2"*"$3"*) found=${1#*"$2"} found=${found%%"$3"*} ;; esac
}

# The work itself, on a file. It is one process, so that it ends when it is killed; what it prints begins with the hash.
# What it complains about is told to the server, which tries the job again later.
work() {
    case $1 in '' | *\\*) echo 'this payload takes a JSON parser' >&2 && exit 65 ;; esac
    exec sha256sum -- "$1"
}

# Extends the lease until the work is done, or is to stop: the lease is lost, or somebody has cancelled the job.
# $attempt is a file that is there for as long as the work is under way, and tells if it is to stop.
beat() {
    answer_file=$files/beat
    # $$ is the worker, here too: a heart that outlived it would hold the job for ever.
    while sleep "$beat_seconds" && kill -0 $$ && [ -e "$attempt" ]; do
        call "jobs/$id/extend" "{\"token\":\"$token\"}" "$beat_seconds"
        case $status$answer in
            404* | 409* | *'"cancel_requested":true'*) [ -e "$attempt" ] && echo stop >"$attempt" && kill "$working" ;;
        esac
    done
}

# Does the job $id: a word for what came of it.
perform() {
    attempt=$files/attempt.$polls
    : >"$attempt"
    work "$1" >"$files/result" 2>"$files/error" & working=$!
    beat >/dev/null 2>&1 & heart=$!
    while wait "$working"; code=$?; kill -0 "$working" 2>/dev/null; do :; done # for a signal cuts a wait short
    kill "$heart" 2>/dev/null
    message=$(head -n 1 "$files/error" | cut -c 1-1000 | tr -cd '[:alnum:] ._:/-')
    case $(cat "$attempt")$code in
        stop*) verb=release more= ;;
        0) verb=conclude more=",\"result\":{\"sha256\":\"$(cut -c 1-64 "$files/result")\"}" ;;
        *) verb=fail more=",\"error\":{\"type\":\"exit $code\",\"message\":\"$message\"}" ;;
    esac
    rm "$attempt" # should the heart have been too young to be killed, it sees this
    call "jobs/$id/$verb" "{\"token\":\"$token\"$more}" 60
    # `lease_lost`: it took too long, the job is somebody else's, and the result is dropped.
    between "$answer" '"code":"' '"'
    [ "$status" = 200 ] && found=$verb
    echo "${found:-unanswered} $id"
}

polls=0 begun=$(date +%s)
poll="{\"wait_seconds\":$wait_seconds,\"lease_seconds\":$lease_seconds,\"consumer\":\"$consumer\"}"
while [ -z "$ending" ]; do
    polls=$((polls + 1))
    call dequeue "$poll" 10 -H "Idempotency-Key: $consumer-$begun-$polls"
    case $status in
        200) ;;
        40[0-7] | 41?) echo "the server hands out no jobs: $answer" >&2 && failed=1 && break ;;
        *) sleep "$wait_seconds" ;;
    esac
    between "$answer" '"lease":{' '}' && between "$found" '"token":"' '"' && token=$found
    between "$answer" '"id":' ',' && id=$found
    between "$answer" '"payload":"' '"'
    [ -z "$id" ] || perform "$found"
done
rm -rf "$files" # not in a trap: that would be run by a heart, too, that is killed when it is very young
exit $failed
