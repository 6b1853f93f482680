-- EventLog.resolve_run. KEYS: s, m, r:<run>. ARGV 1 now ms or '', 2 producer ttl ms.
-- Gives thread, fence, first offset, last offset, sealed (0 or 1); or false.
local m = parse_meta(get(KEYS[2]))
if not m then return false end
local run = load_run(KEYS[3], KEYS[1], m, clock(ARGV[1]), tonumber(ARGV[2]))
if not run then return false end
return {run.thread, run.fence, run.first, run.last, run.sealed > 0 and 1 or 0}
