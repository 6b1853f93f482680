-- EventLog.position and check_resume; makes the log when there is none. KEYS: s, m.
-- ARGV 1 now ms or '', 2 fresh epoch, 3 idle ttl ms, 4 offset whose event_id is asked for, or ''.
-- Gives epoch, top, oldest, newest event_id and mark, mark and event_id (or false) at the offset.
local stream, meta = KEYS[1], KEYS[2]
local m = load_meta(stream, meta, ARGV[2])
if m.created then
  local now = clock(ARGV[1])
  if m.top == 0 then m.at = now end
  save_meta(meta, m, now, tonumber(ARGV[3]))
end
local mark, there = '', false
if ARGV[4] ~= '' then mark, there = mark_at(stream, ARGV[4]) end
return {m.epoch, m.top, oldest_of(stream, m.top), m.last, mark_of(m.last, m.at), mark, there}
