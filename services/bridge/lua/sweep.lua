-- The retention of one user, wholly. KEYS: s, m. ARGV 1 now ms or '', 2 max entries, 3 max age ms, 4 idle ttl ms.
-- Gives the number of entries removed.
local stream, meta = KEYS[1], KEYS[2]
local now = clock(ARGV[1])
if redis.call('EXISTS', meta) == 0 then return 0 end
local removed = redis.call('XTRIM', stream, 'MAXLEN', ARGV[2])
local expired, due = expire(stream, now, tonumber(ARGV[3]), 1000)
redis.call('HSET', meta, 'due', int(due))
local touched = tonumber(redis.call('HGET', meta, 'touched'))
if redis.call('XLEN', stream) == 0 and touched < now - tonumber(ARGV[4]) then redis.call('DEL', stream, meta) end
return removed + expired
