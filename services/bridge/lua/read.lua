-- EventLog.read. KEYS: s, m. ARGV 1 after, 2 limit, 3 max bytes.
-- Gives epoch, top, oldest, newest event_id and mark, mark at `after` ('' when it is gone), then entries in chunks as
-- XRANGE gives them, possibly a few more than max bytes allow.
local stream, meta = KEYS[1], KEYS[2]
local m = parse_meta(get(meta))
if not m then return {'', 0, 1, '', '', ''} end
local top, after, left, room = m.top, tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local anchor = ''
if after == top then
  anchor = mark_of(m.last, m.at)
elseif after > 0 and after < top then
  anchor = mark_at(stream, ARGV[1])
end
local reply = {m.epoch, top, oldest_of(stream, top), m.last, mark_of(m.last, m.at), anchor}
local from = after < top and after + 1 or nil
while from and left > 0 and room > 0 do
  local chunk = redis.call('XRANGE', stream, int(from), '+', 'COUNT', math.min(left, 50))
  if #chunk == 0 then break end
  for _, entry in ipairs(chunk) do room = room - #entry[2][4] end
  left = left - #chunk
  from = offset_of(chunk[#chunk][1]) + 1
  reply[#reply + 1] = chunk
end
return reply
