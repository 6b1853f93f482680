-- EventLog.resolve_run. KEYS: s, m, r:<run>. ARGV 1 now ms or '', 2 producer ttl ms.
-- Gives thread, fence, first offset, last offset, sealed (0 or 1); or false.
local packed = redis.call('GET', KEYS[2])
if not packed then return false end
local run = load_run(KEYS[3], KEYS[1], parse_meta(packed), clock(ARGV[1]), tonumber(ARGV[2]))
if not run then return false end
return {run.thread, run.fence, run.first, run.last, run.sealed > 0 and 1 or 0}
