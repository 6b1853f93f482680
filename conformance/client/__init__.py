"""The suite for clients: a gateway that follows a script of faults, and the client under test behind a line protocol.

    python -m conformance client -- COMMAND …

COMMAND is started once for each scenario, and speaks JSON, one object a line. First it says what it is and can do::

    {"client": "name 1.0", "features": ["batch", "compress", "ack", "execute", "thread"]}

Then it is told, on standard input:

    {"do": "connect", "url": "http://127.0.0.1:1234", "token": "…", "resume": null | "oldest" | {"epoch", "offset",
     "event_id"}, "thread_id": "", "first_wait_ms": 20, "longest_wait_ms": 200}
    {"do": "pause"}, {"do": "go_on"}                       stop taking events from the client, and go on
    {"do": "execute", "message": "…", "client_ref": "…"}
    {"do": "close"}                                        end, with exit code 0, within 5 s

``resume`` null means what comes from now on. The waits bound the first and the longest pause between two attempts to
connect; a client tries at least ten times. On standard output it tells what its application sees, in that order:

    {"event": {…}}                      an event as the gateway sent it; at least offset and event_id
    {"reset": {"reason", "epoch", "offset"}}
    {"gap": {"from", "to"}}             offsets that will not come
    {"error": {"code", "message"}}      the client has given up
    {"accepted": {"client_ref", "run_id"}}, {"refused": {"client_ref", "code"}}

The rule for all scenarios: what is delivered is what was committed, in order, once; otherwise there is a notice.
"""
