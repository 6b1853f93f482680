-- EventLog.resolve_run. KEYS: s, m, r:<run>. ARGV 1 now ms or '', 2 producer ttl ms.
-- Gives thread, fence, first offset, last offset, sealed (0 or 1); or false.
local m = redis.call('HMGET', KEYS[2], 'born', 'top')
if not m[1] then return false end
local run = load_run(KEYS[3], KEYS[1], {born = m[1], top = tonumber(m[2])}, clock(ARGV[1]), tonumber(ARGV[2]))
if not run then return false end
return {run.thread, run.fence, run.first, run.last, run.sealed > 0 and 1 or 0}
