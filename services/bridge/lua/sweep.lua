-- The retention of one user, wholly. KEYS: s, m. ARGV 1 now ms or '', 2 max entries, 3 max age ms, 4 idle ttl ms.
-- Gives the number of entries removed.
local stream, meta = KEYS[1], KEYS[2]
local now = clock(ARGV[1])
local m = parse_meta(get(meta))
if not m then return 0 end
local removed = redis.call('XTRIM', stream, 'MAXLEN', ARGV[2])
local expired
expired, m.due = expire(stream, now, tonumber(ARGV[3]), 1000)
if redis.call('XLEN', stream) == 0 and m.at < now - tonumber(ARGV[4]) then
  redis.call('DEL', stream, meta)
else
  redis.call('SET', meta, pack_meta(m), 'KEEPTTL')
end
return removed + expired
