-- EventLog.position and check_resume; makes the log when there is none. KEYS: s, m.
-- ARGV 1 now ms or '', 2 fresh epoch, 3 idle ttl ms, 4 offset whose event_id is asked for, or ''.
-- Gives epoch, top, oldest, newest event_id, event_id at the offset or false.
local stream, meta = KEYS[1], KEYS[2]
local m = load_meta(stream, meta, ARGV[2])
if m.created then save_meta(meta, m, clock(ARGV[1]), ARGV[3]) end
local there = false
if ARGV[4] ~= '' then
  local entry = redis.call('XRANGE', stream, ARGV[4], ARGV[4], 'COUNT', 1)[1]
  there = entry and entry[2][2] or false
end
return {m.epoch, m.top, oldest_of(stream, m.top), m.last, there}
